"""Which of the series that a run logs stands for it in `status`, on the pages of a night, in the figures.

A program logs what it likes, under names of its own. What its study is about says the study's row. How
values are written everywhere: `digits`.
"""

from __future__ import annotations

import math
from collections.abc import Collection

SPEED = "tokens_per_second"
"""Has a place of its own beside the series."""


def candidates(primary: str) -> list[str]:
    """Names to look for, best first: the primary metric's, `loss`, and its ends (`error` of `test_error`)."""
    words = primary.split("_")
    return [primary, "loss", *("_".join(words[at:]) for at in range(1, len(words)))]


def chosen(logged: Collection[str], primary: str) -> str:
    """The one of the names that were logged: a candidate, or else the alphabet's first; empty without any."""
    found = (name for name in candidates(primary) if name in logged)
    return next(found, "") or min((name for name in logged if name != SPEED), default="")


def digits(value: float) -> str:
    """A value of any series in four digits: `8.004`, `0.01230`, `1.200e-05`, `48,210`."""
    size = abs(value)
    if not math.isfinite(value) or size >= 1e4 or not value:
        return f"{value:,.0f}"
    return f"{value:.3e}" if size < 1e-3 else f"{value:.{3 - math.floor(math.log10(size))}f}"
