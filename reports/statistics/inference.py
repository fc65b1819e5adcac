"""The numbers behind the report: pure functions on arrays, no database, no text.

Each docstring says the shapes, sample or population, paired or not. scipy has the distributions; what is
written here by hand is held to scipy and statsmodels in tests/statistics/test_inference.py.
Shapes: S seeds, M tests of one family.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

Std = Literal["sample", "population"]
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


def mean_interval(values: npt.ArrayLike) -> tuple[float, float]:
    """Student's t interval of a mean, 95 %, from the sample sd, unpaired. Shape: (S,).

    NaN below two values, and where the values are equal: no spread was observed, so none is estimated.
    """
    numbers = finite(values)
    if numbers.size < 2 or not varies(numbers, numbers):
        return math.nan, math.nan
    return _t_interval(float(numbers.mean()), spread(numbers, "sample"), numbers.size, CONFIDENCE)


def mean_intervals(values: npt.ArrayLike) -> tuple[Array, Array, Array]:
    """`mean_interval` of each column, and the mean: low, mean, high. Shapes: (S, T) → three of (T,)."""
    table: Array = np.asarray(values, dtype=float)
    there = np.isfinite(table)
    n, filled = there.sum(axis=0), np.where(there, table, 0.0)
    mean = np.where(n > 0, filled.sum(axis=0) / np.maximum(n, 1), math.nan)
    apart = np.where(there, table - mean, 0.0)
    error = np.sqrt((apart**2).sum(axis=0) / np.maximum(n - 1, 1) / np.maximum(n, 1))
    greatest = filled.max(axis=0, where=there, initial=-math.inf)
    least = filled.min(axis=0, where=there, initial=math.inf)
    known = (n > 1) & (greatest - least > ROUNDING * np.abs(filled).max(axis=0, initial=0.0))
    quantiles = {df: _t_quantile((1 + CONFIDENCE) / 2, df) for df in set((n[known] - 1).tolist())}
    t = np.array([quantiles.get(df, math.nan) for df in (n - 1).tolist()])
    reach = np.where(known, t * error, math.nan)
    return mean - reach, mean, mean + reach


@dataclass(frozen=True)
class Contrast:
    """A paired comparison of conditions over n seeds; NaN where there is nothing to estimate."""

    n: int
    difference: float
    """Mean over seeds of (treated - baseline)."""
    sd: float
    """Sample standard deviation of the differences, over the seeds that may estimate it."""
    low: float
    high: float
    p: float
    """Two-sided paired t test against 0, times `tests`, at most 1."""
    df: int = 0
    """Degrees of freedom of the sd."""
    tests: int = 1
    """The size of the family that interval and p are corrected for."""

    @property
    def standard_error(self) -> float:
        return self.sd / math.sqrt(self.n) if self.n else math.nan

    def corrected(self, tests: int) -> Contrast:
        """The same comparison as one of a family: all its intervals together hold in 95 % of the studies.

        Bonferroni's: an interval of level 1 - .05 / tests, and p times that. The interval excludes 0 where p
        is below .05, and nowhere else (docs/decisions/0012-one-interval.md).
        """
        if math.isnan(self.p) or not self.sd > 0 or tests == self.tests:
            return self
        reach = float(stats.t.isf(ALPHA / 2 / tests, self.df)) * self.standard_error
        p = min(1.0, 2 * tests * float(stats.t.sf(abs(self.difference) / self.standard_error, self.df)))
        return replace(self, low=self.difference - reach, high=self.difference + reach, p=p, tests=tests)


NOTHING = Contrast(0, math.nan, math.nan, math.nan, math.nan, math.nan)
"""A comparison that no seed can make."""


def family(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The comparisons of one family, corrected for as many as can be tested."""
    tests = sum(not math.isnan(contrast.p) for contrast in contrasts)
    return [contrast.corrected(max(1, tests)) for contrast in contrasts]


