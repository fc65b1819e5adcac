"""How many seeds: the power of each kind of claim, by the noncentral t distribution and Stein's rule.

The intervals are those that the report will print: paired, by seed, corrected for the `tests` of the family.
Held to statsmodels and to simulations in tests/statistics/test_power.py. Printed by
reports/sections/power.py and reports/output/seeds.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from reports.reading.study import Target
from reports.statistics.contrasts import TestedFamily, told_once
from reports.statistics.inference import ALPHA, Contrast
from reports.statistics.judgement import Judged
from reports.statistics.words import FEWEST, Kind

POWER = 0.8
MAX_SEEDS = 100_000
"""A need beyond it is reported as more than it."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(400)


def reach(df: int, tests: int = 1) -> float:
    """Standard errors from the mean to the end of a 95 % interval that holds for a family of `tests`."""
    return float(stats.t.isf(ALPHA / 2 / tests, df))


def power(kind: Kind, effect: float, margin: float, n: int, tests: int = 1, df: int | None = None) -> float:
    """The chance that a claim is supported with n seeds.

    Args:
        kind: of the claim; for less and greater `effect` is on the claimed side.
        effect: the true difference in sd of the seeds' differences; for not_worse, above 0 is worse.
        margin: in the same unit; less and greater need none.
        tests: of the family that the interval is corrected for.
        df: degrees of freedom of the sd; n - 1 unless told.
    """
    df = n - 1 if df is None else df
    if df < 1:
        return 0.0
    root, t = math.sqrt(n), reach(df, tests)
    if kind == "equivalent":
        return _inside((-margin - effect) * root, (margin - effect) * root, t, df)
    # Only the tail on the claimed side: the other one would refute the claim. Its own function, since
    # 1 - cdf loses it where it is small, and the sum of both tails is NaN far out.
    shift = abs(effect) if kind != "not_worse" else margin - effect
    return float(stats.nct.sf(t, df, shift * root))


def _inside(low: float, high: float, t: float, df: int) -> float:
    """P(low < Z - t·s and Z + t·s < high) for a normal Z and s = sqrt(chi²(df) / df): the power of TOST."""
    # The two ends meet where t·s is half their distance: beyond it the interval is too wide to fit.
    widest = (high - low) / 2 / t
    spread = 12 / math.sqrt(2 * df)
    start, end = max(0.0, 1 - spread), min(widest, 1 + spread)
    if end <= start:
        return 0.0
    s = start + (end - start) * (_NODES + 1) / 2
    fits = stats.norm.cdf(high - t * s) - stats.norm.cdf(low + t * s)
    density = stats.chi.pdf(s * math.sqrt(df), df) * math.sqrt(df)
    return float((_WEIGHTS * fits * density).sum() * (end - start) / 2)


def detectable_difference(sd: float, n: int, tests: int = 1) -> float:
    """The smallest difference that n seeds find with a power of POWER, from the sd of the seeds' differences.

    NaN below two seeds or without spread.
    """
    if n < 2 or not sd > 0:
        return math.nan
    low, high = 0.0, 1.0
    while power("greater", high, math.nan, n, tests) < POWER:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        enough = power("greater", middle, math.nan, n, tests) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high * sd


def seeds_needed(
    sd: float,
    difference: float,
    tests: int = 1,
    kind: Kind = "greater",
    margin: float = math.nan,
    there: int = 0,
) -> int | None:
    """The fewest seeds in all with which a claim is supported with a power of POWER: three at least.

    None where that cannot be: no spread, nothing to find, a difference beyond the margin. MAX_SEEDS + 1
    stands for more than MAX_SEEDS.

    Args:
        difference: the true one: what is to be found for less and greater; 0, or what is thought likely, for
            equivalent and not_worse.
        there: seeds that `sd` is from. Where more are needed, the final sd is that of the others alone, and
            at least three are added.
    """
    if not sd > 0:
        return None
    room = {"equivalent": margin - abs(difference), "not_worse": margin - difference}
    if not room.get(kind, abs(difference)) > 0:
        return None

    def enough(n: int, df: int) -> bool:
        return power(kind, difference / sd, margin / sd, n, tests, df) >= POWER

    if there >= FEWEST and enough(there, there - 1):
        return _fewest(FEWEST, lambda n: enough(n, n - 1))
    return _fewest(there + FEWEST, lambda n: enough(n, n - there - 1))


def stein_seeds(sd: float, n: int, half_width: float, tests: int = 1) -> int | None:
    """Stein's two-stage rule: N = max(n0, ceil((t(n0 - 1) · s0 / h)²)) seeds in all (Stein 1945).

    The interval after the second stage keeps s0 and n0 - 1 degrees of freedom, which makes its half-width
    at most h whatever the true sd. None below two seeds, without spread or without a half-width.
    """
    if n < 2 or not sd > 0 or not half_width > 0:
        return None
    return max(n, FEWEST, math.ceil((reach(n - 1, tests) * sd / half_width) ** 2 - 1e-9))


def _fewest(least: int, enough: Callable[[int], bool]) -> int:
    few, many = least - 1, least
    while not enough(many):
        few, many = many, many * 2
        if few > MAX_SEEDS:
            return MAX_SEEDS + 1
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return min(many, MAX_SEEDS + 1)


Planned = Kind | Literal["different"]
"""What a plan is for: a claim's kind, or a comparison that nobody made a claim about."""


@dataclass(frozen=True)
class Need:
    """The seeds that one contrast needs in all; None where the sd of its differences is not known."""

    label: str
    kind: Planned
    n: int
    sd: float
    tests: int
    seeds: int | None


def needs(
    judged: Sequence[Judged],
    families: Sequence[TestedFamily],
    target: Target,
    difference: float | None,
    half_width: float | None,
) -> list[Need]:
    """What every claim on the target's metric needs, for a difference or for a half-width.

    A study without claims on it is planned by its comparisons: each condition against the baseline and the
    levels of each factor. A claim of equivalence, or of not being worse, needs its margin, not `difference`:
    its seeds are those that find it supported where there is no difference at all.
    """
    asked: list[tuple[str, Planned, Contrast, float]] = [
        (j.name, j.kind, j.contrast, j.margin) for j in judged if j.metric == target.metric and not j.ratio
    ]
    if not asked:
        once = told_once(families)
        chosen = [f for f in once if f is families[0] or len(f.family.factors) == 1]
        asked = [(t.comparison.label, "different", t.contrast, math.nan) for f in chosen for t in f.tested]
    return [
        _need(label, kind, contrast, margin, difference, half_width)
        for label, kind, contrast, margin in asked
    ]


def _need(
    label: str,
    kind: Planned,
    contrast: Contrast,
    margin: float,
    difference: float | None,
    half_width: float | None,
) -> Need:
    sd, tests = observed_sd(contrast), contrast.tests
    if half_width is not None:
        seeds = stein_seeds(sd, contrast.df + 1, half_width, tests)
        seeds = seeds if seeds is None else max(seeds, contrast.n)
    elif kind == "equivalent" or kind == "not_worse":
        seeds = seeds_needed(sd, 0.0, tests=tests, kind=kind, margin=margin, there=contrast.n)
    else:
        seeds = seeds_needed(sd, difference or math.nan, tests=tests, there=contrast.n)
    return Need(label, kind, contrast.n, sd, tests, seeds)


def observed_sd(contrast: Contrast) -> float:
    """The sd of the differences, NaN where they do not vary but for rounding."""
    return math.nan if math.isnan(contrast.p) or not contrast.sd > 0 else contrast.sd
