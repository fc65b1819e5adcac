"""The figure of a dose and its response: the seeds' points, their means, the fitted curve with its band.

The fit: reports/statistics/dose.py. How it looks: reports/figures/style.py.
"""

from __future__ import annotations

import re

from matplotlib.figure import Figure

from reports.figures import style
from reports.figures.panels import panel_grid, styled
from reports.reading.frames import StudyData
from reports.reading.measures import measure
from reports.sections.dose import heading
from reports.statistics.blocks import Blocks
from reports.statistics.dose import Response, dosed, respond
from reports.tables import Picture, plain


def response_pictures(data: StudyData, matrix: Blocks) -> dict[str, Picture]:
    """A figure a fitted factor, by the heading of its section."""
    fits = {factor: respond(data.study, matrix, factor) for factor in dosed(data.study)}
    return {
        heading(factor): _picture(found, matrix.metric)
        for factor, found in fits.items()
        if isinstance(found, Response)
    }


def _picture(found: Response, metric: str) -> Picture:
    factor, axis = plain(found.factor), plain(measure(metric).axis)

    def draw() -> Figure:
        figure, [[axes]] = panel_grid(1, 3.4)
        style.response(axes, found.levels, found.unit, found.values, found.grid, found.curve)
        axes.set_xlabel(f"{factor} (scale: ln(1 + {factor} / {found.unit:g}))")
        axes.set_ylabel(axis)
        return figure

    return Picture(
        f"response-{re.sub(r'[^A-Za-z0-9_-]', '-', found.factor)}",
        f"{axis} by {factor}, with the fitted curve.",
        f"{axis} by {factor}: open points are seeds, filled points their means, the line is the fitted "
        f"parabola at the mean of the {len(found.seeds)} seeds, the band its 95 % interval. What differs "
        "between seeds is taken out by the blocks: the band says nothing of where another seed would lie.",
        styled(draw),
    )
