"""Where conditions stand in a figure: which are lines, which are panels, and how much fits.

The first factor that varies makes the lines, the combinations of the others make the panels. What is drawn:
reports/figures.py and reports/load_figures.py. How it looks: reports/plots.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sqlalchemy as sa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import plots, series
from reports.frames import StudyData
from reports.statistics import Array
from reports.study import Cell, Study
from reports.tables import plain

MAX_PANELS, MAX_LEVELS, MAX_SEEDS = 6, plots.STYLES, 12
"""More would not be told apart; captions say when something is left out."""
MAX_POINTS = 400
"""Points of a line: about one a pixel."""
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
    panels: Panels = []
    for combination in combinations[:MAX_PANELS]:
        within = {**fixed, **dict(zip(others, combination, strict=True))}
        title = ", ".join(f"{name}={within[name]}" for name in others)
        cells = [(plain(level), study.cell({**within, lines: level})) for level in varied[lines][:MAX_LEVELS]]
        panels.append((plain(title), cells))
    left_out = len(combinations) > MAX_PANELS or len(varied[lines]) > MAX_LEVELS
    shown = sum(len(cells) for _, cells in panels)
    remark = f" Only the first {shown} conditions of the grid are drawn." if left_out else ""
    if any(len(runs) > MAX_SEEDS for runs in data.by_cell.values()):
        remark += f" Lines and points are of the first {MAX_SEEDS} seeds of each condition."
    return Layout(plain(lines), panels, remark)


@dataclass(frozen=True)
class Curves:
    """The series that are drawn, in memory: job_id, step, and name, value or layer, expert, tokens."""

    train: pd.DataFrame
    held_out: pd.DataFrame
    counts: pd.DataFrame


def read_curves(connection: sa.Connection, data: StudyData, further: Iterable[int] = ()) -> Curves:
    """The losses and counts over steps of the runs that the figures draw, and the losses of `further` runs."""
    layout = arrange(data)
    drawn = {job for _, lines in layout.panels for _, cell in lines for job in drawn_jobs(data, cell)}
    jobs = sorted(drawn | set(further))
    return Curves(
        series.metrics(connection, data.study, ["loss"], "train", jobs),
        series.metrics(connection, data.study, ["loss"], "val", jobs),
        series.expert_counts(connection, data.study, only=sorted(drawn)),
    )


def drawn_jobs(data: StudyData, cell: Cell) -> list[int]:
    """The jobs of a condition that are drawn: its first finished seeds."""
    runs = data.by_cell.get(cell)
    return [] if runs is None else runs.loc[runs["status"] == "done", "job_id"].tolist()[:MAX_SEEDS]


def panel_grid(
    panels: int, height: float, rows: int = 1, sharey: str = "row"
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with so many panels side by side, three at most, in `rows` bands."""
    across = min(panels, 3) if rows == 1 else panels
    down = rows if rows > 1 else math.ceil(panels / across)
    figure = Figure(figsize=(plots.WIDTH, 0.55 + height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey="all" if rows == 1 else "row")
    if rows > 1:
        return figure, [list(row) for row in axes]
    flat = list(axes.flat)
    for spare in flat[panels:]:
        spare.set_axis_off()
    return figure, [flat[:panels]]


def styled(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    def drawn() -> Figure:
        with plots.style():
            figure = draw()
            # The layout is settled once: each save would move it a little further.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return drawn


def legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper right", ncols=min(6, len(labels)))


def two_lines(study: Study, cell: Cell) -> str:
    return "\n".join(plain(f"{factor}={value}") for factor, value in study.values(cell).items()) or "all runs"


def by_step(found: pd.DataFrame, jobs: list[int], value: str = "value") -> tuple[Array, Array]:
    """Steps and values (jobs, steps) of some jobs; long series keep every k-th step."""
    rows = found[found["job_id"].isin(jobs)]
    table = rows.pivot_table(index="job_id", columns="step", values=value).reindex(jobs)
    every = math.ceil(table.shape[1] / MAX_POINTS) or 1
    table = table.iloc[:, ::-1].iloc[:, ::every].iloc[:, ::-1]  # from the end, so that the last step stays
    values = table.to_numpy(dtype=float)
    return table.columns.to_numpy(dtype=float), np.where(np.isfinite(values), values, math.nan)


def curves_of(
    data: StudyData, found: pd.DataFrame, layout: Layout, cells: list[tuple[str, Cell]]
) -> list[plots.Series]:
    name = f"{layout.lines}=" if layout.lines else ""
    return [plots.Series(f"{name}{label}", *by_step(found, drawn_jobs(data, cell))) for label, cell in cells]
