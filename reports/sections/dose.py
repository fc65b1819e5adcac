"""Dose and response: how the primary metric follows a numeric factor of four levels and more.

Fitted by reports/statistics/dose.py, drawn by reports/figures/dose.py.
"""

from __future__ import annotations

import math

from reports.reading.measures import measure
from reports.reading.study import Target
from reports.statistics.analysis import Analysis
from reports.statistics.dose import Response
from reports.statistics.inference import ALPHA, Array, finite, mean_interval, spread
from reports.tables import Section, Table, interval, number, probability, signed

_TERMS = ("straight line", "bend")


def response(analysis: Analysis) -> Section | None:
    """Every numeric factor of four levels or more; None where there is none."""
    parts = [_section(factor, found, analysis.target) for factor, found in analysis.responses.items()]
    if not parts:
        return None
    return Section(
        heading(analysis),
        tuple(text for part in parts for text in part.text),
        tuple(table for part in parts for table in part.tables),
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def heading(analysis: Analysis) -> str:
    """Of the section, and of its figures' place."""
    return f"Response to {' and '.join(analysis.responses)}"


def _section(factor: str, found: Response | str, target: Target) -> Section:
    if isinstance(found, str):
        return Section("", (f"Not fitted: {found}.",))
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
    return Section("", (_shape(found, target),), (levels, terms), _notes(found))


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
