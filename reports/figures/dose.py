"""The figure of a dose and its response: the seeds' points, their means, the fitted curve with its band.

The fit: reports/statistics/dose.py. How it looks: reports/figures/style.py.
"""

from __future__ import annotations

import re

from matplotlib.figure import Figure

from reports.figures import style
from reports.figures.panels import panel_grid, styled
from reports.reading.measures import Measure
from reports.statistics.analysis import Analysis
from reports.statistics.dose import Response
from reports.tables import Picture, plain


def response_pictures(analysis: Analysis) -> list[Picture]:
    """A figure a fitted factor."""
    metric = analysis.metric
    return [_picture(found, metric) for found in analysis.responses.values() if isinstance(found, Response)]


def _picture(found: Response, metric: Measure) -> Picture:
    factor, axis = plain(found.factor), plain(metric.axis)

    def draw() -> Figure:
        figure, [[axes]] = panel_grid(1, 3.4)
        style.response(axes, found.levels, found.unit, found.values, *found.curve())
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
