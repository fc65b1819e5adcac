"""Plots: each function draws on an Axes and returns it. How everything looks is set here, in one place.

Colours are Okabe and Ito's and two more, which colour-blind readers tell apart; every series also has its own
marker and dash, so that grey paper and a thin line are enough. What is drawn, and the captions:
reports/figures/comparison.py.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import QuadMesh
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.statistics.inference import Array, Contrast, mean_interval, mean_intervals

INK, FAINT, PAPER = "#20262e", "#c9d0d8", "#fefefe"
"""Text and axes, grid lines, background. Nothing else has these colours: the page puts its own in."""
WIDTH = 8.0
"""Inches: 800 pixels at 100 a inch, where 9 points of text are 12 pixels."""
_COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#7b4ea3", "#8a8f98")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    *("-", (0, (5, 1.5)), (0, (1.5, 1.2))),
    *((0, (6, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1))),
    *((0, (10, 1, 2, 1)), (0, (1, 3))),
)
STYLES = len(_COLOURS)
FEWEST = 3
"""Seeds of a step from which its mean has a band: that of two is 12.7 standard errors to each side."""
TICKS = 4
"""Of an axis of a panel, about: each takes a millisecond, and small panels have no room for more."""
_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "nightshift",  # ids in an SVG are random without it
    "savefig.dpi": 150,
}


@dataclass(frozen=True)
class Series:
    """The curves of one condition: a row a seed over common steps, NaN where a seed has no value."""

    label: str
    steps: Array
    values: Array
    """Shape: (S, steps)."""


lacking: dict[str, None] = {}
"""Characters that the font lacks, as far as figures were drawn, in their order."""
_told: set[str] = set()
"""Those that were named: each is said once."""


@contextmanager
def style() -> Iterator[None]:
    """The look, for drawing and for saving; the reader's own matplotlib settings stay out."""
    with matplotlib.rc_context(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield
    for warning in caught:
        if found := re.match(r"Glyph (\d+) ", str(warning.message)):
            lacking[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def tell_lacking() -> None:
    """Name the characters that the font lacks, each once in a process."""
    if fresh := [character for character in lacking if character not in _told]:
        _told.update(fresh)
        logging.getLogger(__name__).warning(
            "figures: the font DejaVu Sans lacks %s: a box in PNG, text in SVG; tables have the names whole",
            ", ".join(f"{each} (U+{ord(each):04X})" for each in fresh),
        )


def save(figure: Figure, kind: str) -> bytes:
    """The figure as png or svg: the same bytes for the same content, without dates or versions."""
    out = io.BytesIO()
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    with style():
        if kind == "svg":
            # Not savefig, which draws twice where a layout was computed once; the file is the same.
            FigureCanvasSVG(figure).print_svg(out, metadata=metadata)  # type: ignore[no-untyped-call]
        else:
            figure.savefig(out, format=kind, metadata=metadata)
    return out.getvalue()


def curves(axes: Axes, series: Sequence[Series], markers: bool = False, seeds: bool = True) -> Axes:
    """A thin line a seed, a thick one for their mean, and the t interval of the mean as a band."""
    for i, one in enumerate(series):
        colour, dash = _COLOURS[i % STYLES], _DASHES[i % STYLES]
        if seeds:
            # One line with gaps between the seeds: a hundred times a dozen lines are most of a figure's time.
            axes.plot(*_joined(one.steps, one.values), color=colour, linewidth=0.7, alpha=0.55)
        low, mean, high = mean_intervals(one.values)
        few = np.isfinite(one.values).sum(axis=0) < FEWEST
        low, high = np.where(few, math.nan, low), np.where(few, math.nan, high)
        axes.fill_between(one.steps, low, high, color=colour, alpha=0.11, linewidth=0)
        marker = _MARKERS[i % STYLES] if markers else ""
        axes.plot(one.steps, mean, color=colour, linestyle=dash, marker=marker, label=one.label)
    _tick(axes)
    return axes


def _tick(axes: Axes) -> None:
    """Few ticks; those of the steps are whole numbers."""
    axes.locator_params(axis="y", nbins=TICKS)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=TICKS, integer=True))


