"""One metric of a study as a matrix, seeds × conditions: what contrasts, variances and plans start from.

Seeds are blocks: a row is complete where every condition that is asked about has a finished, finite value.
Beside the values stands what became of each run: it has a value, it diverged, or it is still to come. Repeats
of one configuration and seed are averaged: they are one observation of that seed, not several.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.reading.frames import StudyData
from reports.reading.study import Cell
from reports.statistics import failures
from reports.statistics.failures import Failures
from reports.statistics.inference import NOTHING, ROUNDING, Array, Contrast, weighted_contrast

Weights = Mapping[Cell, float]
"""Condition → its weight in a contrast; the weights sum to 0."""
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Blocks:
    """The final values of one metric and the state of each run. Shapes: (S, C) unless said otherwise."""

    metric: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    values: Array
    """NaN where there is none."""
    diverged: Flags
    """The run failed because its loss did, or ended without a finite one: a result, not a gap."""
    pending: Flags
    """It is queued or running, or its seed was declared and never enqueued."""
    spread_of: Flags | None = None
    """The seeds that estimate an sd, where the sd of some decided how many there are. Shape: (S,)."""

    def column(self, cell: Cell) -> Array:
        """A condition's values by seed. Shape: (S,)."""
        return np.asarray(self.values[:, self.columns[cell]])

    @cached_property
    def columns(self) -> dict[Cell, int]:
        """Condition → its column."""
        return {cell: i for i, cell in enumerate(self.cells)}

    def contrast(self, weights: Weights) -> Contrast:
        """The contrast over the seeds that have every condition in it."""
        if not weights or any(cell not in self.columns for cell in weights):
            return NOTHING
        values = self.values[:, [self.columns[cell] for cell in weights]]
        return weighted_contrast(values, list(weights.values()), self.spread_of)

    def percent(self, weights: Weights, difference: float) -> float:
        """A contrast's difference in percent of its second side's mean, over the seeds of the contrast.

        NaN for an interaction, which has no second side, and where that side's values lie on both sides of 0:
        a share of what may be nothing says nothing.
        """
        second = [-weight for weight in weights.values() if weight < 0]
        if abs(sum(second) - 1) > ROUNDING or any(cell not in self.columns for cell in weights):
            return math.nan
        _, found = self.complete(weights)
        values = found[:, [weight < 0 for weight in weights.values()]]
        if not values.any() or not ((values >= 0).all() or (values <= 0).all()):
            return math.nan
        return 100 * difference / abs(float((values @ np.array(second)).mean()))

    def failures(self, weights: Weights) -> Failures:
        """How often the two sides of the contrast diverged."""
        columns = [self.columns[cell] for cell in weights if cell in self.columns]
        told = [weight for cell, weight in weights.items() if cell in self.columns]
        diverged = self.diverged[:, columns]
        return failures.count(diverged, diverged | np.isfinite(self.values[:, columns]), told)

    def to_come(self, weights: Weights) -> int:
        """The seeds that still lack a run of the contrast and are going to have it."""
        columns = [self.columns[cell] for cell in weights if cell in self.columns]
        return int(self.pending[:, columns].any(axis=1).sum())

    def empty(self) -> set[Cell]:
        """The conditions in which no run has a value, or will have one."""
        none = ~np.any(np.isfinite(self.values) | self.pending, axis=0)
        return {cell for cell, gone in zip(self.cells, none.tolist(), strict=True) if gone}

    def logarithms(self) -> Blocks | None:
        """The same runs with ln of the values; None where one is not above 0."""
        if (self.values <= 0).any():
            return None
        return replace(self, values=np.log(self.values))

    def complete(self, cells: Iterable[Cell]) -> tuple[tuple[int, ...], Array]:
        """The seeds that have all of `cells`, and their values. Shape: (complete seeds, cells)."""
        values = np.stack([self.column(cell) for cell in cells], axis=1)
        rows = np.isfinite(values).all(axis=1)
        return tuple(np.asarray(self.seeds, dtype=int)[rows].tolist()), values[rows]


def blocks(data: StudyData, metric: str) -> Blocks:
    """The runs' values of one metric, by seed and condition, and what became of each run."""
    seeds = tuple(sorted({*data.runs["seed"].tolist(), *data.study.seeds}))
    cells = tuple(data.cells)
    row, column = ({key: i for i, key in enumerate(keys)} for keys in (seeds, cells))
    shape = (len(seeds), len(cells))
    values, diverged = np.full(shape, math.nan), np.zeros(shape, dtype=bool)
    pending = np.zeros(shape, dtype=bool)
    if data.study.imported_from is None and not data.study.looks:  # looks decide what is still to come
        declared = [column[cell] for cell in data.study.cells()]
        pending[np.ix_([row[seed] for seed in data.study.seeds], declared)] = True
    runs = data.runs
    for seed, cell, status in zip(runs["seed"], runs["cell"], runs["status"], strict=True):
        pending[row[seed], column[cell]] = status in ("queued", "running")
    for seed, cell, value in _values(data.done, metric):
        values[row[seed], column[cell]] = value
    values[~np.isfinite(values)] = math.nan
    lost = _diverged(data)
    for seed, cell in zip(lost["seed"], lost["cell"], strict=True):
        where = row[seed], column[cell]
        diverged[where] = not math.isfinite(values[where])
    return Blocks(metric, seeds, cells, values, diverged, pending, _spread_of(data, metric, seeds))


def usable(data: StudyData, metric: str) -> bool:
    """Whether a metric is a number among the recorded results."""
    return metric in data.study.measures


def _spread_of(data: StudyData, metric: str, seeds: tuple[int, ...]) -> Flags | None:
    """Stein's rule keeps the sd of the seeds it was fed with; a plan for a difference leaves them out."""
    plan = next((plan for plan in reversed(data.plans) if plan.metric == metric), None)
    if plan is None:
        return None
    first = np.isin(seeds, plan.seeds)
    return first if plan.rule == "half-width" else ~first


def _values(done: pd.DataFrame, metric: str) -> Iterable[tuple[int, Cell, float]]:
    """The finished runs, repeats averaged."""
    again = done.duplicated(["cell", "seed"], keep=False)
    once = done[~again]
    yield from zip(once["seed"], once["cell"], once[metric].astype(float), strict=True)
    for _, runs in done[again].groupby(["cell", "seed"], sort=False):
        # Two runs of one seed in one condition that are told different things make no pair: which would it
        # be?
        if len({kind(config) for config in runs["config"]}) == 1:
            yield runs["seed"].iloc[0], runs["cell"].iloc[0], float(runs[metric].astype(float).mean())


def _diverged(data: StudyData) -> pd.DataFrame:
    """The runs whose end was that the loss diverged: failed for it, or done without a finite loss."""
    runs = data.runs
    caused = data.last_causes["cause"].reindex(runs["job_id"]).to_numpy() == "diverged"
    infinite = ~np.isfinite(runs[data.study.outcome].astype(float)) & (runs["status"] == "done")
    lost: pd.DataFrame = runs[((runs["status"] == "failed") & caused) | infinite]
    return lost


def kind(config: Mapping[str, Any]) -> str:
    """The configuration without its repeat: equal for runs that should be equal."""
    return repr(sorted((key, value) for key, value in config.items() if key != "repeat"))
