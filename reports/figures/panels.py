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
from reports.reading.measures import Measure
from reports.reading.study import Cell, Study
from reports.statistics.inference import Array
from reports.tables import plain

MAX_POINTS = 400
"""Points of a line: about one a pixel."""
_LETTERS, _HANDLE = 120, 9
"""Of a legend's row, and of the line before each label."""


def panel_grid(panels: int, height: float, rows: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure with this many panels side by side, three at most, in `rows` bands."""
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
            engine = figure.get_layout_engine()
            if engine is not None:
                engine.execute(figure)
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


def by_step(found: pd.DataFrame, jobs: list[int]) -> tuple[Array, Array]:
    """Steps and values (jobs, steps) of some jobs; long series keep every k-th step."""
    rows = found[found["job_id"].isin(jobs)]
    steps, at = np.unique(rows["step"].to_numpy(dtype=float), return_inverse=True)
    # One value a job and step: put where it belongs. A pivot table would average each of them.
    table = np.full((len(jobs), len(steps)), math.nan)
    table[pd.Index(jobs).get_indexer(pd.Index(rows["job_id"])), at] = rows["value"]
    recorded = ~np.isnan(table).all(axis=0)
    steps, table = steps[recorded], table[:, recorded]
    every = math.ceil(len(steps) / MAX_POINTS) or 1
    kept = slice((len(steps) - 1) % every if len(steps) else 0, None, every)  # so that the last step stays
    return steps[kept], np.where(np.isfinite(table), table, math.nan)[:, kept]


def curves_of(
    data: StudyData, found: pd.DataFrame, layout: Layout, cells: list[tuple[str, Cell]]
) -> list[style.Series]:
    name = f"{layout.lines}=" if layout.lines else ""
    return [style.Series(f"{name}{label}", *by_step(found, drawn_jobs(data, cell))) for label, cell in cells]


def of_series(study: Study, found: pd.DataFrame) -> Measure:
    """What a drawn series is called, and its unit: as the study declares the measure of its name.

    A series that is none has the unit of the metric whose name it ends: `loss` that of `val_loss`.
    """
    name = str(found["name"].iloc[0]) if len(found) else ""
    if name in study.measures:
        return study.measure(name)
    of = (study.measure(each) for each in (study.primary, study.outcome) if each.endswith(f"_{name}"))
    return Measure(name, name, unit=next(of, Measure("", "")).unit)


def capital(text: str) -> str:
    """At the beginning of a sentence or an axis."""
    return text[:1].upper() + text[1:]
