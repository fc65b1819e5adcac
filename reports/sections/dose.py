"""Dose and response: how the primary metric follows a numeric factor of four levels and more.

A straight line and a bend over a scale that has room for 0, fitted with the seeds as blocks. The other
factors are averaged over within each seed. Drawn by reports/figures/dose.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.reading.frames import StudyData
from reports.reading.measures import measure
from reports.reading.study import Study, Target
from reports.statistics.blocks import Blocks, blocks, usable
from reports.statistics.inference import ALPHA, ROUNDING, Array, finite, holm, mean_interval, spread
from reports.tables import Section, Table, interval, number, probability, signed

FEWEST_LEVELS = 4
"""With three a line and a bend would fit whatever was measured."""
_TERMS = ("straight line", "bend")


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


def response(data: StudyData, target: Target) -> tuple[Section, ...]:
    """A section a numeric factor of four levels or more."""
    if not usable(data, target.metric):
        return ()
    matrix = blocks(data, target.metric)
    return tuple(
        _section(factor, respond(data.study, matrix, factor), target) for factor in dosed(data.study)
    )


def heading(factor: str) -> str:
    """Of the section, and of its figure's place."""
    return f"Response to {factor}"


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


def _section(factor: str, found: Response | str, target: Target) -> Section:
    if isinstance(found, str):
        return Section(heading(factor), (f"Not fitted: {found}.",))
    metric = measure(target.metric)
    levels = Table(
        (factor, "n", "Mean", "Sample sd", "95 % interval"),
        tuple(
            _level_row(level, row, metric.decimals)
            for level, row in zip(found.levels, found.values.T, strict=True)
        ),
    )
    terms = Table(
        ("Term", "Coefficient", "Standard error", "95 % interval", "p", "Holm p"),
        tuple(_term_row(found, i) for i in range(2)),
        "lrrrrr",
        f"Fit of {target.metric} over x = ln(1 + {factor} / {found.unit:g})",
    )
    return Section(heading(factor), (_shape(found, target),), (levels, terms), _notes(found))


def _level_row(level: float, values: Array, decimals: int) -> tuple[str, ...]:
    numbers = finite(values)
    return (
        *(f"{level:g}", str(numbers.size), number(float(numbers.mean()), decimals)),
        *(number(spread(numbers, "sample"), decimals), interval(*mean_interval(numbers), decimals)),
    )


def _term_row(found: Response, i: int) -> tuple[str, ...]:
    return (
        *(_TERMS[i], signed(found.coefficients[i], 5), number(found.errors[i], 5)),
        *(interval(found.low[i], found.high[i], 5), probability(found.p[i]), probability(found.holm_p[i])),
    )


def _shape(found: Response, target: Target) -> str:
    """What the fit says of the shape, and of the best level only where a bend is established."""
    line, bend = ("SUPPORTED" if p < ALPHA else "INCONCLUSIVE" for p in found.holm_p)
    slope = found.coefficients[0]
    way = "rises" if slope > 0 else "falls" if slope < 0 else "neither rises nor falls"
    text = f"{line}: {target.metric} {way} with {found.factor}. {bend}: the response bends"
    if bend == "INCONCLUSIVE":
        return f"{text}; no best level is estimated."
    best = found.best(measure(target.metric).higher_is_better)
    if math.isnan(best):
        return f"{text}, away from the best: it lies at an end."
    if not found.levels[0] <= best <= found.levels[-1]:
        return f"{text}, with its best level outside those that were tested."
    return f"{text}, with its best level estimated at {best:.3g}."


def _notes(found: Response) -> tuple[str, ...]:
    df = found.values.size - len(found.seeds) - 2
    return (
        "Means, sample sd and intervals are over seeds, unpaired; the other factors are averaged over within "
        "each seed, and only seeds that have every level count.",
        f"Ordinary least squares with the seed as block, {df} residual degrees of freedom. The scale is "
        f"about linear below {found.unit:g}, the median of the levels above 0, and logarithmic above it, so "
        "that 0 has a place on it. The bend is x² less its straight part over these levels: the two "
        "terms are orthogonal. Holm p: over the two terms. What neither term follows is in the residual.",
    )
