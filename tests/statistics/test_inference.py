"""reports/statistics/inference.py against scipy, statsmodels and tiny cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from reports.statistics import inference as s

PAIRS = [
    ([4.8656, 4.8794, 4.8629], [4.8751, 4.8790, 4.8608]),
    ([1.0, 2.0], [3.0, 5.0]),
    ([0.3, 0.1, 0.4, 0.1, 0.5, 0.9], [0.2, 0.7, 0.1, 0.8, 0.2, 0.8]),
]


def paired(treated: list[float], baseline: list[float]) -> s.Contrast:
    """Two conditions, the same seeds in the same order."""
    return s.weighted_contrast(np.column_stack([treated, baseline]), [1.0, -1.0])


@pytest.mark.parametrize(("treated", "baseline"), PAIRS)
def test_paired_contrast_is_scipys_paired_t_test(treated: list[float], baseline: list[float]) -> None:
    reference = stats.ttest_rel(treated, baseline)
    interval = reference.confidence_interval(0.95)
    contrast = paired(treated, baseline)
    assert contrast.n == len(treated)
    assert contrast.p == pytest.approx(reference.pvalue, rel=1e-10)
    assert (contrast.low, contrast.high) == pytest.approx((interval.low, interval.high), rel=1e-10)


def test_paired_contrast_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, sample sd 1, standard error 1/√3; t(0.975, 2) = 4.30265.
    contrast = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (contrast.n, contrast.difference, contrast.sd) == (3, 2.0, 1.0)
    assert contrast.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-5)
    assert contrast.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-5)
    # With 2 degrees of freedom p = 1 - t / √(t² + 2), and t = 2√3.
    assert contrast.p == pytest.approx(1 - math.sqrt(12 / 14))


@pytest.mark.parametrize(("treated", "baseline"), PAIRS)
@pytest.mark.parametrize("margin", [0.005, 0.5, 3.0])
@pytest.mark.parametrize("tests", [1, 7])
def test_equivalence_is_statsmodels_paired_tost(
    treated: list[float], baseline: list[float], margin: float, tests: int
) -> None:
    # Each side at .025 and corrected: twice the p of two tests at .05, times the family.
    reference, _, _ = ttost_paired(np.array(treated), np.array(baseline), -margin, margin)
    found = s.equivalence(paired(treated, baseline).corrected(tests), margin)
    assert found == pytest.approx(min(1.0, 2 * tests * reference), rel=1e-9)


@pytest.mark.parametrize(("treated", "baseline"), PAIRS)
@pytest.mark.parametrize("tests", [1, 3, 60])
def test_a_family_is_statsmodels_bonferroni(treated: list[float], baseline: list[float], tests: int) -> None:
    reference = stats.ttest_rel(treated, baseline)
    found = paired(treated, baseline).corrected(tests)
    p = multipletests([reference.pvalue] * tests, method="bonferroni")[1][0]
    assert found.p == pytest.approx(p, rel=1e-9)
    interval = reference.confidence_interval(1 - 0.05 / tests)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_the_spread_may_be_that_of_some_seeds() -> None:
    # Stein's final interval by hand: the mean of all five, the sd of the first three, 2 degrees of freedom.
    values = np.array([1.0, 2.0, 4.0, 2.0, 3.0])
    found = s.weighted_contrast(values[:, None], [1.0], [True, True, True, False, False])
    sd = np.std([1.0, 2.0, 4.0], ddof=1)
    reach = stats.t.ppf(0.975, 2) * sd / math.sqrt(5)
    assert (found.n, found.df, found.sd) == (5, 2, pytest.approx(sd))
    assert (found.low, found.high) == pytest.approx((2.4 - reach, 2.4 + reach))
    assert found.p == pytest.approx(2 * stats.t.sf(2.4 / (sd / math.sqrt(5)), 2))
    # One seed has no spread: then it is that of all.
    assert s.weighted_contrast(values[:, None], [1.0], [True, *[False] * 4]).df == 4


def test_welch_needs_two_values_and_spread() -> None:
    assert s.unpaired([1.0], [2.0, 3.0]).difference == -1.5
    assert np.isnan(s.unpaired([1.0], [2.0, 3.0]).low)
    assert np.isnan(s.unpaired([1.0, 1.0], [2.0, 2.0]).p)
    reference = stats.ttest_ind([1.0, 2.0, 4.0], [2.0, 3.0], equal_var=False)
    assert s.unpaired([1.0, 2.0, 4.0, np.nan], [2.0, 3.0]).p == pytest.approx(reference.pvalue)
    assert s.unpaired([1.0, 2.0, 4.0], [2.0, 3.0], 2).p == pytest.approx(min(1, 2 * reference.pvalue))


def test_incomplete_pairs_are_dropped() -> None:
    full = paired([1.0, 2.0, 4.0], [0.5, 0.7, 0.1])
    holed = paired([1.0, math.nan, 2.0, 9.0, 4.0], [0.5, 3.0, 0.7, math.inf, 0.1])
    assert holed == full
    assert holed.n == 3


@pytest.mark.parametrize(
    ("treated", "baseline"),
    [([], []), ([1.0], [2.0]), ([4.6, 4.7, 4.5], [4.5, 4.6, 4.4])],
    ids=["no pair", "one pair", "the same difference but for rounding"],
)
def test_without_spread_nothing_is_tested(treated: list[float], baseline: list[float]) -> None:
    contrast = paired(treated, baseline)
    assert math.isnan(contrast.p)
    assert math.isnan(contrast.low)
    assert math.isnan(s.equivalence(contrast, 0.5))
    assert contrast.corrected(5) == contrast


def test_equivalence_needs_a_margin() -> None:
    contrast = paired([1.0, 2.0], [1.0, 2.5])
    assert math.isnan(s.equivalence(contrast, math.nan))
    assert math.isnan(s.equivalence(contrast, 0.0))


def test_mean_interval_is_scipys() -> None:
    values = [4.8656, 4.8794, 4.8629]
    reference = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert s.mean_interval(values) == pytest.approx(reference)
    assert s.mean_interval([*values, math.nan]) == pytest.approx(reference)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_mean_interval_needs_spread(values: list[float]) -> None:
    assert all(map(math.isnan, s.mean_interval(values)))


def test_the_spread_of_equal_values_is_zero() -> None:
    assert np.std([0.1, 0.1, 0.1], ddof=1) > 0  # the mean of three times 0.1 is not 0.1
    assert s.spread([0.1, 0.1, 0.1], "sample") == s.spread([0.3, 0.1 + 0.2], "population") == 0.0
    assert s.spread([1.0, 1.0 + 1e-9], "sample") > 0


def test_a_difference_of_rounding_alone_is_zero() -> None:
    contrast = paired([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert (contrast.difference, contrast.sd) == (0.0, 0.0)
    assert (contrast.low, contrast.high, contrast.p) == (0.0, 0.0, 1.0)


def test_spread_sample_and_population() -> None:
    # Mean 3; squares 4 + 0 + 4 = 8; sample √(8/2), population √(8/3).
    assert s.spread([1.0, 3.0, 5.0], "sample") == pytest.approx(2.0)
    assert s.spread([1.0, 3.0, 5.0], "population") == pytest.approx(math.sqrt(8 / 3))
    assert s.spread([1.0, math.nan, 3.0, 5.0], "sample") == pytest.approx(2.0)
    assert math.isnan(s.spread([1.0], "population"))


def test_intervals_of_columns_are_those_of_each_column_alone() -> None:
    nan, inf = math.nan, math.inf
    table = np.array(
        [[1.0, 2.0, nan, 5.0, nan, 0.1], [2.0, 2.0, nan, inf, 7.0, 0.3], [4.0, 2.0, nan, 6.0, nan, 0.2]]
    )
    low, mean, high = s.mean_intervals(table)
    alone = np.array([s.mean_interval(column) for column in table.T])
    np.testing.assert_allclose(np.column_stack([low, high]), alone, rtol=1e-12)
    np.testing.assert_allclose(mean, [7 / 3, 2.0, nan, 5.5, 7.0, 0.2], rtol=1e-12)
    assert [part.shape for part in s.mean_intervals(np.empty((0, 4)))] == [(4,)] * 3
