"""reports/statistics/load.py against scipy and tiny cases worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reports.statistics import load


def test_variation_by_hand_and_by_scipy() -> None:
    # Mean 20, deviations ±10: population sd 10.
    assert load.variation([10, 30]) == pytest.approx(0.5)
    assert load.variation([3, 9, 4, 8]) == pytest.approx(stats.variation([3, 9, 4, 8]))
    assert load.variation([7, 7, 7]) == 0.0
    assert math.isnan(load.variation([0, 0]))


def test_layers_that_lean_to_opposite_sides_cancel_globally_alone() -> None:
    counts = [[10, 30], [30, 10]]
    assert load.global_variation(counts) == 0.0
    assert load.variation(counts).tolist() == [0.5, 0.5]


def test_load_measures_by_hand() -> None:
    assert load.max_violation([10, 20, 30]) == pytest.approx(0.5)
    assert load.max_violation([5, 5]) == 0.0
    assert load.load_entropy([1, 1, 1, 1]) == pytest.approx(math.log(4))
    assert load.load_entropy([1, 3, 0]) == pytest.approx(stats.entropy([1, 3]))
    assert math.copysign(1, load.load_entropy([8, 0])) == 1  # 0, not -0
    assert math.isnan(load.max_violation([0, 0]))
    assert math.isnan(load.load_entropy([0, 0]))


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=16).filter(any), st.integers(1, 50))
def test_load_measures_do_not_depend_on_how_many_tokens_there_were(counts: list[int], factor: int) -> None:
    more = [factor * count for count in counts]
    assert load.variation(more) == pytest.approx(load.variation(counts), abs=1e-12)
    assert load.max_violation(more) == pytest.approx(load.max_violation(counts), abs=1e-12)
    assert load.load_entropy(more) == pytest.approx(load.load_entropy(counts), abs=1e-12)
    assert 0 <= load.load_entropy(counts) <= math.log(len(counts)) + 1e-12
