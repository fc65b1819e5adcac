"""Runs that diverged: counts by hand, McNemar's test by statsmodels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from statsmodels.stats.contingency_tables import mcnemar

from reports.reading.frames import choose_study, load
from reports.statistics.failures import Failures, count
from reports.statistics.judgement import judge
from tests import report_fixtures as made
from tests.report_reading import render, section, tables


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


LEVELS = {"compare": {"noise_std": 0.5}, "against": {"noise_std": 0.0}, "metric": "val_loss"}
CLAIMS = [
    {"name": "at least as well", "kind": "not_worse", **LEVELS},
    {"name": "the same", "kind": "equivalent", **LEVELS},
    {"name": "better", "kind": "less", **LEVELS},
]


def ten_seeds(connection: sa.Connection, lost: int, cause: str = "diverged", gain: float = 0.01) -> None:
    """Noise 0.5 is better wherever it finishes; in its first `lost` seeds it ends without a result."""
    grid = {
        "factors": {"noise_std": [0.0, 0.5]}, "baseline": {"noise_std": 0.0},
        "seeds": list(range(10)), "claims": CLAIMS,
    }  # fmt: skip
    study = made.add_study(connection, grid=grid)
    random = np.random.default_rng(3)
    for seed in range(10):
        loss = 4.0 + 0.1 * seed
        made.add_result(connection, made.add_job(connection, study, {"noise_std": 0.0}, seed), val_loss=loss)
        state = "failed" if seed < lost else "done"
        job = made.add_job(connection, study, {"noise_std": 0.5}, seed, state)
        if seed < lost:
            made.add_attempt(connection, job, outcome="failed", cause=cause, message="x", charged=1)
        else:
            made.add_result(connection, job, val_loss=loss - gain + 0.0005 * random.normal())


def test_five_of_ten_that_diverged_are_not_as_good(tmp_path: Path) -> None:
    with made.opened(tmp_path) as connection:
        ten_seeds(connection, 5)
        judged = judge(load(connection, choose_study(connection)[0]))
        assert [(j.verdict, j.word, j.contrast.n) for j in judged] == [("OPEN", "unclear", 5)] * 3
        text = section(render(connection), "Findings")
    assert "noise_std=0.5 diverged in 5 of 10 runs, the baseline in 0 of 10" in text
    assert "exact McNemar p 0.0625" in text
    assert {row["Diverged"] for row in tables(text)[0]} == {"5/10 against 0/10"}
    assert "PROVISIONAL: " not in text.split("\n|")[0]


def test_ten_of_ten_is_a_finding(tmp_path: Path) -> None:
    with made.opened(tmp_path) as connection:
        ten_seeds(connection, 10)
        text = section(render(connection), "Findings")
    assert "diverged in 10 of 10 runs, the baseline in 0 of 10: it diverges more often" in text
    assert "exact McNemar p 0.0020" in text
    assert "SUPPORTED" not in text.split("\n|")[0]


def test_what_failed_for_another_cause_is_missing_not_diverged(tmp_path: Path) -> None:
    with made.opened(tmp_path) as connection:
        ten_seeds(connection, 5, cause="oom")
        judged = judge(load(connection, choose_study(connection)[0]))
        assert [j.verdict for j in judged] == ["SUPPORTED", "REFUTED", "SUPPORTED"]
        assert {j.failures.any for j in judged} == {False}
        assert "diverged in" not in render(connection)


@pytest.mark.slow
def test_an_empty_condition_does_not_void_the_other_contrasts(tmp_path: Path) -> None:
    with made.opened(tmp_path) as connection:
        made.unfinished_study(connection)
        ended = "status = 'cancelled', finished_at = 1, owner = NULL, lease_expires_at = NULL"
        connection.execute(sa.text(f"UPDATE jobs SET {ended} WHERE status IN ('queued', 'running')"))
        text = section(render(connection), "Paired contrasts")
    rows = {row["Contrast"]: row for table in tables(text) for row in table}
    # Noise 0.5 is empty with either weight; the weights are compared over the other two levels.
    name = "load_balancing_weight 0.0 - 0.01 (without noise_std=0.5, load_balancing_weight=0.0; noise_std=0.5"
    assert rows[f"{name}, load_balancing_weight=0.01)"]["n"] == "2"
    assert rows["noise_std 0.1 - 0.0"]["n"] == "2"
