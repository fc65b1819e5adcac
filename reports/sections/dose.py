"""Dose and response: how the primary metric follows a numeric factor of four levels and more.

Fitted by reports/statistics/dose.py, drawn by reports/figures/dose.py.
"""

from __future__ import annotations

import math

from reports.reading.study import Target
from reports.statistics.analysis import Analysis
from reports.statistics.dose import Response
from reports.statistics.inference import Array, Contrast, finite, mean_interval, spread
from reports.statistics.words import verdict
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
    metric = target.measure
    levels = Table(
        (factor, "n", "Mean", "Sample sd", "95 % interval"),
        tuple(
            _level_row(level, row, metric.decimals)
            for level, row in zip(found.levels, found.values.T, strict=True)
        ),
    )
    terms = Table(
        ("Term", "n", "Coefficient", "sd over seeds", "95 % interval, together", "p"),
        tuple(_term_row(name, c) for name, c in zip(_TERMS, (found.line, found.bend), strict=True)),
        "lrrrrr",
        f"{target.metric} over x = ln(1 + {factor} / {found.unit:g}), fitted in each seed",
    )
    return Section("", (_shape(found, target),), (levels, terms), _notes(found))


def _level_row(level: float, values: Array, decimals: int) -> tuple[str, ...]:
    numbers = finite(values)
    return (
        *(f"{level:g}", str(numbers.size), number(float(numbers.mean()), decimals)),
        *(number(spread(numbers, "sample"), decimals), interval(*mean_interval(numbers), decimals)),
    )


def _term_row(name: str, term: Contrast) -> tuple[str, ...]:
    return (
        *(name, str(term.n), signed(term.difference, 5), number(term.sd, 5)),
        *(interval(term.low, term.high, 5), probability(term.p)),
    )


def _shape(found: Response, target: Target) -> str:
    """What the fit says of the shape; a best level only where it has an interval within those tested."""
    slope = found.line.difference
    line = verdict("greater" if slope > 0 else "less", found.line, math.nan)
    bend = verdict("greater" if found.bend.difference > 0 else "less", found.bend, math.nan)
    way = "whether {} rises or falls" if line == "OPEN" else "{} rises" if slope > 0 else "{} falls"
    text = f"{line}: {way.format(target.metric)} with {found.factor} on the whole. {bend}: "
    if bend == "OPEN":
        return f"{text}whether the response bends; no best level is named."
    text += "the response bends"
    if target.measure.better == "none":
        return f"{text}; of {target.metric} neither more nor less is better, so no best level is named."
    best = found.best(target.measure.higher_is_better)
    if best is None:
        return f"{text}; no best level is named: none within those tested has an interval within them."
    at, low, high = best
    return f"{text}; it is best near {at:.3g} (95 % interval {low:.3g} to {high:.3g})."


def _notes(found: Response) -> tuple[str, ...]:
    return (
        "Means, sample sd and intervals are over seeds, unpaired; the other factors are averaged over within "
        "each seed, and only seeds that have every level count.",
        "Line and bend are fitted in each seed by least squares; mean, interval and p are Student's over the "
        f"{len(found.seeds)} seeds, corrected for the two. The scale is about linear below {found.unit:g}, "
        "the median of the levels above 0, and logarithmic above it, so that 0 has a place on it. The bend "
        "is x² less its straight part over these levels. A best level's interval is Fieller's; it is named "
        "where that lies within the levels tested.",
    )
