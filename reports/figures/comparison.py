"""The report's figures: what each shows, from which rows, and what its bars and bands are.

A study of ten thousand runs has the figures of a few dozen: reports/figures/layout.py says which. Those of
the expert load: reports/figures/load.py.
"""

from __future__ import annotations

import itertools
import math
import textwrap

import numpy as np
from matplotlib.figure import Figure

from reports.figures import style
from reports.figures.dose import response_pictures
from reports.figures.layout import MAX_SEEDS, Curves, Layout, arrange, drawn_jobs
from reports.figures.load import heatmaps, load_curves, usage
from reports.figures.looks import path_picture
from reports.figures.panels import capital, curves_of, legend, of_series, panel_grid, styled
from reports.figures.routing import layer_curves, routing_curves
from reports.reading.frames import StudyData
from reports.reading.measures import Measure
from reports.reading.study import Cell
from reports.sections import dose
from reports.sections.answer import ANSWER, answer
from reports.sections.behaviour import ROUTING, STABILITY
from reports.sections.conditions import RESULTS
from reports.sections.contrasts import HEADING as CONTRASTS
from reports.sections.load import HEADING as LOAD
from reports.sections.power import LOOKS
from reports.statistics.analysis import Analysis
from reports.statistics.blocks import Blocks
from reports.statistics.contrasts import told_once
from reports.statistics.inference import Array
from reports.tables import Picture, plain, signed

MAX_ROWS = 24
"""Of the figure of differences."""


def answer_picture(analysis: Analysis) -> Picture | None:
    """The first screen's lines on the compared metric: differences and intervals, the margin as a band."""
    lines = answer(analysis).lines
    shown = [
        line
        for line in lines
        if line.metric == analysis.metric and not line.ratio and not math.isnan(line.contrast.low)
    ]
    if not shown:
        return None
    metric, margin = analysis.metric, analysis.target.margin

    def draw() -> Figure:
        figure = Figure(figsize=(style.WIDTH, 0.7 + 0.26 * len(shown)), layout="constrained")
        axes = figure.subplots()
        labels = [_shortened(line.name) for line in shown]
        style.forest(axes, labels, [line.contrast for line in shown], margin)
        axes.set_xlabel(f"Difference in {plain(metric.named)}")
        return figure

    band = f", the band is the margin of ±{margin:.4g}" if margin is not None else ""
    told = "; ".join(f"{line.name}: {signed(line.contrast.difference, metric.decimals)}" for line in shown)
    return Picture(
        "answer",
        f"Differences in {plain(metric.named)}, with their intervals. {plain(told)}.",
        f"Points are means over seeds, bars the intervals of the table{band}.",
        styled(draw),
    )


def _shortened(label: str) -> str:
    """So that it leaves room for what it labels; tables have it whole."""
    return textwrap.shorten(plain(label), 60, placeholder=" …")


def pictures(curves: Curves, analysis: Analysis) -> dict[str, tuple[Picture, ...]]:
    """The figures that the study has data for, by the heading of the section where they belong."""
    data, loads, matrix = analysis.data, analysis.loads, analysis.blocks
    layout = arrange(data)
    found: dict[str, list[Picture | None]] = {ANSWER: [answer_picture(analysis)]}
    if matrix is not None and len(data.done):
        found[RESULTS] = [_interaction(matrix, analysis.metric, layout)]
        found[CONTRASTS] = [_slopes(matrix, analysis.metric, layout), _forest(analysis)]
        if responses := response_pictures(analysis):
            found[dose.heading(analysis)] = [*responses]
    if paths := path_picture(analysis):
        found[LOOKS] = [paths]
    found[STABILITY] = [_learning(curves, data, layout)]
    found[ROUTING] = [routing_curves(curves, data, layout)]
    found[LOAD] = [
        *(heatmaps(data, layout, loads), load_curves(curves, data, layout)),
        *(layer_curves(curves, data, layout), usage(data, layout, loads)),
    ]
    drawn = {heading: tuple(p for p in pictures if p is not None) for heading, pictures in found.items()}
    return {heading: pictures for heading, pictures in drawn.items() if pictures}


def _interaction(matrix: Blocks, metric: Measure, layout: Layout) -> Picture | None:
    """Means with intervals over the levels of the first factor, a line a condition of the others."""
    groups = [
        (title or "mean", [_values(matrix, cell) for _, cell in cells]) for title, cells in layout.panels
    ]

    def draw() -> Figure:
        figure, [[axes]] = panel_grid(1, 3.2)
        style.interaction(axes, [label for label, _ in layout.panels[0][1]], groups)
        axes.set_xlabel(layout.lines or "all runs")
        axes.set_ylabel(plain(metric.axis))
        legend(figure, axes)
        return figure

    return Picture(
        "interaction",
        f"{plain(metric.axis)} by {layout.lines or 'condition'}: means with intervals and the seeds' points.",
        f"{plain(metric.axis)} by condition. Filled points are means over seeds, bars their 95 % t intervals "
        "(unpaired), open points the seeds. Whether bars overlap does not decide a paired comparison."
        + layout.remark,
        styled(draw),
    )


