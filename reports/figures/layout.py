"""Which conditions and runs a figure shows, and the series that it needs: no more of them are read.

The first factor that varies makes the lines, the combinations of the others make the panels. Imports no
matplotlib. Who draws: reports/figures/comparison.py, reports/figures/load.py, reports/output/runs.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import sqlalchemy as sa

from reports.reading import series
from reports.reading.frames import StudyData
from reports.reading.study import Cell, Study
from reports.statistics.families import baseline_cell
from reports.tables import plain
from runner.queue.series import candidates, chosen
from runner.queue.where import written

MAX_PANELS, MAX_LEVELS, MAX_CONDITIONS, MAX_SEEDS = 4, 8, 12, 12
"""More would not be told apart; captions say when something is left out."""
MAX_RUNS = 60
"""A page of more runs would be too heavy to open."""
Panels = list[tuple[str, list[tuple[str, Cell]]]]


@dataclass(frozen=True)
class Layout:
    """Which conditions are drawn where: panels of lines, each with its label and condition."""

    lines: str
    """The factor whose levels are the lines."""
    panels: Panels
    remark: str
    """What is left out, as a sentence; empty when nothing is."""


def arrange(data: StudyData) -> Layout:
    """The first factor that varies as lines, every combination of the others as a panel."""
    study = data.study
    varied = {factor: levels for factor, levels in study.factors.items() if len(levels) > 1}
    if not varied:
        return Layout("", [("", [("all runs", data.cells[0])])] if data.cells else [], "")
    lines, *others = varied
    fixed = {factor: levels[0] for factor, levels in study.factors.items() if len(levels) == 1}
    combinations = list(itertools.product(*(varied[name] for name in others)))
    levels = _spread_out(varied[lines], study.values(baseline_cell(data)[0])[lines])
    panels: Panels = []
    for combination in combinations[:MAX_PANELS]:
        within = {**fixed, **dict(zip(others, combination, strict=True))}
        title = written({name: within[name] for name in others})
        cells = [(plain(level), study.cell({**within, lines: level})) for level in levels]
        panels.append((plain(title), cells))
    left_out = len(combinations) > MAX_PANELS or len(varied[lines]) > MAX_LEVELS
    shown = sum(len(cells) for _, cells in panels)
    remark = f" Only {shown} of the grid's {len(study.cells())} conditions are drawn." if left_out else ""
    if any(len(runs) > MAX_SEEDS for runs in data.by_cell.values()):
        remark += f" Lines and points are of the first {MAX_SEEDS} seeds of each condition."
    return Layout(plain(lines), panels, remark)


def _spread_out(levels: list[Any], standard: Any) -> list[Any]:
    """MAX_LEVELS of them at most: the ends, the baseline's, and others evenly between."""
    if len(levels) <= MAX_LEVELS:
        return levels
    last = len(levels) - 1
    chosen = {round(i * last / (MAX_LEVELS - 1)) for i in range(MAX_LEVELS)}
    own = levels.index(standard) if standard in levels else 0
    if own not in chosen:
        chosen ^= {own, min(chosen - {0, last}, key=lambda i: abs(i - own))}
    return [levels[i] for i in sorted(chosen)]


@dataclass(frozen=True)
class Curves:
    """The series that are drawn, in memory: job_id, step, name or layer, value."""

    train: pd.DataFrame
    """One series, under its name: the one that stands for a run;"""
    held_out: pd.DataFrame
    """and of the evaluations, which may have logged another."""
    layers: pd.DataFrame
    """The experts' CV by layer."""
    routing: pd.DataFrame
    """The router's measures at each evaluation, like `held_out`."""


def read_curves(connection: sa.Connection, data: StudyData, further: Iterable[int] = ()) -> Curves:
    """Series and counts over steps of the runs that the figures draw, and the series of `further` runs."""
    layout = arrange(data)
    drawn = {job for _, lines in layout.panels for _, cell in lines for job in drawn_jobs(data, cell)}
    jobs = sorted(drawn | set(further))
    return Curves(
        _drawn(connection, data.study, "train", jobs),
        _drawn(connection, data.study, "val", jobs),
        series.layer_variation(connection, data.study, sorted(drawn)),
        series.metrics(connection, data.study, series.ROUTER, "val", sorted(drawn)),
    )


def _drawn(connection: sa.Connection, study: Study, split: str, jobs: list[int]) -> pd.DataFrame:
    """The series of a split that is drawn; the names of all are asked for only where none is a candidate."""
    found = series.metrics(connection, study, candidates(study.primary), split, jobs)
    if found.empty:
        other = chosen(series.names(connection, split, jobs), study.primary)
        return series.metrics(connection, study, [other], split, jobs)
    return found[found["name"] == chosen(set(found["name"]), study.primary)]


def drawn_jobs(data: StudyData, cell: Cell) -> list[int]:
    """The jobs of a condition that are drawn: its first finished seeds."""
    runs = data.by_cell.get(cell)
    return [] if runs is None else runs.loc[runs["status"] == "done", "job_id"].tolist()[:MAX_SEEDS]


def chosen_runs(data: StudyData) -> list[int]:
    """The jobs that get a page: all, or with more than MAX_RUNS those without a result first."""
    runs = data.runs.assign(done=data.runs["status"] == "done")
    return sorted(runs.sort_values(["done", "job_id"], kind="stable")["job_id"].tolist()[:MAX_RUNS])
