"""Figures of the expert load: by layer at the end, over training, and from the busiest to the idlest.

Who calls it: reports/figures/comparison.py.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from reports.figures import style
from reports.figures.layout import MAX_CONDITIONS, Curves, Layout, drawn_jobs
from reports.figures.panels import curves_of, legend, panel_grid, styled, two_lines
from reports.reading.frames import StudyData
from reports.reading.study import Cell
from reports.statistics.inference import Array
from reports.statistics.load import RunLoad
from reports.tables import Picture


def load_curves(curves: Curves, data: StudyData, layout: Layout) -> Picture | None:
    """The mean over layers of the experts' CV at each evaluation."""
    if curves.layers["step"].nunique() < 2:
        return None
    found = curves.layers.groupby(["job_id", "step"])["value"].mean().reset_index()

    def draw() -> Figure:
        figure, [panels] = panel_grid(len(layout.panels), 2.5)
        for axes, (title, cells) in zip(panels, layout.panels, strict=True):
            style.curves(axes, curves_of(data, found, layout, cells), markers=True)
            axes.set_title(title)
            axes.set_xlabel("Step")
        panels[0].set_ylim(bottom=0)  # shared, so last: it would stop the others from growing
        panels[0].set_ylabel("Mean layer CV\n(sd / mean of tokens)")
        legend(figure, panels[0])
        return figure

    return Picture(
        "load-over-training",
        "Coefficient of variation of the expert load over training steps.",
        "Expert load over training: the coefficient of variation (population sd / mean) of each layer's "
        "counts, mean over layers, 0 for an even load. Thin lines are seeds, thick lines their mean, bands "
        "its 95 % t interval, from three seeds on." + layout.remark,
        styled(draw),
    )


def heatmaps(data: StudyData, layout: Layout, loads: dict[int, RunLoad]) -> Picture | None:
    """Layer × expert shares at the end, a panel a condition, the mean over runs."""
    means = [
        (two_lines(data.study, cell), _mean_share(_shares(data, cell, loads)))
        for _, lines in layout.panels
        for _, cell in lines
    ]
    shown = [(label, shares) for label, shares in means if shares is not None][:MAX_CONDITIONS]
    if not shown:
        return None
    highest = max(100 * float(np.nanmax(shares)) for _, shares in shown)

    def draw() -> Figure:
        layers = max(shares.shape[0] for _, shares in shown)
        across = min(len(shown), 3)
        down = math.ceil(len(shown) / across)
        figure = Figure(figsize=(style.WIDTH, 0.6 + down * (0.75 + 0.22 * layers)), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False)
        for spare in list(axes.flat)[len(shown) :]:
            spare.set_axis_off()
        for one, (label, shares) in zip(axes.flat, shown, strict=False):
            _, mesh = style.heatmap(one, shares, highest)
            one.set_title(label, fontsize=8)
        for one in axes[:, 0]:
            one.set_ylabel("Layer")
        for one in axes[-1]:
            one.set_xlabel("Expert")
        bar = figure.colorbar(mesh, ax=axes, label="% of a layer's assignments", shrink=0.9, aspect=30)
        if bar.solids is not None:
            bar.solids.set_rasterized(False)  # as shapes, like the rest
        return figure

    return Picture(
        "load-by-layer",
        "Share of each layer's assignments that each expert received, by condition.",
        "Expert load at the final evaluation, in percent of a layer's assignments, the mean over runs. The "
        "middle colour is the fair share; darker is less, lighter is more. An expert's number is the same "
        "network in every condition of a seed at the start, but not across seeds: leaning that differs from "
        "seed to seed averages out here, and does not in the next figures." + layout.remark,
        styled(draw),
    )


def _shares(data: StudyData, cell: Cell, loads: dict[int, RunLoad]) -> list[Array]:
    return [loads[job].shares for job in drawn_jobs(data, cell) if job in loads]


def _mean_share(shares: list[Array]) -> Array | None:
    """The mean over runs of the experts' shares; None where runs differ in shape or have no tokens.

    Shapes: (L, E).
    """
    if len({run.shape for run in shares}) != 1:
        return None
    mean = np.stack(shares).mean(axis=0)
    return mean if np.isfinite(mean).any() else None


def usage(data: StudyData, layout: Layout, loads: dict[int, RunLoad]) -> Picture | None:
    """Shares from the busiest expert to the idlest, each layer sorted on its own, then averaged."""
    panels = []
    for cell in (cell for _, lines in layout.panels for _, cell in lines):
        shares = _shares(data, cell, loads)
        counted = [run[np.isfinite(run).all(axis=1)] for run in shares]  # layers with tokens
        counted = [run for run in counted if len(run)]
        if len({run.shape[1] for run in counted}) == 1:
            ranked = np.stack([np.sort(run, axis=1)[:, ::-1].mean(axis=0) for run in counted])
            panels.append((two_lines(data.study, cell), ranked))
    panels = panels[:MAX_CONDITIONS]
    if not panels:
        return None

    def draw() -> Figure:
        figure, [flat] = panel_grid(len(panels), 1.9)
        for axes, (label, ranked) in zip(flat, panels, strict=True):
            style.usage(axes, ranked)
            axes.set_title(label, fontsize=8)
            axes.set_xlabel("Expert, busiest first")
        for axes in flat[::3]:
            axes.set_ylabel("% of assignments")
        return figure

    return Picture(
        "usage",
        "Final share of the assignments by expert, from the busiest to the idlest, by condition.",
        "Final distribution of expert usage: in each layer the experts are ranked from the busiest to the "
        "idlest, shares averaged over layers. Bars are means over runs, points the runs, the dashed line the "
        "fair share." + layout.remark,
        styled(draw),
    )
