"""The words: each is read off the interval that is printed, and failures take words away."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.statistics.failures import Failures
from reports.statistics.inference import NOTHING, Contrast, equivalence, family, weighted_contrast
from reports.statistics.words import Kind, verdict, word

MARGIN = 0.005
FIRST_FAILED = Failures(5, 10, 0, 10, 5, 0)
SECOND_FAILED = Failures(0, 10, 5, 10, 0, 5)


def contrast(low: float, high: float, n: int = 5) -> Contrast:
    """A contrast of which only the interval and n matter."""
    return Contrast(n, (low + high) / 2, 1.0, low, high, 0.5, n - 1)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.006, 0.008, "worse"),
        (0.001, 0.008, "worse"),
        (-0.008, -0.001, "better"),
        (-0.004, 0.004, "negligible"),
        (0.0009, 0.0030, "negligible but measurably worse"),
        (-0.0030, -0.0009, "negligible but measurably better"),
        (-0.004, 0.006, "unclear"),
        (0.0, 0.004, "negligible"),
        (0.0, 0.006, "unclear"),
        (math.nan, math.nan, "unclear"),
    ],
)
def test_the_word_for_a_difference(low: float, high: float, said: str) -> None:
    assert word(contrast(low, high), MARGIN) == said
    turned = {"better": "worse", "worse": "better"}
    other = " ".join(turned.get(part, part) for part in said.split())
    assert word(contrast(low, high), MARGIN, better="higher") == other
    neutral = {"better": "lower", "worse": "higher"}
    assert word(contrast(low, high), MARGIN, better="none") == " ".join(
        neutral.get(p, p) for p in said.split()
    )
    assert word(contrast(low, high, n=2), MARGIN) == "unclear"


def test_without_a_margin_nothing_is_negligible_but_zero_itself() -> None:
    assert word(contrast(-1e-9, 1e-9), math.nan) == "unclear"
    assert word(contrast(0.0, 0.0), math.nan) == "negligible"
    assert word(contrast(0.0, 0.0, n=2), math.nan) == "unclear"


@pytest.mark.parametrize(
    ("kind", "low", "high", "said"),
    [
        ("less", -0.003, -0.001, "SUPPORTED"),
        ("less", 0.001, 0.003, "REFUTED"),
        ("less", -0.003, 0.001, "OPEN"),
        ("greater", 0.001, 0.003, "SUPPORTED"),
        ("greater", -0.003, -0.001, "REFUTED"),
        ("equivalent", -0.004, 0.004, "SUPPORTED"),
        ("equivalent", 0.001, 0.004, "SUPPORTED"),
        ("equivalent", 0.006, 0.009, "REFUTED"),
        ("equivalent", -0.009, -0.006, "REFUTED"),
        ("equivalent", 0.004, 0.009, "OPEN"),
        ("not_worse", -0.9, 0.004, "SUPPORTED"),
        ("not_worse", 0.0009, 0.0030, "SUPPORTED"),
        ("not_worse", 0.006, 0.009, "REFUTED"),
        ("not_worse", -0.9, 0.006, "OPEN"),
    ],
)
def test_the_verdict_on_a_claim(kind: Kind, low: float, high: float, said: str) -> None:
    assert verdict(kind, contrast(low, high), MARGIN) == said
    assert verdict(kind, contrast(low, high, n=2), MARGIN) == "OPEN"
    if kind == "not_worse":
        assert verdict(kind, contrast(-high, -low), MARGIN, higher_is_better=True) == said


@pytest.mark.parametrize("kind", ["less", "greater", "equivalent", "not_worse"])
def test_nothing_is_decided_by_nothing(kind: Kind) -> None:
    assert verdict(kind, NOTHING, MARGIN) == "OPEN"
    assert word(NOTHING, MARGIN) == "unclear"


def test_differences_of_exactly_zero_are_equivalent() -> None:
    same = weighted_contrast([[4.5, 4.5], [4.6, 4.6], [4.7, 4.7]], [1.0, -1.0])
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
    assert equivalence(same, MARGIN) == 0.0
    assert word(same, MARGIN) == "negligible"
    assert [verdict(kind, same, MARGIN) for kind in ("equivalent", "not_worse", "less", "greater")] == [
        "SUPPORTED", "SUPPORTED", "OPEN", "OPEN",
    ]  # fmt: skip
    assert verdict("equivalent", weighted_contrast([[4.5, 4.5], [4.6, 4.6]], [1.0, -1.0]), MARGIN) == "OPEN"


def test_the_side_that_diverged_more_is_not_called_better_or_as_good() -> None:
    better, same, worse = contrast(-0.009, -0.006), contrast(-0.001, 0.001), contrast(0.006, 0.009)
    assert word(better, MARGIN, failures=FIRST_FAILED) == "unclear"
    assert word(same, MARGIN, failures=FIRST_FAILED) == "unclear"
    assert word(worse, MARGIN, failures=FIRST_FAILED) == "worse"
    for found in (better, same, worse):
        for kind in ("not_worse", "equivalent", "less"):
            assert verdict(kind, found, MARGIN, failures=FIRST_FAILED) != "SUPPORTED"
            assert verdict(kind, found, MARGIN, failures=SECOND_FAILED) != "SUPPORTED" or kind == "less"
    assert verdict("greater", worse, MARGIN, failures=FIRST_FAILED) == "SUPPORTED"
    assert verdict("greater", better, MARGIN, failures=FIRST_FAILED) == "OPEN"
    # The other side survives more often and is better: both say the same.
    assert word(better, MARGIN, failures=SECOND_FAILED) == "better"
    assert word(worse, MARGIN, failures=SECOND_FAILED) == "unclear"
    assert word(same, MARGIN, failures=Failures(3, 10, 3, 10, 2, 2)) == "negligible"


@given(st.lists(st.floats(-0.02, 0.02), min_size=3, max_size=8), st.integers(1, 20))
def test_interval_and_p_agree(differences: list[float], tests: int) -> None:
    """The interval excludes 0 where p is below .05, and lies in the margin where the TOST's is."""
    found = weighted_contrast(np.array(differences)[:, None] + 0.0, [1.0]).corrected(tests)
    if math.isnan(found.p) or not found.sd > 0:
        return
    far = abs(found.p - 0.05) > 1e-9
    assert not far or (found.p < 0.05) == (found.low > 0 or found.high < 0)
    same = equivalence(found, MARGIN)
    inside = found.low > -MARGIN and found.high < MARGIN
    assert abs(same - 0.05) < 1e-9 or (same < 0.05) == inside


def test_a_family_counts_what_can_be_tested() -> None:
    one = weighted_contrast([[0.1], [0.2], [0.4]], [1.0])
    two, none = family([one, NOTHING])
    assert (two.tests, none.n) == (1, 0)
    both = family([one, one])
    assert both[0].p == pytest.approx(2 * one.p)
    assert both[0].high - both[0].low > one.high - one.low
