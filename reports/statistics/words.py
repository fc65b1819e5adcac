"""The words of a report: what a difference is called, and whether a claim about it holds.

Both are read off one interval, the one that is printed: where it excludes 0 there is a direction, where it
lies inside ± the margin the difference does not matter. So no word can contradict the interval beside it.
"""

from __future__ import annotations

import math
from typing import Literal

from reports.statistics.failures import Failures
from reports.statistics.inference import Contrast

Kind = Literal["less", "greater", "equivalent", "not_worse"]
Word = Literal[
    "better",
    "worse",
    "negligible",
    "negligible but measurably better",
    "negligible but measurably worse",
    "lower",
    "higher",
    "negligible but measurably lower",
    "negligible but measurably higher",
    "unclear",
]
Verdict = Literal["SUPPORTED", "REFUTED", "OPEN"]

FEWEST = 3
"""Complete blocks; below them nothing is called anything but unclear."""


def direction(contrast: Contrast) -> int:
    """1 where the interval is above 0, -1 where it is below, 0 where it holds 0 or there is none."""
    return int(contrast.low > 0) - int(contrast.high < 0)


def within(contrast: Contrast, margin: float) -> bool:
    """Whether the whole interval lies inside ± the margin. A difference of exactly 0 needs no margin."""
    if contrast.low == contrast.high == 0:
        return True
    return -margin < contrast.low and contrast.high < margin


def word(contrast: Contrast, margin: float, better: str = "lower", failures: Failures | None = None) -> Word:
    """What the first side of a contrast is, against the second. `margin` is NaN where none was declared.

    `better` is lower, higher or none: of a measure without a better way, lower and higher are said. Where one
    side diverged more often, the losses are of the runs that survived: that side is never called better or
    negligible, and the other never worse or negligible.
    """
    if contrast.n < FEWEST:
        return "unclear"
    way = direction(contrast) * (-1 if better == "higher" else 1)
    if failures is not None and failures.balance:
        agreed = way if way == failures.balance else 0
        return "worse" if agreed > 0 else "better" if agreed < 0 else "unclear"
    small = within(contrast, margin)
    if not way:
        return "negligible" if small else "unclear"
    if better == "none":
        if small:
            return "negligible but measurably higher" if way > 0 else "negligible but measurably lower"
        return "higher" if way > 0 else "lower"
    if small:
        return "negligible but measurably worse" if way > 0 else "negligible but measurably better"
    return "worse" if way > 0 else "better"


def verdict(
    kind: Kind,
    contrast: Contrast,
    margin: float,
    higher_is_better: bool = False,
    failures: Failures | None = None,
) -> Verdict:
    """Whether a declared claim about a contrast holds, from its interval, which is corrected for its family.

    less, greater: the interval is on that side of 0. equivalent: it is inside ± the margin; refuted where it
    is beyond it. not_worse: it ends before the margin on the side that is worse; refuted where it begins
    beyond it. Where one side diverged more often nothing is equivalent or not worse, and a difference counts
    only where it points the way the failures do.
    """
    if contrast.n < FEWEST or math.isnan(contrast.low):
        return "OPEN"
    sign = -1 if higher_is_better else 1
    low, high = sorted((sign * contrast.low, sign * contrast.high))
    balance = failures.balance if failures is not None else 0
    worse, better = balance >= 0, balance <= 0
    if kind == "equivalent":
        if within(contrast, margin):
            return "SUPPORTED" if not balance else "OPEN"
        return "REFUTED" if (low > margin and worse) or (high < -margin and better) else "OPEN"
    if kind == "not_worse":
        if high < margin or low == high == 0:
            return "SUPPORTED" if not balance else "OPEN"
        return "REFUTED" if low > margin and worse else "OPEN"
    way = direction(contrast)
    if not way or (sign * way > 0 and not worse) or (sign * way < 0 and not better):
        return "OPEN"
    return "SUPPORTED" if (way > 0) == (kind == "greater") else "REFUTED"
