"""Runs that diverged: counts by hand, McNemar's test by statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from reports.statistics.failures import Failures, count


@pytest.mark.parametrize(
    ("both", "first", "second", "neither"), [(0, 10, 0, 0), (2, 5, 1, 3), (0, 0, 4, 1), (3, 2, 2, 0)]
)
def test_two_conditions_are_mcnemars_exact_test(both: int, first: int, second: int, neither: int) -> None:
    rows = [(1, 1)] * both + [(1, 0)] * first + [(0, 1)] * second + [(0, 0)] * neither
    found = count(rows, np.ones((len(rows), 2)), [1.0, -1.0])
    assert (found.first, found.second) == (both + first, both + second)
    assert (found.more, found.fewer) == (first, second)
    assert found.p == pytest.approx(mcnemar([[both, first], [second, neither]], exact=True).pvalue)
    assert found.balance == np.sign(first - second)


def test_ten_against_none_is_two_in_a_thousand() -> None:
    found = count(np.c_[np.ones(10), np.zeros(10)], np.ones((10, 2)), [1.0, -1.0])
    assert found == Failures(10, 10, 0, 10, 10, 0)
    assert found.p == pytest.approx(2 / 2**10)


def test_what_is_still_to_run_has_not_failed() -> None:
    # Seed 2 of the second condition is queued: the pair says nothing yet, the run that diverged counts.
    found = count([[1, 0], [1, 0]], [[1, 1], [1, 0]], [1.0, -1.0])
    assert found == Failures(2, 2, 0, 1, 1, 0)


def test_an_average_counts_a_seed_once() -> None:
    # Both conditions of the first side diverged in seed 1, one of each side in seed 2.
    found = count([[1, 1, 0, 0], [1, 0, 1, 0]], np.ones((2, 4)), [0.5, 0.5, -0.5, -0.5])
    assert found == Failures(3, 4, 1, 4, 1, 0)


def test_without_failures_there_is_no_test() -> None:
    found = count(np.zeros((5, 2)), np.ones((5, 2)), [1.0, -1.0])
    assert math.isnan(found.p)
    assert not found.any
    assert found.balance == 0
