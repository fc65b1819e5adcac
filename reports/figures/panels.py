"""Figures of several panels: their grid, their legend, and series as the curves of conditions.

Which conditions: reports/figures/layout.py. How it looks: reports/figures/style.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figures import style
from reports.figures.layout import Layout, drawn_jobs
from reports.reading.frames import StudyData
from reports.reading.study import Cell, Study
from reports.statistics.inference import Array
from reports.tables import plain

MAX_POINTS = 400
"""Points of a line: about one a pixel."""
_LETTERS, _HANDLE = 120, 9
"""Of a legend's row, and of the line before each label."""


def panel_grid(panels: int, height: float, rows: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure with so many panels side by side, three at most, in `rows` bands."""
    across = min(panels, 3) if rows == 1 else panels
    down = rows if rows > 1 else math.ceil(panels / across)
    figure = Figure(figsize=(style.WIDTH, 0.55 + height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey="all" if rows == 1 else "row")
    if rows > 1:
        return figure, [list(row) for row in axes]
    flat = list(axes.flat)
    for spare in flat[panels:]:
        spare.set_axis_off()
    return figure, [flat[:panels]]


def styled(draw: Callable[[], Figure], settle: bool = True) -> Callable[[], Figure]:
    """`draw` in the house's style; `settle` computes a constrained layout once, for all formats."""

    def drawn() -> Figure:
        with style.style():
            figure = draw()
            if not settle:
                return figure
            # The layout is settled once: each save would move it a little further.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return drawn


def legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        fitting = max(1, _LETTERS // (_HANDLE + max(map(len, labels))))  # a longer row would be cut off
        columns = min(6, fitting, len(labels))
        figure.legend(handles, labels, loc="outside upper right", ncols=columns)


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
) -> list[style.Series]:
    name = f"{layout.lines}=" if layout.lines else ""
    return [style.Series(f"{name}{label}", *by_step(found, drawn_jobs(data, cell))) for label, cell in cells]
