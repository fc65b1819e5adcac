"""reports/statistics/inference.py against scipy, statsmodels and tiny cases worked by hand."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from reports.statistics import inference as s

PAIRS = [
    ([4.8656, 4.8794, 4.8629], [4.8751, 4.8790, 4.8608]),
    ([1.0, 2.0], [3.0, 5.0]),
    ([0.3, 0.1, 0.4, 0.1, 0.5, 0.9], [0.2, 0.7, 0.1, 0.8, 0.2, 0.8]),
]
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize(("treated", "baseline"), PAIRS)
def test_paired_contrast_is_scipys_paired_t_test(treated: list[float], baseline: list[float]) -> None:
    reference = stats.ttest_rel(treated, baseline)
    interval = reference.confidence_interval(0.95)
    contrast = s.paired_contrast(treated, baseline)
    assert contrast.n == len(treated)
    assert contrast.p == pytest.approx(reference.pvalue, rel=1e-10)
    assert (contrast.low, contrast.high) == pytest.approx((interval.low, interval.high), rel=1e-10)


def test_paired_contrast_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, sample sd 1, standard error 1/√3; t(0.975, 2) = 4.30265.
    contrast = s.paired_contrast([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (contrast.n, contrast.difference, contrast.sd) == (3, 2.0, 1.0)
    assert contrast.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-5)
    assert contrast.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-5)
    # With 2 degrees of freedom p = 1 - t / √(t² + 2), and t = 2√3.
    assert contrast.p == pytest.approx(1 - math.sqrt(12 / 14))


@pytest.mark.parametrize(("treated", "baseline"), PAIRS)
@pytest.mark.parametrize("margin", [0.005, 0.5, 3.0])
def test_equivalence_is_statsmodels_paired_tost(
    treated: list[float], baseline: list[float], margin: float
) -> None:
    reference, _, _ = ttost_paired(np.array(treated), np.array(baseline), -margin, margin)
    assert s.equivalence(s.paired_contrast(treated, baseline), margin) == pytest.approx(reference, rel=1e-9)


@settings(deadline=None, max_examples=20)  # the reference takes most of a tenth of a second
@given(probabilities)
def test_holm_is_statsmodels_holm(p: list[float]) -> None:
    reference = multipletests(p, method="holm")[1]
    np.testing.assert_allclose(s.holm(p), reference, rtol=1e-12)


@settings(deadline=None)
@given(probabilities, st.randoms(use_true_random=False))
def test_holm_keeps_the_order_and_does_not_depend_on_it(p: list[float], random: Random) -> None:
    adjusted = s.holm(p)
    ranked = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[ranked]) >= 0).all()
    assert (adjusted >= np.array(p) - 1e-15).all()
    assert (adjusted <= 1).all()
    shuffled = list(range(len(p)))
    random.shuffle(shuffled)
    np.testing.assert_array_equal(s.holm(np.array(p)[shuffled]), adjusted[shuffled])


def test_holm_by_hand() -> None:
    # 0.01 × 3, 0.03 × 2, then 0.04 × 1 = 0.04 is raised to the one before it.
    np.testing.assert_allclose(s.holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])


def test_a_test_that_was_not_done_costs_the_others_nothing() -> None:
    adjusted = s.holm([0.02, math.nan, 0.04])
    np.testing.assert_allclose(adjusted, [0.04, math.nan, 0.04])


def test_incomplete_pairs_are_dropped() -> None:
    full = s.paired_contrast([1.0, 2.0, 4.0], [0.5, 0.7, 0.1])
    holed = s.paired_contrast([1.0, math.nan, 2.0, 9.0, 4.0], [0.5, 3.0, 0.7, math.inf, 0.1])
    assert holed == full
    assert holed.n == 3


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        s.paired_contrast([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("treated", "baseline"),
    [([], []), ([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0]), ([4.6, 4.7, 4.5], [4.5, 4.6, 4.4])],
    ids=["no pair", "one pair", "no difference", "the same difference but for rounding"],
)
def test_without_spread_nothing_is_tested(treated: list[float], baseline: list[float]) -> None:
    contrast = s.paired_contrast(treated, baseline)
    assert math.isnan(contrast.p)
    assert math.isnan(contrast.low)
    assert math.isnan(s.equivalence(contrast, 0.5))
    assert s.verdict("differs", contrast, math.nan) == "NOT TESTED"


def test_equivalence_needs_a_margin() -> None:
    contrast = s.paired_contrast([1.0, 2.0], [1.0, 2.5])
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
    contrast = s.paired_contrast([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert (contrast.difference, contrast.sd) == (0.0, 0.0)
    assert math.isnan(contrast.p)


def test_spread_sample_and_population() -> None:
    # Mean 3; squares 4 + 0 + 4 = 8; sample √(8/2), population √(8/3).
    assert s.spread([1.0, 3.0, 5.0], "sample") == pytest.approx(2.0)
    assert s.spread([1.0, 3.0, 5.0], "population") == pytest.approx(math.sqrt(8 / 3))
    assert s.spread([1.0, math.nan, 3.0, 5.0], "sample") == pytest.approx(2.0)
    assert math.isnan(s.spread([1.0], "population"))


def contrast(difference: float, reach: float, n: int = 3) -> s.Contrast:
    return s.Contrast(n, difference, 1.0, difference - reach, difference + reach, 0.02)


def test_verdicts() -> None:
    below, around = contrast(-1.0, 0.5), contrast(-0.1, 0.5)
    assert s.verdict("less", below, 0.04) == "SUPPORTED"
    assert s.verdict("greater", below, 0.04) == "CONTRADICTED"
    assert s.verdict("differs", below, 0.04) == "SUPPORTED"
    assert s.verdict("less", below, 0.06) == "INCONCLUSIVE"
    assert s.verdict("less", around, 0.04) == "INCONCLUSIVE"
    assert s.verdict("less", around, 0.9, 0.03) == "EQUIVALENT"
    assert s.verdict("less", around, 0.9, 0.07) == "INCONCLUSIVE"
    assert s.verdict("less", contrast(-1.0, 0.5, n=1), 0.01, 0.01) == "NOT TESTED"