def run_curves(axes: Axes, train: tuple[Array, Array], held_out: tuple[Array, Array]) -> Axes:
    """One run: its training as a line, its evaluations as points. Shapes: (steps,), (1, steps)."""
    if len(train[0]):
        axes.plot(*train, color=_COLOURS[0], linewidth=1.2, label="training")
    steps, values = held_out
    for row in values if len(steps) else ():
        axes.plot(steps, row, "s--", color=_COLOURS[2], linewidth=1.0, label="held-out")
    axes.legend(loc="upper right")
    _tick(axes)
    return axes


def slopes(axes: Axes, levels: Sequence[str], seeds: Sequence[int], values: Array) -> Axes:
    """A line a seed across conditions, its seed beside the last point. Shape of values: (S, levels)."""
    at = np.arange(len(levels))
    for i, (seed, row) in enumerate(zip(seeds, values, strict=True)):
        colour, dash, marker = (group[i % STYLES] for group in (_COLOURS, _DASHES, _MARKERS))
        axes.plot(at, row, color=colour, linestyle=dash, marker=marker, linewidth=1.2, label=f"seed {seed}")
    axes.set_xticks(at, list(levels))
    axes.margins(x=0.12)
    return axes


def interaction(axes: Axes, levels: Sequence[str], groups: Sequence[tuple[str, list[Array]]]) -> Axes:
    """A line a group over the levels: means with t intervals, the seeds' points beside them.

    Each group has a label and an array of seeds' values a level.
    """
    at = np.arange(len(levels))
    for i, (label, by_level) in enumerate(groups):
        # Groups stand side by side, so that no interval hides another.
        shifted = at + 0.09 * (i - (len(groups) - 1) / 2)
        colour, dash, marker = (group[i % STYLES] for group in (_COLOURS, _DASHES, _MARKERS))
        means = np.array([values.mean() if values.size else math.nan for values in by_level])
        ends = np.array([mean_interval(values) for values in by_level])
        reach = np.abs(ends - means[:, None]).T
        axes.errorbar(
            *(shifted, means, np.nan_to_num(reach)),
            color=colour,
            linestyle=dash,
            marker=marker,
            capsize=3,
            label=label,
        )
        spots = np.repeat(shifted + 0.03, [values.size for values in by_level])
        seeds = np.concatenate(by_level)
        axes.plot(spots, seeds, marker, color=colour, markersize=3.5, markerfacecolor="none", alpha=0.8)
    axes.set_xticks(at, list(levels))
    axes.margins(x=0.12)
    return axes


def response(
    axes: Axes, levels: Array, unit: float, values: Array, grid: Array, curve: Array, shown: int = 12
) -> Axes:
    """Points by seed and their means over ln(1 + level / unit), and a curve with a band.

    Shapes: levels (L,), values (S, L), grid (G,), curve (3, G): mean, low, high.
    """
    axes.fill_between(np.log1p(grid / unit), curve[1], curve[2], color=_COLOURS[0], alpha=0.15, linewidth=0)
    axes.plot(np.log1p(grid / unit), curve[0], color=_COLOURS[0])
    at = np.log1p(levels / unit)
    spots, seeds = np.tile(at, len(values[:shown])), values[:shown].ravel()
    axes.plot(spots, seeds, "o", color=INK, markersize=3, markerfacecolor="none", alpha=0.7)
    axes.plot(at, values.mean(axis=0), "s", color=_COLOURS[2], markersize=6)
    axes.set_xticks(at, [f"{level:g}" for level in levels])
    return axes


