"""Differences as people write them: `0.5ppl`, `0.005nats`, `0.5percent`, turned into the metric's unit.

A bare number would be read as nats by one and as PPL by another, so the loss takes none.
"""

from __future__ import annotations

import math
import re

from reports.reading.measures import Measure
from reports.reading.study import Target


class UnknownOption(Exception):
    """An option's value that does not exist; the message names those that do."""

    exit_code = 65


_UNITS = ("nats", "ppl", "percent")
_WRITTEN = re.compile(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(nats|ppl|percent|%)?\s*", re.IGNORECASE)


def parse_difference(option: str, text: str, metric: Measure, perplexity: float) -> float:
    """A difference in the metric's unit, above 0.

    On the loss: nats as they are; percent of the perplexity, ln(1 + x / 100); ppl above `perplexity`, the
    baseline's mean: ln(1 + x / perplexity). Any other metric takes a bare number in its own unit.

    Raises:
        UnknownOption: not a number above 0, or without the unit that it needs.
    """
    found = _WRITTEN.fullmatch(text)
    try:
        value = float(found[1]) if found else math.nan
    except ValueError:
        value = math.nan
    unit = (found[2] or "").lower().replace("%", "percent") if found else ""
    if not 0 < value < math.inf:
        unit_too = " with its unit, as in 0.5ppl" if metric.logarithmic else ""
        raise UnknownOption(f"{option} {text}: write a number above 0{unit_too}")
    if not metric.logarithmic:
        if unit:
            raise UnknownOption(f"{option} {text}: {metric.column} has its own unit; write the number alone")
        return value
    if unit == "nats":
        return value
    if unit == "percent":
        return math.log1p(value / 100)
    if unit == "ppl" and math.isfinite(perplexity):
        return math.log1p(value / perplexity)
    if unit == "ppl":
        raise UnknownOption(f"{option} {text}: no perplexity is recorded yet; write it in nats or percent")
    ways = ", ".join(f"{text.strip()}{unit}" for unit in _UNITS)
    raise UnknownOption(f"{option} {text}: of what? write {ways}")


def describe_difference(value: float, target: Target, perplexity: float) -> str:
    """A difference in every unit that it has: `0.0050 nats (0.50 % of the PPL, 0.65 PPL at 130.23)`."""
    if not target.measure.logarithmic:
        return f"{value:.4g} {target.measure.unit}".rstrip()
    share = f"{target.measure.percent(value):.3g} % of the PPL"
    if math.isfinite(perplexity):
        share += f", {perplexity * math.expm1(value):.3g} PPL at {perplexity:.2f}"
    return f"{value:.4g} nats ({share})"
