"""The numbers behind the report: pure functions on arrays, no database, no text.

Each docstring says the shapes, sample or population, paired or not. scipy has the distributions; what is
written here by hand is held to scipy and statsmodels in tests/statistics/test_inference.py.
Shapes: S seeds, M tests of one family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

Std = Literal["sample", "population"]
Kind = Literal["less", "greater", "differs", "equivalent", "not_worse"]
Verdict = Literal["SUPPORTED", "CONTRADICTED", "EQUIVALENT", "INCONCLUSIVE", "NOT TESTED"]
Array = npt.NDArray[np.float64]

DDOF: dict[str, int] = {"sample": 1, "population": 0}
"""What is taken from n in the denominator of the variance."""
ALPHA = 0.05
CONFIDENCE = 0.95
ROUNDING = 1e-12
"""Share of the largest value that went into a difference: what is below it is rounding, and counts as 0.

A double carries a relative error of 1.1e-16, and a sum of n terms at most n times that: 1e-12 leaves room
for nine thousand terms and is far below any digit that is printed. Which rounding comes out depends on the
processor; without this the same study would have other digits on another machine.
"""


def finite(values: npt.ArrayLike) -> Array:
    """The values that are numbers, in their order. Shape: any length → as many or fewer."""
    numbers: Array = np.asarray(values, dtype=float)
    return numbers[np.isfinite(numbers)]


def spread(values: npt.ArrayLike, std: Std) -> float:
    """Standard deviation, unpaired, sample (n - 1) or population (n); NaN where one value has no spread.

    Shape: (S,). A population sd of one value would be 0, which reads as certainty: NaN as well.
    """
    numbers = finite(values)
    if numbers.size < 2:
        return math.nan
    return float(np.std(numbers, ddof=DDOF[std])) if varies(numbers, numbers) else 0.0


def varies(values: Array, size: Array) -> bool:
    """Whether `values`, computed from numbers as large as `size`, differ by more than rounding."""
    return bool(np.ptp(values) > ROUNDING * np.abs(size).max())


def unrounded(value: float, size: Array) -> float:
    """`value`, or 0 where it is no more than the rounding of a difference of numbers as large as `size`."""
    return 0.0 if abs(value) <= ROUNDING * np.abs(size).max() else value


def mean_interval(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's t interval of a mean, from the sample sd, unpaired. Shape: (S,).

    NaN below two values, and where the values are equal: no spread was observed, so none is estimated.
    """
    numbers = finite(values)
    if numbers.size < 2 or not varies(numbers, numbers):
        return math.nan, math.nan
    return _t_interval(float(numbers.mean()), spread(numbers, "sample"), numbers.size, confidence)


@dataclass(frozen=True)
class Contrast:
    """A paired comparison of two conditions over n seeds; NaN where there is nothing to estimate."""

    n: int
    difference: float
    """Mean over seeds of (treated - baseline)."""
    sd: float
    """Sample standard deviation of the differences."""
    low: float
    high: float
    p: float
    """Two-sided paired t test against 0."""


def paired_contrast(
    treated: npt.ArrayLike, baseline: npt.ArrayLike, confidence: float = CONFIDENCE
) -> Contrast:
    """Compare two conditions, paired by seed. Shapes: (S,) and (S,), the same seeds in the same order.

    A pair with a value missing or not finite is dropped.
    """
    first, second = np.asarray(treated, dtype=float), np.asarray(baseline, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"pairs: {first.size} and {second.size} values; give both the same seeds in order")
    return weighted_contrast(np.stack([first, second], axis=-1), [1.0, -1.0], confidence)