def forest(axes: Axes, labels: Sequence[str], contrasts: Sequence[Contrast], margin: float | None) -> Axes:
    """A row a contrast, the first on top: difference and t interval, the margin as a band around 0."""
    if margin is not None:
        axes.axvspan(-margin, margin, color=_COLOURS[3], alpha=0.18, linewidth=0, label="margin")
    axes.axvline(0, color=INK, linewidth=0.9)
    for row, contrast in enumerate(contrasts):
        if not math.isnan(contrast.low):
            axes.plot([contrast.low, contrast.high], [row, row], color=_COLOURS[0], linewidth=1.8)
        axes.plot([contrast.difference], [row], "o", color=_COLOURS[0], markersize=5)
    axes.set_yticks(np.arange(len(labels)), list(labels))
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="y", visible=False)
    return axes


def path(axes: Axes, seeds: Sequence[int], differences: Array, bounds: Array) -> Axes:
    """A difference over the looks, and what it must pass at each, on either side. Shapes: (K,), (K,), (B, K).

    Looks that are still to come have bounds of NaN, and keep their place on the axis.
    """
    axes.axhline(0, color=INK, linewidth=0.9)
    for i, bound in enumerate(bounds):
        label = "boundary" if i == 0 else None
        axes.plot(seeds, bound, "s", color=_COLOURS[2], linestyle=_DASHES[1], markersize=4, label=label)
    axes.plot(seeds, differences, "o-", color=_COLOURS[0], label="difference")
    axes.set_xticks(list(seeds), [str(count) for count in seeds])
    axes.margins(x=0.08)
    return axes


def heatmap(axes: Axes, shares: Array, highest: float) -> tuple[Axes, QuadMesh]:
    """Layers down, experts across, in percent of a layer's assignments; the middle colour is the fair share.

    Lightness rises all the way, so that grey paper keeps the order; a layer without tokens stays empty.
    Shape: (L, E).
    """
    layers, experts = shares.shape
    fair = 100 / experts
    norm = TwoSlopeNorm(fair, vmin=0, vmax=max(highest, fair * 1.01))
    # Not imshow: an SVG keeps this as shapes, and no picture has to be embedded in it.
    mesh = axes.pcolormesh(100 * shares, cmap="cividis", norm=norm)
    axes.set_ylim(layers, 0)
    if layers * experts <= 64:
        for layer, expert in np.ndindex(layers, experts):
            value = 100 * float(shares[layer, expert])
            if math.isnan(value):
                continue
            text = "white" if norm(value) < 0.55 else "#101418"
            label = axes.text(expert + 0.5, layer + 0.5, f"{value:.0f}", ha="center", va="center")
            label.set(color=text, fontsize=7.5, in_layout=False)  # it is inside: nothing to make room for
    for axis, count in ((axes.xaxis, experts), (axes.yaxis, layers)):
        at = np.arange(0, count, math.ceil(count / TICKS))
        axis.set_ticks(at + 0.5, [str(each) for each in at])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return axes, mesh


def usage(axes: Axes, shares: Array) -> Axes:
    """Experts from busiest to idlest: mean share over runs as a bar, each run's as a point. Shape: (S, E)."""
    experts = shares.shape[1]
    at = np.arange(1, experts + 1)
    axes.bar(at, 100 * shares.mean(axis=0), color=_COLOURS[5], edgecolor=_COLOURS[0], linewidth=0.8)
    spots, runs = np.tile(at, len(shares)), 100 * shares.ravel()
    axes.plot(spots, runs, "o", color=INK, markersize=2.8, markerfacecolor="none", markeredgewidth=0.8)
    axes.axhline(100 / experts, color=_COLOURS[2], linestyle=(0, (4, 2)), linewidth=1.3, label="fair share")
    axes.set_xticks(np.unique(np.linspace(1, experts, TICKS).round()))
    axes.locator_params(axis="y", nbins=TICKS)
    axes.grid(axis="x", visible=False)
    return axes


def _joined(steps: Array, values: Array) -> tuple[Array, Array]:
    """Rows over common steps as one line, a gap after each. Shapes: (T,), (S, T) → twice (S · (T + 1),)."""
    gap = np.full((len(values), 1), math.nan)
    x = np.tile(np.append(steps, math.nan), len(values))
    return x, np.concatenate([values, gap], axis=1).ravel()
