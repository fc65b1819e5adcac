"""One metric of a study as a matrix, seeds × conditions: what contrasts, variances and plans start from.

Seeds are blocks: a row is complete where every condition that is asked about has a finished, finite value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reports.reading.frames import StudyData
from reports.reading.measures import measured
from reports.reading.study import Cell
from reports.statistics.inference import Array, Contrast, weighted_contrast

Weights = Mapping[Cell, float]
"""Condition → its weight in a contrast; the weights sum to 0."""


@dataclass(frozen=True)
class Blocks:
    """The final values of one metric. Shape of `values`: (S, C), NaN where there is none."""

    metric: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    values: Array

    def column(self, cell: Cell) -> Array:
        """A condition's values by seed. Shape: (S,)."""
        return np.asarray(self.values[:, self.columns[cell]])

    @cached_property
    def columns(self) -> dict[Cell, int]:
        """Condition → its column."""
        return {cell: i for i, cell in enumerate(self.cells)}

    def contrast(self, weights: Weights) -> Contrast:
        """The contrast over the seeds that have every condition in it."""
        missing = [cell for cell in weights if cell not in self.columns]
        if missing or not weights:
            return Contrast(0, *[math.nan] * 5)
        columns = np.stack([self.column(cell) for cell in weights], axis=1)
        return weighted_contrast(columns, list(weights.values()))

    def complete(self, cells: Iterable[Cell]) -> tuple[tuple[int, ...], Array]:
        """The seeds that have all of `cells`, and their values. Shape: (complete seeds, cells)."""
        values = np.stack([self.column(cell) for cell in cells], axis=1)
        rows = np.isfinite(values).all(axis=1)
        return tuple(np.asarray(self.seeds)[rows].tolist()), values[rows]


def blocks(data: StudyData, metric: str) -> Blocks:
    """The finished runs' values of one metric, by seed and condition."""
    done = data.done
    # Two runs of one seed in one condition (another configuration) make no pair: which one would it be?
    done = done[~done.duplicated(["cell", "seed"], keep=False)]
    seeds = tuple(sorted(set(done["seed"].tolist())))
    cells = tuple(data.cells)
    values = np.full((len(seeds), len(cells)), math.nan)
    row, column = ({key: i for i, key in enumerate(keys)} for keys in (seeds, cells))
    for seed, cell, value in zip(done["seed"], done["cell"], done[metric].astype(float), strict=True):
        values[row[seed], column[cell]] = value
    values[~np.isfinite(values)] = math.nan
    return Blocks(metric, seeds, cells, values)


def usable(data: StudyData, metric: str) -> bool:
    """Whether a metric is a number among the recorded results."""
    return metric in measured(data.runs)
