"""The figure of the looks: each claim's difference as its study grew, and the boundary that decides it.

The numbers: reports/reading/looks.py. How it looks: reports/figures/style.py.
"""

from __future__ import annotations

import math
import textwrap

import numpy as np
from matplotlib.figure import Figure

from reports.figures import style
from reports.figures.panels import legend, panel_grid, styled
from reports.reading.looks import Outcome
from reports.sections.answer import MAX_LINES
from reports.statistics.analysis import Analysis
from reports.statistics.inference import Array
from reports.statistics.judgement import Judged
from reports.tables import Picture, plain


def path_picture(analysis: Analysis) -> Picture | None:
    """A panel a claim; None where no look was made."""
    made = analysis.data.looks
    shown = [(i, judged) for i, judged in enumerate(analysis.judged) if judged.contrast.n][:MAX_LINES]
    if not made or not shown:
        return None
    seeds = list(analysis.study.looks["seeds"])

    def draw() -> Figure:
        figure, [panels] = panel_grid(len(shown), 2.3)
        for axes, (i, judged) in zip(panels, shown, strict=False):
            path = [look.outcomes[i] for look in made]
            path = [each for number, each in enumerate(path, 1) if not each.look or each.look >= number]
            gone = len(seeds) - len(path)
            differences = np.array([each.difference for each in path] + [math.nan] * gone)
            bounds = np.array([_bounds(judged, each) for each in path] + [(math.nan, math.nan)] * gone).T
            style.path(axes, seeds, differences, bounds)
            axes.set_title(textwrap.shorten(plain(judged.name), 34, placeholder=" …"))
            axes.set_xlabel("Seeds")
        panels[0].set_ylabel(f"Difference in\n{plain(shown[0][1].measure.named)}")
        legend(figure, panels[0])
        return figure

    return Picture(
        "looks",
        "Each claim's difference at the looks, and the boundary that decides it.",
        "Points are the mean differences of all seeds so far, paired by seed. A claim about a direction is "
        "decided where its difference is outside the boundary, one of equivalence, or of not being worse, "
        "where it is inside: then the whole interval of the look lies within the margin. The boundary widens "
        "with the seeds' spread; it has no place where the interval is wider than the margin.",
        styled(draw),
    )


def _bounds(judged: Judged, outcome: Outcome) -> tuple[float, float]:
    """What the difference must pass, below and above: half an interval from 0, or from the margin inwards."""
    half: float | Array = (outcome.high - outcome.low) / 2
    if judged.kind in ("less", "greater"):
        return -float(half), float(half)
    room = judged.margin - float(half)
    if not room > 0:
        return math.nan, math.nan
    higher = judged.measure.higher_is_better
    if judged.kind == "equivalent":
        return -room, room
    return (-room, math.nan) if higher else (math.nan, room)