def weighted_contrast(
    values: npt.ArrayLike, weights: npt.ArrayLike, spread_of: npt.ArrayLike | None = None
) -> Contrast:
    """A weighted sum of conditions within each seed, over seeds. Shapes: (S, C) and (C,).

    Weights 1 and -1 make a paired difference, averages of them a contrast of factor levels, differences of
    differences an interaction. A seed that lacks a finite value is dropped. Two seeds are needed for an
    interval, and the sums must vary: without spread the t statistic is undefined, not infinite. Sums that are
    0 in every seed leave nothing to estimate: the interval is 0 to 0 and p is 1.

    Args:
        spread_of: which seeds estimate the sd, shape (S,), where the number of seeds was decided by the sd
            of some: those alone under Stein's rule (1945), the others where a power was planned. Either way t
            has its distribution, with their n - 1 degrees of freedom; the sd of all would be too small.
    """
    blocks = np.asarray(values, dtype=float)
    there = np.isfinite(blocks).all(axis=1)
    differences = blocks[there] @ np.asarray(weights, dtype=float)
    n = differences.size
    if not n:
        return NOTHING
    mean = unrounded(float(differences.mean()), blocks[there])
    if n >= 2 and not mean and not varies(differences, blocks[there]):
        return Contrast(n, 0.0, 0.0, 0.0, 0.0, 1.0, n - 1)
    stage = differences
    if spread_of is not None:
        chosen = differences[np.asarray(spread_of, dtype=bool)[there]]
        stage = chosen if chosen.size >= 2 else differences
    sd = spread(stage, "sample")
    if n < 2 or not varies(stage, blocks[there]):
        return Contrast(n, mean, 0.0 if n > 1 else math.nan, math.nan, math.nan, math.nan)
    found = Contrast(n, mean, sd, math.nan, math.nan, 1.0, stage.size - 1, 0)
    return found.corrected(1)


def unpaired(first: npt.ArrayLike, second: npt.ArrayLike, tests: int = 1) -> Contrast:
    """Difference of means (first - second), not paired, by Welch's t. Shapes: (S1,), (S2,).

    n is the smaller of the two, sd is NaN; without spread on either side, or below two values, no test.
    `tests` is the size of the family that interval and p are corrected for.
    """
    one, two = finite(first), finite(second)
    n = min(one.size, two.size)
    both = np.concatenate([one, two])
    mean = unrounded(float(one.mean() - two.mean()), both) if n else math.nan
    if n < 2 or not (varies(one, both) or varies(two, both)):
        return replace(NOTHING, n=n, difference=mean)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side may be one value again and again
        test = stats.ttest_ind(one, two, equal_var=False)
    reach = test.confidence_interval(1 - ALPHA / tests)
    p = min(1.0, tests * float(test.pvalue))
    return replace(
        NOTHING, n=n, difference=mean, low=float(reach.low), high=float(reach.high), p=p, tests=tests
    )


def equivalence(contrast: Contrast, margin: float) -> float:
    """The p of two one-sided paired t tests against ±margin, each at .025 (TOST; Schuirmann 1987), corrected.

    Twice the larger of the two p values, times the size of the family: below .05 where the printed interval
    lies inside ±margin, and nowhere else. NaN where the contrast could not be tested, or without a margin.
    """
    if math.isnan(contrast.p) or not margin > 0:
        return math.nan
    if not contrast.sd > 0:
        return 0.0
    nearer = (margin - abs(contrast.difference)) / contrast.standard_error
    return min(1.0, 2 * contrast.tests * float(stats.t.sf(nearer, contrast.df)))


def _t_interval(mean: float, sd: float, n: int, confidence: float) -> tuple[float, float]:
    reach = _t_quantile((1 + confidence) / 2, n - 1) * sd / math.sqrt(n)
    return mean - reach, mean + reach


@cache
def _t_quantile(probability: float, df: int) -> float:
    """Kept: scipy takes a tenth of a millisecond for it, and a figure asks at each of its steps."""
    return float(stats.t.ppf(probability, df))
