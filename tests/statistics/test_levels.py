"""The best level of a factor: means and intervals against scipy and numpy, and what the report says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sqlalchemy as sa
from scipy import stats

from reports.reading.frames import choose_study, load
from reports.statistics.blocks import blocks
from reports.statistics.levels import Levels, rank
from tests import report_fixtures as made
from tests.report_reading import render, section, tables

SEEDS = (1, 2, 3, 4, 5)
NOISE, WEIGHTS = made.FACTORS["noise_std"], made.FACTORS["load_balancing_weight"]


def loss(noise: float, weight: float, seed: int) -> float:
    """0.1 is best, little better than 0.0, and 0.5 clearly worst; no two differences are alike."""
    centre = {0.0: 0.004, 0.1: 0.0, 0.5: 0.1}[noise]
    return 4.5 + 0.03 * seed + centre + 0.05 * weight + 0.004 * math.sin(13 * seed + 97 * noise + 7 * weight)


def study(connection: sa.Connection, diverged: float | None = None) -> None:
    """Every run done, but the seeds 4 and 5 of one level, which diverged."""
    made.add_study(connection, grid={"seeds": list(SEEDS)})
    for cell in made.cells(made.FACTORS):
        for seed in SEEDS:
            if cell["noise_std"] == diverged and seed > 3:
                job = made.add_job(connection, 1, cell, seed, "failed", failures=1)
                made.add_attempt(connection, job, outcome="failed", cause="diverged", charged=1)
            else:
                value = loss(cell["noise_std"], cell["load_balancing_weight"], seed)
                made.finish(connection, 1, cell, seed, val_loss=value)


def ranked(connection: sa.Connection, factor: str, higher_is_better: bool = False) -> Levels:
    data = load(connection, choose_study(connection, None)[0])
    found = rank(data.study, blocks(data, "val_loss"), factor, higher_is_better)
    assert isinstance(found, Levels), found
    return found


def by_seed(noise: float, seeds: tuple[int, ...] = SEEDS) -> np.ndarray:
    return np.array([np.mean([loss(noise, weight, seed) for weight in WEIGHTS]) for seed in seeds])


def test_means_and_intervals_are_those_of_scipy(connection: sa.Connection) -> None:
    study(connection)
    found = ranked(connection, "noise_std")
    assert found.means == pytest.approx([by_seed(noise).mean() for noise in NOISE])
    assert found.levels[found.best] == 0.1
    for i, first in enumerate(NOISE):
        for j, second in enumerate(NOISE):
            if i == j:
                continue
            test = stats.ttest_rel(by_seed(first), by_seed(second))
            reach = test.confidence_interval(1 - 0.05 / 3)  # three pairs
            got = found.differences[i, j]
            assert (got.low, got.high) == pytest.approx((reach.low, reach.high))
            assert got.p == pytest.approx(min(1.0, 3 * test.pvalue))
            assert (second in found.beaten(i)) == (reach.high < 0)
    assert found.beaten(1)[-1] == found.beaten(0)[-1] == 0.5
    assert found.beaten(2) == []


def test_the_best_is_the_highest_where_higher_is_better(connection: sa.Connection) -> None:
    study(connection)
    found = ranked(connection, "noise_std", higher_is_better=True)
    assert found.levels[found.best] == 0.5
    assert found.beaten(2) == [0.0, 0.1]


def test_the_table_agrees_with_the_paired_contrasts(connection: sa.Connection) -> None:
    study(connection)
    text = render(connection)
    noise, _ = tables(section(text, "Best level"))
    assert [row["noise_std"] for row in noise] == ["0.0", "0.1 (best)", "0.5"]
    contrasts = [row for table in tables(section(text, "Paired contrasts")) for row in table]
    same = next(row for row in contrasts if row["Contrast"] == "noise_std 0.5 - 0.1")
    for column in ("Difference", "95 % interval, together", "n"):
        mine = "Difference to the best" if column == "Difference" else column
        assert noise[2][mine] == same[column]
    assert "0.5" in noise[1]["Surely better than"]


def test_a_level_that_diverged_more_often_is_set_aside_and_said(connection: sa.Connection) -> None:
    study(connection, diverged=0.1)
    found = ranked(connection, "noise_std")
    assert found.levels == (0.0, 0.5)  # 0.1 has the best mean of those that survived
    assert found.means == pytest.approx([by_seed(0.0).mean(), by_seed(0.5).mean()])
    assert found.diverged == {0.1: (4, 10)}
    assert "0.1 is not compared: 4 of 10 of its runs diverged" in section(render(connection), "Best level")


def test_incomplete_seeds_are_dropped_and_a_missing_condition_leaves_its_combination_out(
    connection: sa.Connection,
) -> None:
    study(connection)
    jobs = made.schema.jobs
    connection.execute(sa.delete(made.schema.results).where(made.schema.results.c.job_id == 1))
    connection.execute(sa.update(jobs).where(jobs.c.id == 1).values(status="cancelled"))
    found = ranked(connection, "noise_std")
    assert found.means == pytest.approx([by_seed(noise, SEEDS[1:]).mean() for noise in NOISE])
    gone = range(1, 6)  # noise 0.0 with the first weight
    connection.execute(sa.delete(made.schema.results).where(made.schema.results.c.job_id.in_(gone)))
    connection.execute(sa.update(jobs).where(jobs.c.id.in_(gone)).values(status="cancelled"))
    found = ranked(connection, "noise_std")
    alone = [[loss(noise, WEIGHTS[1], seed) for seed in SEEDS] for noise in NOISE]
    assert found.means == pytest.approx(np.mean(alone, axis=1))
    assert found.strata == (1, 2)


@pytest.mark.slow
def test_a_measure_that_has_no_better_has_no_best_level(connection: sa.Connection) -> None:
    study(connection)
    assert "## Best level" in render(connection)
    assert "## Best level" not in render(connection, metric="expert_usage_cv")
