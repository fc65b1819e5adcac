"""The analysis of variance against statsmodels' full model, its components against mixed models and hand."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from statsmodels.formula.api import mixedlm, ols
from statsmodels.stats.anova import anova_lm

from reports.reading.frames import StudyData, choose_study, load
from reports.statistics.anova import Effect, Variance, analyse
from reports.statistics.blocks import blocks
from tests import report_fixtures as made
from tests.report_reading import render, section, tables


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sa.Connection]:
    with made.opened(tmp_path) as connection:
        yield connection


def published(connection: sa.Connection) -> tuple[StudyData, pd.DataFrame]:
    made.published_study(connection)
    return load(connection, choose_study(connection)[0]), pd.read_csv(made.PUBLISHED_CSV)


def analysis_of(data: StudyData, metric: str = "val_loss") -> Variance:
    found = analyse(data.study, blocks(data, metric))
    assert isinstance(found, Variance), found
    return found


@pytest.mark.parametrize("metric", ["val_loss", "expert_usage_cv", "val_perplexity"])
def test_type_two_sums_with_seeds_as_columns(connection: sa.Connection, metric: str) -> None:
    data, frame = published(connection)
    model = ols(f"{metric} ~ C(noise_std) * C(load_balancing_weight) + C(seed)", frame).fit()
    reference = anova_lm(model, typ=2)
    found = analysis_of(data, metric)
    order = ["C(noise_std)", "C(load_balancing_weight)", "C(noise_std):C(load_balancing_weight)", "C(seed)"]
    for name, effect in zip(order, [*found.effects, found.block], strict=True):
        assert effect.sum_squares == pytest.approx(reference.loc[name, "sum_sq"], rel=1e-8)
        assert effect.df == reference.loc[name, "df"]
        assert effect.f == pytest.approx(reference.loc[name, "F"], rel=1e-7)
        assert effect.p == pytest.approx(reference.loc[name, "PR(>F)"], rel=1e-6)
    assert found.residual_df == reference.loc["Residual", "df"]
    assert found.residual_sum == pytest.approx(reference.loc["Residual", "sum_sq"], rel=1e-8)


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
    assert (found.block.sum_squares, found.residual_sum, found.residual_df) == pytest.approx((9.0, 4.0, 1))
    assert found.seed == pytest.approx((9.0 - 4.0) / 2)
    assert found.effects[0].f == pytest.approx(4.0)


def test_an_incomplete_seed_is_left_out(connection: sa.Connection) -> None:
    made.finished_study(connection)
    whole = analysis_of(load(connection, choose_study(connection)[0]))
    job = made.add_job(connection, 1, made.cells(made.FACTORS)[0], 99)
    made.add_result(connection, job, val_loss=100.0)
    assert analysis_of(load(connection, choose_study(connection)[0])) == whole


def test_a_third_factor_leaves_its_interaction_in_the_residual(connection: sa.Connection) -> None:
    factors = {"noise_std": [0.0, 0.1], "load_balancing_weight": [0.0, 0.1], "top_k": [1, 2]}
    study = made.add_study(connection, grid={"factors": factors, "seeds": [1, 2, 3], "baseline": {}})
    random, rows = np.random.default_rng(0), []
    for cell in made.cells(factors):
        for seed in (1, 2, 3):
            loss = float(random.normal())
            made.add_result(connection, made.add_job(connection, study, cell, seed), val_loss=loss)
            rows.append({**cell, "seed": seed, "y": loss})
    formula = "y ~ (C(noise_std) + C(load_balancing_weight) + C(top_k)) ** 2 + C(seed)"
    reference = anova_lm(ols(formula, pd.DataFrame(rows)).fit(), typ=2)
    found = analysis_of(load(connection, choose_study(connection)[0]))
    assert sorted(e.sum_squares for e in found.effects) == pytest.approx(
        sorted(reference["sum_sq"].drop(["C(seed)", "Residual"]))
    )
    assert found.residual_df == reference.loc["Residual", "df"] == 24 - 1 - 6 - 2


def test_the_section_says_where_it_disagrees(connection: sa.Connection) -> None:
    published(connection)
    text = section(render(connection), "Analysis of variance")
    rows = tables(text)[0]
    assert [row["Source"] for row in rows] == [
        "noise_std", "load_balancing_weight", "noise_std × load_balancing_weight", "seed (block)", "residual",
    ]  # fmt: skip
    assert "Disagreement" not in text
    assert "agree on which effects are below .05" in text
    # Without balancing seeds lose 1, 2 and 6 more: three differences of one sign say little, while the
    # analysis of variance spreads them over the ten degrees of freedom of all conditions.
    study = made.add_study(connection, "later", created_at=made.START + 9)
    for cell in made.cells(made.FACTORS):
        for seed, more in zip(made.SEEDS, (0.01, 0.02, 0.06), strict=True):
            loss = 4.5 + cell["noise_std"] + more * (cell["load_balancing_weight"] == 0)
            made.add_result(connection, made.add_job(connection, study, cell, seed), val_loss=loss)
    text = section(render(connection, "later"), "Analysis of variance")
    assert "Disagreement on load_balancing_weight: the analysis of variance has p" in text


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


def test_an_effect_of_rounding_alone_is_zero(connection: sa.Connection) -> None:
    # Additive in the two factors, and a residual that is crossed with neither: their interaction is 0.
    study = made.add_study(connection)
    for cell in made.cells(made.FACTORS):
        for seed in made.SEEDS:
            job = made.add_job(connection, study, cell, seed)
            made.add_result(connection, job, val_loss=made.loss_of(cell, seed))
    found = analysis_of(load(connection, choose_study(connection)[0]))
    noise, _, interaction = found.effects
    assert noise.sum_squares > 0.03
    assert (interaction.sum_squares, interaction.f, interaction.p) == (0.0, 0.0, 1.0)


def test_a_seed_component_of_rounding_alone_is_zero() -> None:
    square = 0.1 + 0.2
    block = Effect(("seed",), 0.3 * 2, 2, 1.0, 1.0)
    found = Variance((), block, square * 10, 10, seeds=3, conditions=6)
    assert block.sum_squares / block.df != found.residual
    assert found.seed == 0.0


def test_why_there_is_none(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    assert "Not possible: 0 seeds with every condition finished" in render(connection)
