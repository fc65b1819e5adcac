"""How many seeds: what a study can detect, and how many it takes to detect or to pin down more.

Planned for a stated difference, or by Stein's two-stage rule for a stated half-width of the interval; never
by adding seeds until p is small. The power of the t test is statsmodels'. Printed by
reports/sections/power.py and reports/output/seeds.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from reports.statistics.contrasts import TestedFamily
from reports.statistics.inference import ALPHA, CONFIDENCE, Contrast

POWER = 0.8
MAX_SEEDS = 100_000
"""A need beyond it is reported as more than it."""


@dataclass(frozen=True)
class Need:
    """The seeds that one contrast needs in all; None where the sd of its differences is not known."""

    label: str
    n: int
    sd: float
    seeds: int | None


def detectable_difference(sd: float, n: int, power: float = POWER) -> float:
    """The smallest difference that a two-sided paired t test at .05 finds with `power`, from the sd of the
    seeds' differences; NaN below two seeds or without spread."""
    if n < 2 or not sd > 0:
        return math.nan
    from statsmodels.stats.power import TTestPower

    # Bracketed by hand: for two or three seeds the effect is many sd, beyond where a solver starts.
    low, high = 0.0, 1.0
    while _power(TTestPower(), high, n) < power:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _power(TTestPower(), middle, n) >= power else (middle, high)
    return high * sd


def seeds_needed(sd: float, difference: float, power: float = POWER) -> int | None:
    """The fewest seeds with which a two-sided paired t test at .05 finds `difference` with `power`.

    None without spread or difference; MAX_SEEDS + 1 stands for more than MAX_SEEDS.
    """
    if not sd > 0 or not abs(difference) > 0:
        return None
    from statsmodels.stats.power import TTestPower

    effect, few, many = abs(difference) / sd, 1, 2
    while _power(TTestPower(), effect, many) < power:
        few, many = many, many * 2
        if few > MAX_SEEDS:
            return MAX_SEEDS + 1
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if _power(TTestPower(), effect, middle) >= power else (middle, many)
    return many


def stein_seeds(sd: float, n: int, half_width: float, confidence: float = CONFIDENCE) -> int | None:
    """Stein's two-stage rule: N = max(n0, ceil((t(n0 - 1) · s0 / h)²)) seeds in all (Stein 1945).

    The interval after the second stage keeps s0 and n0 - 1 degrees of freedom, which makes its half-width
    at most h whatever the true sd. None below two seeds, without spread or without a half-width.
    """
    if n < 2 or not sd > 0 or not half_width > 0:
        return None
    t = float(stats.t.ppf((1 + confidence) / 2, n - 1))
    return max(n, math.ceil((t * sd / half_width) ** 2))


def needs(families: Sequence[TestedFamily], difference: float | None, half_width: float | None) -> list[Need]:
    """What every condition against the baseline needs, for a difference or for a half-width."""
    found = []
    for tested in families[0].tested if families else ():
        contrast = tested.contrast
        if difference is not None:
            seeds = seeds_needed(observed_sd(contrast), difference)
        else:
            seeds = stein_seeds(observed_sd(contrast), contrast.n, half_width or math.nan)
        found.append(Need(tested.comparison.label, contrast.n, observed_sd(contrast), seeds))
    return found


def observed_sd(contrast: Contrast) -> float:
    """The sd of the differences, NaN where they do not vary but for rounding."""
    return math.nan if math.isnan(contrast.p) else contrast.sd


def _power(test: object, effect: float, n: int) -> float:
    value = float(test.power(effect, n, ALPHA))  # type: ignore[attr-defined]
    # Far out the noncentral t of scipy gives NaN, where the power is 1.
    return 1.0 if math.isnan(value) else value
