"""The analysis of variance against statsmodels' full model, its components against mixed models and hand."""

from __future__ import annotations

import itertools
import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from scipy import stats
from statsmodels.formula.api import mixedlm
from statsmodels.stats.anova import AnovaRM

from reports.reading.frames import StudyData, choose_study, load
from reports.statistics.anova import Effect, Variance, analyse, repeated_measures
from reports.statistics.blocks import blocks
from reports.statistics.contrasts import judge_families
from reports.statistics.judgement import judge
from tests import report_fixtures as made
from tests.report_reading import render, section, tables


def published(connection: sa.Connection) -> tuple[StudyData, pd.DataFrame]:
    made.published_study(connection)
    return load(connection, choose_study(connection)[0]), pd.read_csv(made.PUBLISHED_CSV)


def analysis_of(data: StudyData, metric: str = "val_loss") -> Variance:
    found = analyse(data.study, blocks(data, metric))
    assert isinstance(found, Variance), found
    return found


@pytest.mark.parametrize("metric", ["val_loss", "expert_usage_cv", "val_perplexity"])
def test_repeated_measures_are_statsmodels(connection: sa.Connection, metric: str) -> None:
    data, frame = published(connection)
    reference = AnovaRM(frame, metric, "seed", list(made.FACTORS)).fit().anova_table
    found = analysis_of(data, metric)
    assert len(found.effects) == len(reference) == 3
    for effect in found.effects:
        row = reference.loc[":".join(effect.factors)]
        assert (effect.df, effect.error_df) == (row["Num DF"], row["Den DF"])
        assert effect.f == pytest.approx(row["F Value"], rel=1e-6)
        uncorrected = stats.f.sf(effect.f, effect.df, effect.error_df)
        assert uncorrected == pytest.approx(row["Pr > F"], rel=1e-6)
        corrected = stats.f.sf(effect.f, effect.epsilon * effect.df, effect.epsilon * effect.error_df)
        assert effect.p == pytest.approx(corrected)
        assert effect.epsilon == 1 or effect.df > 1


def test_three_factors_and_all_interactions_are_statsmodels() -> None:
    random = np.random.default_rng(0)
    sizes, values = {"a": 3, "b": 2, "c": 2}, random.normal(size=(7, 12))
    levels = list(itertools.product(range(3), range(2), range(2)))
    rows = [
        {"seed": seed, "a": a, "b": b, "c": c, "y": values[seed, i]}
        for seed in range(7)
        for i, (a, b, c) in enumerate(levels)
    ]
    reference = AnovaRM(pd.DataFrame(rows), "y", "seed", list(sizes)).fit().anova_table
    found = repeated_measures(values, sizes)
    assert [":".join(effect.factors) for effect in found.effects] == list(reference.index)
    assert [effect.f for effect in found.effects] == pytest.approx(list(reference["F Value"]))


def test_epsilon_is_greenhouse_and_geissers() -> None:
    # By Box's formula from the covariance matrix of the three levels, which knows no contrasts.
    values = np.random.default_rng(1).normal(size=(8, 3)) * [1.0, 2.0, 5.0]
    s = np.cov(values.T)
    k, mean = 3, s.mean()
    above = k**2 * (np.trace(s) / k - mean) ** 2
    below = (k - 1) * ((s**2).sum() - 2 * k * (s.mean(axis=1) ** 2).sum() + k**2 * mean**2)
    assert repeated_measures(values, {"a": 3}).effects[0].epsilon == pytest.approx(above / below)
    assert 0.5 <= above / below < 1


def test_components_are_those_of_a_mixed_model(connection: sa.Connection) -> None:
    data, frame = published(connection)
    # REML of complete blocks has the same components as the mean squares, where the seed's is not 0.
    fit = mixedlm(
        "y ~ C(noise_std) * C(load_balancing_weight)", frame.assign(y=100 * frame["val_loss"]), groups="seed"
    )
    reference = fit.fit(reml=True)
    found = analysis_of(data)
    assert found.seed == pytest.approx(float(reference.cov_re.iloc[0, 0]) / 1e4, rel=1e-3)
    assert found.residual == pytest.approx(reference.scale / 1e4, rel=1e-3)


def test_components_by_hand(connection: sa.Connection) -> None:
    # Conditions 0 and 1, seeds 42 and 43; values 1, 3 / 2, 8: means of seeds 2 and 5, of conditions 1.5, 5.5.
    study = made.add_study(
        connection, grid={"factors": {"noise_std": [0.0, 0.1]}, "seeds": [42, 43], "baseline": {}}
    )
    for noise, seed, loss in ((0.0, 42, 1.0), (0.1, 42, 3.0), (0.0, 43, 2.0), (0.1, 43, 8.0)):
        made.add_result(
            connection, made.add_job(connection, study, {"noise_std": noise}, seed), val_loss=loss
        )
    found = analysis_of(load(connection, choose_study(connection)[0]))
    # Squares around 3.5: 2 · (2² + 2²) = 16 of conditions, 2 · (1.5² + 1.5²) = 9 of seeds, 29 in all.
    assert [effect.sum_squares for effect in found.effects] == pytest.approx([16.0])
    assert (found.block_sum, found.residual_sum, found.residual_df) == pytest.approx((9.0, 4.0, 1))
    assert found.seed == pytest.approx((9.0 - 4.0) / 2)
    assert found.effects[0].f == pytest.approx(4.0)