def _values(matrix: Blocks, cell: Cell) -> Array:
    if cell not in matrix.columns:
        return np.empty(0)
    values = matrix.column(cell)
    return values[np.isfinite(values)]


def _slopes(matrix: Blocks, metric: Measure, layout: Layout) -> Picture | None:
    """A line a seed from condition to condition."""
    if not layout.lines or len(matrix.seeds) < 2:
        return None
    seeds = matrix.seeds[:MAX_SEEDS]

    def draw() -> Figure:
        figure, [panels] = panel_grid(len(layout.panels), 2.9)
        for axes, (title, cells) in zip(panels, layout.panels, strict=True):
            columns = [
                matrix.column(cell) if cell in matrix.columns else np.full(len(matrix.seeds), math.nan)
                for _, cell in cells
            ]
            style.slopes(axes, [label for label, _ in cells], seeds, np.stack(columns, axis=1)[: len(seeds)])
            axes.set_title(title)
            axes.set_xlabel(layout.lines)
        panels[0].set_ylabel(plain(metric.axis))
        legend(figure, panels[0])
        return figure

    return Picture(
        "paired",
        f"{plain(metric.axis)} of each seed across the levels of {layout.lines}.",
        f"{plain(metric.axis)}, a line a seed: parallel lines are a difference that every seed agrees on, "
        "however far apart the seeds lie." + layout.remark,
        styled(draw),
    )


def _forest(analysis: Analysis) -> Picture | None:
    """Differences with their intervals: against the baseline, then between levels."""
    families, target = analysis.families, analysis.target
    named = [
        (family.family.name, tested)
        for family in told_once(families)
        if family is families[0] or len(family.family.factors) == 1
        for tested in family.tested
        if tested.contrast.n
    ][:MAX_ROWS]
    if not named:
        return None
    names, rows = [name for name, _ in named], [tested for _, tested in named]
    metric = analysis.metric

    def draw() -> Figure:
        figure = Figure(figsize=(style.WIDTH, 1.1 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        labels = [_shortened(row.comparison.label) for row in rows]
        style.forest(axes, labels, [row.contrast for row in rows], target.margin)
        for row, (one, following) in enumerate(itertools.pairwise(names)):
            if one != following:
                axes.axhline(row + 0.5, color=style.FAINT, linewidth=0.8)
        unit = f" ({metric.unit})" if metric.unit else ""
        axes.set_xlabel(f"Difference in {plain(target.metric)}{unit}, paired by seed")
        return figure

    band = f" The band is the margin, ±{target.margin:.4g}." if target.margin is not None else ""
    return Picture(
        "differences",
        f"Paired differences in {plain(target.metric)} with their intervals.",
        f"Paired differences in {plain(target.metric)}: points are means over seeds, bars the intervals of "
        f"the tables, which hold together within a family.{band} Conditions are against the baseline, levels "
        "averaged over the other factors.",
        styled(draw),
    )


def _learning(curves: Curves, data: StudyData, layout: Layout) -> Picture | None:
    """The training series above, the held-out one below, a panel a condition of the other factors."""
    jobs = {job for _, lines in layout.panels for _, cell in lines for job in drawn_jobs(data, cell)}
    kinds = (("training", curves.train), ("held-out", curves.held_out))
    shown = [
        (kind, of_series(data.study, found), found[found["job_id"].isin(jobs)])
        for kind, found in kinds
        if found["job_id"].isin(jobs).any()
    ]
    if not shown:
        return None

    def draw() -> Figure:
        figure, rows = panel_grid(len(layout.panels), 2.2, rows=len(shown))
        for (kind, measure, found), row in zip(shown, rows, strict=True):
            for axes, (title, cells) in zip(row, layout.panels, strict=True):
                style.curves(axes, curves_of(data, found, layout, cells), markers=kind == "held-out")
                if row is rows[0]:
                    axes.set_title(title)
                if row is rows[-1]:
                    axes.set_xlabel("Step")
            unit = f"\n({plain(measure.unit)})" if measure.unit else ""
            row[0].set_ylabel(f"{capital(kind)} {plain(measure.label)}{unit}")
        legend(figure, rows[-1][0])
        return figure

    alt, caption = _told([(kind, plain(measure.label)) for kind, measure, _ in shown])
    return Picture("learning", alt, caption + layout.remark, styled(draw))


def _told(shown: list[tuple[str, str]]) -> tuple[str, str]:
    """Alternative text and caption of the learning curves: which kinds of which series."""
    labels = list(dict.fromkeys(label for _, label in shown))
    named = " and ".join(f"{kind} {label}" for kind, label in shown)
    if len(labels) == 1:
        named = f"{' and '.join(kind for kind, _ in shown)} {labels[0]}"
    where = f"The {named}, as the runs logged it."
    if len(shown) > 1:
        (above, first), (below, second) = shown
        where = f"Above, the {above} {first} of each update; below, the {below} {second} of each evaluation."
    return (
        f"{capital(named)} over steps, a line a seed.",
        f"{capital(' and '.join(labels))} over training steps: thin lines are seeds, thick lines their mean, "
        f"bands its 95 % t interval (unpaired, from three seeds on). {where}",
    )
