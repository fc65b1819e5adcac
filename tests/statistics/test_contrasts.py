"""Families of contrasts and declared claims: weights by hand, numbers by scipy and statsmodels, verdicts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from scipy import stats
from statsmodels.stats.multitest import multipletests

from reports.reading.frames import StudyData, choose_study, load
from reports.statistics import families
from reports.statistics.contrasts import judge_families
from reports.statistics.judgement import judge
from tests import report_fixtures as made
from tests.report_reading import render, section, tables

LEVELS: dict[str, Any] = {"compare": {"noise_std": 0.5}, "against": {"noise_std": 0.0}}


def data_of(connection: sa.Connection) -> StudyData:
    return load(connection, choose_study(connection)[0])


def claim(kind: str, metric: str = "val_loss", **values: Any) -> dict[str, Any]:
    return {"name": kind, "kind": kind, "metric": metric, **LEVELS, **values}


def loss_of(cell: dict[str, Any], seed: int) -> float:
    """The fixtures' loss, and a little that no two runs share."""
    noise, weight = cell["noise_std"], cell["load_balancing_weight"]
    return made.loss_of(cell, seed) + 0.01 * math.sin(7 * seed + 130 * noise + 2900 * weight)


def losses() -> dict[tuple[float, float], np.ndarray]:
    return {
        tuple(cell.values()): np.array([loss_of(cell, seed) for seed in made.SEEDS])
        for cell in made.cells(made.FACTORS)
    }


def varied_study(connection: sa.Connection, **values: Any) -> None:
    study = made.add_study(connection, **values)
    for cell in made.cells(made.FACTORS):
        for seed in made.SEEDS:
            loss = loss_of(cell, seed)
            made.finish(connection, study, cell, seed, val_loss=loss, val_accuracy=0.7 - loss / 10)


def test_weights_by_hand(connection: sa.Connection) -> None:
    made.finished_study(connection)
    study = data_of(connection).study
    averaged = families.difference(study, {"noise_std": 0.5}, {"noise_std": 0.0})
    assert averaged == {(0.5, 0.01): 0.5, (0.5, 0.0): 0.5, (0.0, 0.01): -0.5, (0.0, 0.0): -0.5}
    crossed = families.difference(
        study, {"noise_std": 0.5}, {"noise_std": 0.0}, {"load_balancing_weight": (0.0, 0.01)}
    )
    assert crossed == {(0.5, 0.0): 1.0, (0.5, 0.01): -1.0, (0.0, 0.0): -1.0, (0.0, 0.01): 1.0}
    assert families.difference(study, {"noise_std": 9.0}, {"noise_std": 0.0}) == {}


def test_the_families_of_a_factorial(connection: sa.Connection) -> None:
    made.finished_study(connection)
    data = data_of(connection)
    found = judge_families(data, data.study.target())
    assert [(f.family.name.split(":")[0], len(f.tested)) for f in found] == [
        ("Each condition against the baseline", 5),
        ("Levels of noise_std, averaged over load_balancing_weight", 3),
        ("Levels of load_balancing_weight, averaged over noise_std", 1),
        ("Simple effects", 9),
        ("Interaction of noise_std and load_balancing_weight", 3),
    ]
    for family in found:
        for tested in family.tested:
            assert math.isclose(sum(tested.comparison.weights.values()), 0.0, abs_tol=1e-12)


def test_every_family_against_scipy_and_statsmodels(connection: sa.Connection) -> None:
    varied_study(connection)
    by_cell, data = losses(), data_of(connection)
    for family in judge_families(data, data.study.target()):
        differences = [
            sum(weight * by_cell[cell] for cell, weight in tested.comparison.weights.items())
            for tested in family.tested
        ]
        p = [stats.ttest_1samp(difference, 0).pvalue for difference in differences]
        adjusted = multipletests(p, method="bonferroni")[1]
        level = 1 - 0.05 / len(p)
        for tested, difference, corrected in zip(family.tested, differences, adjusted, strict=True):
            interval = stats.ttest_1samp(difference, 0).confidence_interval(level)
            assert tested.contrast.difference == pytest.approx(difference.mean(), rel=1e-9)
            assert tested.contrast.sd == pytest.approx(difference.std(ddof=1), rel=1e-9)
            assert (tested.contrast.low, tested.contrast.high) == pytest.approx(tuple(interval), rel=1e-9)
            assert tested.contrast.p == pytest.approx(corrected, rel=1e-9)