def weighted_contrast(
    values: npt.ArrayLike, weights: npt.ArrayLike, confidence: float = CONFIDENCE
) -> Contrast:
    """A weighted sum of conditions within each seed, over seeds. Shapes: (S, C) and (C,).

    Weights 1 and -1 make a paired difference, averages of them a contrast of factor levels, differences of
    differences an interaction. A seed that lacks a finite value is dropped. Two seeds are needed for an
    interval, and the sums must vary: without spread the t statistic is undefined, not infinite.
    """
    blocks = np.asarray(values, dtype=float)
    blocks = blocks[np.isfinite(blocks).all(axis=1)]
    differences = blocks @ np.asarray(weights, dtype=float)
    n = differences.size
    mean = unrounded(float(differences.mean()), blocks) if n else math.nan
    if n < 2 or not varies(differences, blocks):
        return Contrast(n, mean, 0.0 if n > 1 else math.nan, math.nan, math.nan, math.nan)
    sd = spread(differences, "sample")
    low, high = _t_interval(mean, sd, n, confidence)
    p = 2 * stats.t.sf(abs(mean) / (sd / math.sqrt(n)), n - 1)
    return Contrast(n, mean, sd, low, high, float(p))


def one_sided(contrast: Contrast, bound: float) -> tuple[float, float]:
    """The p of two one-sided paired t tests: for a difference below `bound`, and for one above it.

    NaN where the contrast could not be tested, or without a bound.
    """
    if math.isnan(contrast.p) or math.isnan(bound):
        return math.nan, math.nan
    t = (contrast.difference - bound) / (contrast.sd / math.sqrt(contrast.n))
    return float(stats.t.cdf(t, contrast.n - 1)), float(stats.t.sf(t, contrast.n - 1))


def equivalence(contrast: Contrast, margin: float) -> float:
    """The p of two one-sided paired t tests against ±margin (TOST; Schuirmann 1987).

    NaN where the contrast could not be tested, or without a positive margin.
    """
    if not margin > 0:
        return math.nan
    return max(one_sided(contrast, -margin)[1], one_sided(contrast, margin)[0])


def claim_p(
    kind: Kind, contrast: Contrast, margin: float, higher_is_better: bool = False
) -> tuple[float, float]:
    """The p for a claim and the p for its opposite, before any correction.

    less, greater: the two-sided t test for both, the interval tells the direction. equivalent: TOST; its
    opposite is a difference beyond the margin, on either side (two-sided: twice the smaller p). not_worse:
    one-sided against the margin, on the side that is worse; its opposite is worse by more than the margin.
    """
    if kind == "equivalent":
        beyond = 2 * min(one_sided(contrast, margin)[1], one_sided(contrast, -margin)[0])
        return equivalence(contrast, margin), min(beyond, 1.0)
    if kind == "not_worse":
        below, above = one_sided(contrast, -margin if higher_is_better else margin)
        return (above, below) if higher_is_better else (below, above)
    return contrast.p, contrast.p


def holm(p_values: npt.ArrayLike) -> Array:
    """Holm's step-down p values, monotone, within one family (Holm 1979). Shape: (M,) → (M,).

    NaN stays NaN and does not count: a test that was not done takes nothing from the others.
    """
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full_like(p, math.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(order.size, 0, -1)
    # The running maximum keeps the order: a larger p never gets a smaller adjusted one.
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def verdict(
    kind: Kind, contrast: Contrast, holm_p: float, equivalence_p: float = math.nan, opposite_p: float = 1.0
) -> Verdict:
    """The one word for a claim about (treated - baseline): the only words that prose may use.

    `holm_p` and `opposite_p` are the corrected p of `claim_p`; `equivalence_p` is the TOST's, for less,
    greater and differs. `differs` has no direction, so nothing but an equivalence speaks against it.
    """
    if contrast.n < 2 or math.isnan(contrast.p) or math.isnan(holm_p):
        return "NOT TESTED"
    if kind in ("equivalent", "not_worse"):
        if holm_p < ALPHA:
            return "EQUIVALENT" if kind == "equivalent" else "SUPPORTED"
        return "CONTRADICTED" if opposite_p < ALPHA else "INCONCLUSIVE"
    if holm_p < ALPHA and not contrast.low <= 0 <= contrast.high:
        wanted = {"less": contrast.difference < 0, "greater": contrast.difference > 0, "differs": True}
        return "SUPPORTED" if wanted[kind] else "CONTRADICTED"
    return "EQUIVALENT" if equivalence_p < ALPHA else "INCONCLUSIVE"


def _t_interval(mean: float, sd: float, n: int, confidence: float) -> tuple[float, float]:
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return mean - reach, mean + reach
