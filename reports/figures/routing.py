"""Figures of the routing over training: the router's own measures, and the load layer by layer.

Who calls it: reports/figures/comparison.py. The load at the end, and its mean over layers:
reports/figures/load.py.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from reports.figures import style
from reports.figures.layout import MAX_CONDITIONS, Curves, Layout, drawn_jobs
from reports.figures.panels import by_step, curves_of, legend, panel_grid, styled, two_lines
from reports.reading.frames import StudyData
from reports.reading.study import Cell
from reports.tables import Picture

_MEASURES = (
    ("router_entropy", "Router entropy\n(nats)"),
    ("noisy_agreement", "Clean and noisy\ntop-k agree"),
)


def routing_curves(curves: Curves, data: StudyData, layout: Layout) -> Picture | None:
    """Router entropy above, agreement of clean and noisy top-k below, at each evaluation."""
    found = {name: curves.routing[curves.routing["name"] == name] for name, _ in _MEASURES}
    if curves.routing["step"].nunique() < 2:
        return None

    def draw() -> Figure:
        figure, rows = panel_grid(len(layout.panels), 2.2, rows=2)
        for (name, label), row in zip(_MEASURES, rows, strict=True):
            for axes, (title, cells) in zip(row, layout.panels, strict=True):
                style.curves(axes, curves_of(data, found[name], layout, cells), markers=True)
                if row is rows[0]:
                    axes.set_title(title)
                else:
                    axes.set_xlabel("Step")
            row[0].set_ylabel(label)
        legend(figure, rows[0][0])
        return figure

    return Picture(
        "routing-over-training",
        "Router entropy, and agreement of clean and noisy top-k, over training steps.",
        "The router over training, at each evaluation: entropy of its full softmax, and the share of tokens' "
        "experts that stay chosen when noise is added. Means over tokens and layers; thin lines are seeds, "
        "thick lines their mean, bands its 95 % t interval (unpaired, from three seeds on)." + layout.remark,
        styled(draw),
    )


def layer_curves(curves: Curves, data: StudyData, layout: Layout) -> Picture | None:
    """The experts' CV of each layer at each evaluation, a panel a condition, a line a layer."""
    found = curves.layers
    if found["step"].nunique() < 2:
        return None
    cells = [cell for _, lines in layout.panels for _, cell in lines][:MAX_CONDITIONS]
    layers = sorted(set(found["layer"]))[: style.STYLES]

    def draw() -> Figure:
        figure, [panels] = panel_grid(len(cells), 1.9)
        for axes, cell in zip(panels, cells, strict=True):
            style.curves(axes, [_layer(data, found, cell, layer) for layer in layers], seeds=False)
            axes.set_title(two_lines(data.study, cell), fontsize=8)
        for axes in panels[-3:]:
            axes.set_xlabel("Step")
        panels[0].set_ylim(bottom=0)  # shared, so last: it would stop the others from growing
        for axes in panels[::3]:
            axes.set_ylabel("CV (sd / mean)")
        legend(figure, panels[0])
        return figure

    more = (
        f" Only the first {len(layers)} layers are drawn." if found["layer"].nunique() > len(layers) else ""
    )
    return Picture(
        "layer-load-over-training",
        "Coefficient of variation of the expert load of each layer over training steps, by condition.",
        "Expert load by layer over training: the coefficient of variation (population sd / mean) of a "
        "layer's counts, the mean over seeds as a line a layer, bands its 95 % t interval, from three "
        "seeds on. "
        f"Layers count from 0.{more}" + layout.remark,
        styled(draw),
    )


def _layer(data: StudyData, found: pd.DataFrame, cell: Cell, layer: int) -> style.Series:
    return style.Series(f"layer {layer}", *by_step(found[found["layer"] == layer], drawn_jobs(data, cell)))