@pytest.mark.slow
def test_a_family_of_too_many_tests_is_named_not_printed(connection: sa.Connection) -> None:
    factors = {"noise_std": [i / 10 for i in range(9)], "load_balancing_weight": [0.0, 0.1, 0.2, 0.3]}
    study = made.add_study(connection, grid={"factors": factors, "baseline": {}, "seeds": [1, 2]})
    for cell in made.cells(factors):
        for seed in (1, 2):
            made.finish(connection, study, cell, seed)
    text = section(render(connection), "Paired contrasts")
    assert "Not shown, for more than 60 tests: Simple effects" in text
    # With nine levels each is compared with the baseline's alone: 8 × 4 + 6 × 9 simple effects.
    assert ": 86 tests" in text
    assert "noise_std 0.8 - 0.0" in text
    assert "noise_std 0.8 - 0.7" not in text


def test_a_study_of_one_factor_has_its_levels(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"noise_std": [0.0, 0.1]}, "baseline": {}})
    for noise in (0.0, 0.1):
        for seed in made.SEEDS:
            made.finish(connection, study, {"noise_std": noise, "load_balancing_weight": 0.0}, seed)
    text = render(connection)
    assert len(tables(section(text, "Paired contrasts"))) == 1
    assert "noise_std 0.1 - 0.0: unclear, val_loss" in section(text, "Findings")


def test_claims_are_one_family(connection: sa.Connection) -> None:
    claims = [
        claim("greater"),
        claim("less"),
        claim("equivalent"),
        claim("not_worse", "val_accuracy", margin=0.01),
    ]
    varied_study(connection, grid={"claims": claims})
    judged = judge(data_of(connection))
    by_cell = losses()
    difference = (by_cell[0.5, 0.01] + by_cell[0.5, 0.0] - by_cell[0.0, 0.01] - by_cell[0.0, 0.0]) / 2
    # The accuracy of the fixture is 0.7 - loss / 10, and higher is better.
    for found, values in zip(judged, [difference] * 3 + [-difference / 10], strict=True):
        interval = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / 4)
        assert (found.contrast.low, found.contrast.high) == pytest.approx(tuple(interval))
    assert [j.word for j in judged] == ["worse"] * 4
    assert [j.verdict for j in judged] == ["SUPPORTED", "REFUTED", "REFUTED", "OPEN"]


def test_findings_are_sentences_with_their_numbers(connection: sa.Connection) -> None:
    crossed = claim("equivalent", interaction={"load_balancing_weight": [0.0, 0.01]}, name="The same")
    varied_study(connection, grid={"claims": [{**claim("greater"), "name": "High noise harms"}, crossed]})
    text = section(render(connection), "Findings")
    difference = np.mean([losses()[0.5, w] - losses()[0.0, w] for w in (0.01, 0.0)], axis=0)
    assert (
        "SUPPORTED: High noise harms. noise_std=0.5 against noise_std=0.0: worse, "
        f"val_loss +{difference.mean():.4f}" in text
    )
    assert f"+{100 * math.expm1(difference.mean()):.2f} % of the PPL" in text
    assert "n = 3 seeds)" in text
    assert (
        ": The same. (noise_std=0.5 against noise_std=0.0) at load_balancing_weight=0.0 against the" in text
    )


def test_a_claim_whose_difference_does_not_vary_is_open(connection: sa.Connection) -> None:
    made.finished_study(connection, grid={"claims": [claim("greater")]})
    text = section(render(connection), "Findings")
    assert "OPEN: greater. noise_std=0.5 against noise_std=0.0: unclear, val_loss +0.1000" in text
    assert "the same difference in every seed: no test is possible; n = 3 seeds" in text


def test_claims_on_what_was_not_recorded_are_open(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    made.add_study(
        connection,
        "later",
        created_at=made.START + 9,
        grid={"claims": [claim("less"), claim("less", "expert_usage_cv_layer_max", name="x")]},
    )
    made.add_job(connection, 2, made.cells(made.FACTORS)[0], 42, "queued")
    text = section(render(connection, "later"), "Findings")
    assert text.count("to come. OPEN: ") == 2
    assert "no seed has every condition of it with val_loss." in text