def test_an_incomplete_seed_is_left_out(connection: sa.Connection) -> None:
    made.finished_study(connection)
    whole = analysis_of(load(connection, choose_study(connection)[0]))
    job = made.add_job(connection, 1, made.cells(made.FACTORS)[0], 99)
    made.add_result(connection, job, val_loss=100.0)
    assert analysis_of(load(connection, choose_study(connection)[0])) == whole


def eight_cells(connection: sa.Connection, effect: Any, **grid: Any) -> StudyData:
    """2 × 2 × 2 conditions, five seeds, a little noise, and `effect` of a condition."""
    factors = {"noise_std": [0.0, 0.1], "load_balancing_weight": [0.0, 0.1], "top_k": [1, 2]}
    seeds = [1, 2, 3, 4, 5]
    study = made.add_study(connection, grid={"factors": factors, "seeds": seeds, "baseline": {}, **grid})
    random = np.random.default_rng(0)
    for cell in made.cells(factors):
        for seed in seeds:
            loss = 4.0 + 0.01 * seed + effect(cell) + 0.001 * float(random.normal())
            made.add_result(connection, made.add_job(connection, study, cell, seed), val_loss=loss)
    return load(connection, choose_study(connection)[0])


@pytest.mark.slow
def test_a_main_effect_that_one_cell_makes_is_qualified(connection: sa.Connection) -> None:
    claim = {
        "name": "noise harms", "kind": "greater", "metric": "val_loss",
        "compare": {"noise_std": 0.1}, "against": {"noise_std": 0.0},
    }  # fmt: skip
    data = eight_cells(connection, lambda cell: 0.1 * (list(cell.values()) == [0.1, 0.1, 2]), claims=[claim])
    found = analysis_of(data)
    assert [len(effect.factors) for effect in found.effects] == [1, 1, 1, 2, 2, 2, 3]
    assert all(effect.p < 1e-4 for effect in found.effects)
    (judged,) = judge(data)
    assert judged.verdict == "SUPPORTED"
    assert {effect.factors for effect in judged.depends_on} >= {tuple(data.study.factors)}
    assert "Qualified: " in section(render(connection), "Findings")
    families = judge_families(data, data.study.target())
    assert all(f.depends_on for f in families if len(f.family.factors) == 1)
    assert any(len(f.family.factors) == 3 for f in families)


@pytest.mark.slow
def test_an_effect_that_is_the_same_everywhere_is_not(connection: sa.Connection) -> None:
    data = eight_cells(connection, lambda cell: cell["noise_std"])
    assert not any(f.depends_on for f in judge_families(data, data.study.target()))
    assert "Qualified" not in section(render(connection), "Findings")


@pytest.mark.slow
def test_the_section_says_what_each_effect_is_held_against(connection: sa.Connection) -> None:
    published(connection)
    text = section(render(connection), "Analysis of variance")
    rows = tables(text)[0]
    assert [row["Source"] for row in rows] == [
        "noise_std", "load_balancing_weight", "noise_std × load_balancing_weight",
    ]  # fmt: skip
    assert [(row["df"], row["error df"]) for row in rows] == [("2", "4"), ("1", "2"), ("2", "4")]
    assert "Disagreement" not in text
    assert "agree on which effects are below .05" in text


@pytest.mark.parametrize(
    ("step", "said"), [(0.0, "equal within every seed"), (0.5, "every seed has the same differences")]
)
def test_without_a_residual_no_f_is_shown(connection: sa.Connection, step: float, said: str) -> None:
    study = made.add_study(connection, grid={"factors": {"noise_std": [0.0, 0.1]}, "baseline": {}})
    for noise, more in ((0.0, 0.0), (0.1, step)):
        for seed in made.SEEDS:
            job = made.add_job(connection, study, {"noise_std": noise}, seed)
            made.add_result(connection, job, val_loss=4.0 + seed / 7 + more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = section(render(connection), "Analysis of variance")
    assert said in text


@pytest.mark.parametrize("loss", [0.1, 4.6, 1 / 3])
def test_no_digit_of_constant_data_is_rounding(connection: sa.Connection, loss: float) -> None:
    # Effects, spreads and differences that are 0 are printed as 0, whatever each processor rounds to.
    study = made.add_study(connection)
    for cell in made.cells(made.FACTORS):
        for seed in made.SEEDS:
            made.add_result(connection, made.add_job(connection, study, cell, seed), val_loss=loss)
    text = render(connection)
    assert not re.findall(r"\d(?:\.\d+)?e-\d+", text)
    assert "the conditions are equal within every seed" in section(text, "Analysis of variance")


def test_an_effect_of_rounding_alone_is_zero() -> None:
    # Additive in the two factors, and an error that is crossed with neither: their interaction is 0.
    values = np.array(
        [[made.loss_of(cell, seed) for cell in made.cells(made.FACTORS)] for seed in made.SEEDS]
    )
    noise, _, interaction = repeated_measures(values, {"a": 3, "b": 2}).effects
    assert noise.sum_squares > 0.03
    assert interaction.sum_squares == 0.0
    assert np.isnan(interaction.p)


def test_a_seed_component_of_rounding_alone_is_zero() -> None:
    square = 0.1 + 0.2
    effect = Effect(("a",), 1.0, 1, square * 10, 10, 1.0, 1.0, 1.0)
    found = Variance((effect,), 0.3 * 2, seeds=3, conditions=6)
    assert found.block_sum / 2 != found.residual
    assert found.seed == 0.0


def test_why_there_is_none(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    assert (
        "Not possible: no run of noise_std=0.5, load_balancing_weight=0.01 and 1 more has a result"
        in render(connection)
    )
