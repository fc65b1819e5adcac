"""Dose and response: how a metric follows a numeric factor of four levels and more.

A straight line and a bend over a scale that has room for 0, taken within each seed; over seeds their means
have Student's t. A fit of all runs together would hold the slope against the runs' scatter and overlook that
slopes themselves differ from seed to seed. The other factors are averaged over within each seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from reports.reading.study import Study
from reports.statistics.blocks import Blocks
from reports.statistics.inference import ALPHA, ROUNDING, Array, Contrast, family, weighted_contrast
from runner.queue.where import counted

FEWEST_LEVELS = 4
"""With three a line and a bend would fit whatever was measured."""


@dataclass(frozen=True)
class Response:
    """The lines and bends of S complete seeds over L levels."""

    factor: str
    levels: Array
    """Shape: (L,), rising."""
    unit: float
    """The scale is x = ln(1 + level / unit)."""
    values: Array
    """Shape: (S, L): the metric by seed and level, averaged over the other factors."""
    seeds: tuple[int, ...]
    terms: Array
    """Each seed's slope a unit of x, and its coefficient of x², orthogonal to it. Shape: (S, 2)."""
    line: Contrast
    """The slope over seeds, and the bend: a family of two."""
    bend: Contrast

    def best(self, higher_is_better: bool = False) -> tuple[float, float, float] | None:
        """The level where the parabola turns, and the ends of its 95 % interval (Fieller 1954).

        None without a bend that opens the right way, and where the interval is not within the levels that
        were tested: a best dose that was not tried is not named.
        """
        if not self.bend.p < ALPHA or (self.bend.difference > 0) == higher_is_better:
            return None
        found = self._turning()
        x = scaled(self.levels, self.unit)
        if found is None or not x[0] <= found[1] <= found[2] <= x[-1]:
            return None
        at, low, high = (float(self.unit * math.expm1(each)) for each in found)
        return at, low, high

    def _turning(self) -> tuple[float, float, float] | None:
        """Where the mean slope is 0, on the scale of x, and the ends of the x where it may be."""
        # A seed's slope at x is line + bend · (2x - b). Those x belong to the interval at which the mean of
        # these over seeds does not differ from 0: a quadratic inequality in u = 2x - b.
        mean = self.terms.mean(axis=0)
        covariance = np.cov(self.terms.T) / len(self.seeds)
        t2 = float(stats.t.isf(ALPHA / 2, len(self.seeds) - 1)) ** 2
        a = mean[1] ** 2 - t2 * covariance[1, 1]
        b = 2 * (mean[0] * mean[1] - t2 * covariance[0, 1])
        c = mean[0] ** 2 - t2 * covariance[0, 0]
        root = b * b - 4 * a * c
        if not a > 0 or root < 0:
            return None
        shift = _bend_line(scaled(self.levels, self.unit))[1]
        ends = (-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)
        at, low, high = ((u + shift) / 2 for u in (-mean[0] / mean[1], *ends))
        return float(at), float(low), float(high)

    def curve(self, points: int = 101) -> tuple[Array, Array]:
        """Levels, and at each the fitted mean and its 95 % interval within seeds. Shapes: (G,), (3, G)."""
        x = scaled(self.levels, self.unit)
        at = np.linspace(x[0], x[-1], points)
        lines = self.terms @ design(at, x).T  # (S, G), each seed around its own mean
        error = lines.std(axis=0, ddof=1) / math.sqrt(len(self.seeds))
        reach = float(stats.t.isf(ALPHA / 2, len(self.seeds) - 1)) * error
        mean = self.values.mean() + lines.mean(axis=0)
        return np.asarray(self.unit * np.expm1(at)), np.stack([mean, mean - reach, mean + reach])


def dosed(study: Study) -> list[str]:
    """The factors whose levels are four numbers or more, none below 0."""
    return [
        factor
        for factor, levels in study.factors.items()
        if len(levels) >= FEWEST_LEVELS
        and all(isinstance(v, int | float) and not isinstance(v, bool) and v >= 0 for v in levels)
    ]


def unit_of(levels: Array) -> float:
    """The median of the levels above 0: below it the scale is about linear, above it logarithmic."""
    return float(np.median(levels[levels > 0]))


def scaled(levels: Array, unit: float) -> Array:
    """x = ln(1 + level / unit). Shape as given."""
    return np.asarray(np.log1p(np.asarray(levels, dtype=float) / unit))


def design(x: Array, levels_x: Array) -> Array:
    """The line and the bend at x, orthogonal over the levels. Shapes: (G,), (L,) → (G, 2)."""
    centre = levels_x.mean()
    intercept, slope = _bend_line(levels_x)
    return np.column_stack([x - centre, x**2 - intercept - slope * x])


def respond(study: Study, matrix: Blocks, factor: str) -> Response | str:
    """Each seed's line and bend, and what they are over seeds; or the reason why there is none."""
    levels = sorted(study.factors[factor])
    by_level = np.column_stack([_column(study, matrix, factor, level) for level in levels])
    complete = np.isfinite(by_level).all(axis=1)
    values, seeds = by_level[complete], tuple(np.asarray(matrix.seeds)[complete].tolist())
    if len(seeds) < 2:
        return f"{counted(len(seeds), 'seed')} with every level finished; two are needed"
    if np.ptp(values, axis=1).max() <= ROUNDING * np.abs(values).max():
        return "the levels are equal within every seed: there is no response"
    return fit(factor, np.array(levels, dtype=float), values, seeds)


def fit(factor: str, levels: Array, values: Array, seeds: tuple[int, ...]) -> Response:
    """Least squares within each seed; means, intervals and p over seeds. Shapes: (L,), (S, L)."""
    unit = unit_of(levels)
    x = scaled(levels, unit)
    basis = design(x, x)
    weights = basis / (basis**2).sum(axis=0)  # orthogonal columns: each coefficient by itself
    line, bend = family([weighted_contrast(values, w) for w in weights.T])
    return Response(factor, levels, unit, values, seeds, values @ weights, line, bend)


def _column(study: Study, matrix: Blocks, factor: str, level: Any) -> Array:
    """The metric at a level by seed, averaged over the other factors. Shape: (S,)."""
    cells = [cell for cell, values in study.conditions if values[factor] == level]
    return np.asarray(np.mean([matrix.column(cell) for cell in cells], axis=0))


def _bend_line(x: Array) -> tuple[float, float]:
    """Intercept and slope of x² on x over the levels: what is taken from x² to leave the bend alone."""
    slope, intercept = np.polyfit(x, x**2, 1)
    return float(intercept), float(slope)
