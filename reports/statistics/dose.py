"""Dose and response: how a metric follows a numeric factor of four levels and more.

A straight line and a bend over a scale that has room for 0, fitted with the seeds as blocks. The other
factors are averaged over within each seed. Printed by reports/sections/dose.py, drawn by
reports/figures/dose.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.reading.study import Study
from reports.statistics.blocks import Blocks
from reports.statistics.inference import ALPHA, ROUNDING, Array, holm

FEWEST_LEVELS = 4
"""With three a line and a bend would fit whatever was measured."""


@dataclass(frozen=True)
class Response:
    """A fit of S complete seeds over L levels. Arrays of length 2 are for the line and the bend."""

    factor: str
    levels: Array
    """Shape: (L,), rising."""
    unit: float
    """The scale is x = ln(1 + level / unit)."""
    values: Array
    """Shape: (S, L): the metric by seed and level, averaged over the other factors."""
    seeds: tuple[int, ...]
    coefficients: Array
    """Slope a unit of x, and the coefficient of x², orthogonal to it."""
    errors: Array
    low: Array
    high: Array
    p: Array
    holm_p: Array
    grid: Array
    """Levels at which the curve is drawn. Shape: (G,)."""
    curve: Array
    """Fitted mean, and the ends of its 95 % interval. Shape: (3, G)."""

    def best(self, higher_is_better: bool = False) -> float:
        """The level where the parabola turns; NaN without a bend, or where that turns to the worst."""
        line, bend = self.coefficients
        if not self.holm_p[1] < ALPHA or (bend > 0) == higher_is_better:
            return math.nan
        x = scaled(self.levels, self.unit)
        # The bend is x² less its straight part, so its slope adds to the line's.
        turning = _bend_line(x)[1] / 2 - line / (2 * bend)
        return float(self.unit * math.expm1(turning))


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
    """The fit by ordinary least squares, a dummy a seed, or the reason why there is none."""
    levels = sorted(study.factors[factor])
    by_level = np.column_stack([_column(study, matrix, factor, level) for level in levels])
    complete = np.isfinite(by_level).all(axis=1)
    values, seeds = by_level[complete], tuple(np.asarray(matrix.seeds)[complete].tolist())
    if len(seeds) < 2:
        return f"{len(seeds)} seed{'s' * (len(seeds) != 1)} with every level finished; two are needed"
    if np.ptp(values, axis=1).max() <= ROUNDING * np.abs(values).max():
        return "the levels are equal within every seed: there is no response"
    return _fit(factor, np.array(levels, dtype=float), values, seeds)


def _column(study: Study, matrix: Blocks, factor: str, level: Any) -> Array:
    """The metric at a level by seed, averaged over the other factors. Shape: (S,)."""
    cells = [cell for cell, values in study.conditions if values[factor] == level]
    return np.asarray(np.mean([matrix.column(cell) for cell in cells], axis=0))


def _bend_line(x: Array) -> tuple[float, float]:
    """Intercept and slope of x² on x over the levels: what is taken from x² to leave the bend alone."""
    slope, intercept = np.polyfit(x, x**2, 1)
    return float(intercept), float(slope)


def _fit(factor: str, levels: Array, values: Array, seeds: tuple[int, ...]) -> Response | str:
    import statsmodels.api as sm  # two seconds of imports that few studies need

    unit = unit_of(levels)
    x = scaled(levels, unit)
    count = len(seeds)
    dummies = np.repeat(np.eye(count), len(levels), axis=0)
    terms = np.tile(design(x, x), (count, 1))
    fitted = sm.OLS(values.ravel(), np.column_stack([dummies, terms])).fit()
    if np.abs(fitted.resid).max() <= ROUNDING * np.abs(values).max():
        return "every level of every seed lies on the curve: there is no residual to hold it against"
    # A coefficient as large as makes no more than a rounding over the levels is none.
    least = ROUNDING * np.abs(values).max() / np.ptp(terms, axis=0)
    coefficients = np.asarray(fitted.params[-2:])
    at = np.linspace(x[0], x[-1], 101)
    mean_seed = np.full((at.size, count), 1 / count)
    told = fitted.get_prediction(np.column_stack([mean_seed, design(at, x)]))
    low, high = fitted.conf_int(ALPHA)[-2:].T
    return Response(
        factor,
        levels,
        unit,
        values,
        seeds,
        coefficients=np.where(np.abs(coefficients) > least, coefficients, 0.0),
        errors=np.asarray(fitted.bse[-2:]),
        low=np.asarray(low),
        high=np.asarray(high),
        p=np.asarray(fitted.pvalues[-2:]),
        holm_p=holm(fitted.pvalues[-2:]),
        grid=unit * np.expm1(at),
        curve=np.stack([told.predicted_mean, *told.conf_int(alpha=ALPHA).T]),
    )
