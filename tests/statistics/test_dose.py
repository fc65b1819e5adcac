"""Dose and response, and two horizons: against numpy and scipy by hand, and what the report says of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from scipy import stats

from reports.figures import style
from reports.figures.comparison import pictures
from reports.figures.layout import read_curves
from reports.output.compare import compare_studies
from reports.output.report import compose
from reports.reading.frames import StudyData, choose_study, load
from reports.statistics.analysis import Options, analyse
from reports.statistics.blocks import blocks
from reports.statistics.dose import Response, dosed, respond
from reports.statistics.dose import fit as fitted
from tests import report_fixtures as made
from tests.report_reading import render, section, tables

LEVELS = [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
SEEDS = (1, 2, 3, 4, 5)
UNIT = 0.2
"""The median of the levels above 0."""


def wobble(seed: int, level: float) -> float:
    """Something that no formula of the fit can follow."""
    return 0.002 * math.sin(13 * seed + 97 * level)


def bent(seed: int, level: float) -> float:
    """Lowest at 0.1, whatever the seed."""
    x = math.log1p(level / UNIT)
    return 4.5 + 0.03 * seed + 0.2 * (x - math.log1p(0.1 / UNIT)) ** 2 + wobble(seed, level)


def straight(seed: int, level: float) -> float:
    return 4.5 + 0.03 * seed + 0.05 * math.log1p(level / UNIT) + wobble(seed, level)


def dose(connection: sa.Connection, loss: Callable[[int, float], float], seeds: Any = SEEDS) -> StudyData:
    grid = {"factors": {"noise_std": LEVELS}, "baseline": {"noise_std": 0.0}, "seeds": list(seeds)}
    study = made.add_study(connection, "dose", grid=grid)
    for level in LEVELS:
        for seed in seeds:
            value = loss(seed, level)
            cell = {"noise_std": level, "load_balancing_weight": 0.01}
            made.finish(connection, study, cell, seed, val_loss=value, val_perplexity=math.exp(value))
    return load(connection, choose_study(connection, "dose")[0])


def fit(data: StudyData) -> Response:
    found = respond(data.study, blocks(data, "val_loss"), "noise_std")
    assert isinstance(found, Response)
    return found


def by_hand(loss: Callable[[int, float], float]) -> tuple[np.ndarray, np.ndarray]:
    """A straight line and a parabola a seed: slopes, and coefficients of x². Shapes: (S,), (S,)."""
    x = np.log1p(np.array(LEVELS) / UNIT)
    rows = [[loss(seed, level) for level in LEVELS] for seed in SEEDS]
    return (
        np.array([stats.linregress(x, row).slope for row in rows]),
        np.array([np.polyfit(x, row, 2)[0] for row in rows]),
    )


def test_lines_and_bends_are_taken_within_seeds(connection: sa.Connection) -> None:
    found = fit(dose(connection, bent))
    assert found.unit == UNIT
    for term, each in zip((found.line, found.bend), by_hand(bent), strict=True):
        reference = stats.ttest_1samp(each, 0.0)
        interval = reference.confidence_interval(0.975)  # two terms, one family
        assert term.n == len(SEEDS)
        assert term.difference == pytest.approx(each.mean(), rel=1e-9)
        assert term.sd == pytest.approx(each.std(ddof=1), rel=1e-9)
        assert term.p == pytest.approx(min(1.0, 2 * reference.pvalue), rel=1e-6)
        assert (term.low, term.high) == pytest.approx((interval.low, interval.high), rel=1e-6)


def test_a_slope_that_differs_from_seed_to_seed_is_not_found() -> None:
    """A slope of 0 on average: at most 5 % of 400 simulated studies, and Monte Carlo error, find one."""
    random, levels = np.random.default_rng(5), np.array(LEVELS)
    wrong = 0
    for _ in range(400):
        slopes = random.normal(size=(5, 1))
        found = fitted("x", levels, slopes * levels + 0.1 * random.normal(size=(5, 8)), SEEDS)
        wrong += min(found.line.p, found.bend.p) < 0.05
    assert wrong / 400 < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_the_curve_is_the_parabola_at_the_mean_seed(connection: sa.Connection) -> None:
    found = fit(dose(connection, bent))
    grid, curve = found.curve()
    x = np.log1p(np.array(LEVELS) / UNIT)
    parabola = np.polyfit(x, found.values.mean(axis=0), 2)
    np.testing.assert_allclose(curve[0], np.polyval(parabola, np.log1p(grid / UNIT)), rtol=1e-9)
    assert (curve[1] < curve[0]).all()
    assert (curve[0] < curve[2]).all()


def test_the_best_level_and_its_interval(connection: sa.Connection) -> None:
    found = fit(dose(connection, bent))
    best = found.best()
    assert best is not None
    x = np.log1p(np.array(LEVELS) / UNIT)
    parabola = np.polyfit(x, found.values.mean(axis=0), 2)
    assert best[0] == pytest.approx(UNIT * math.expm1(-parabola[1] / (2 * parabola[0])), rel=1e-9)
    assert best[0] == pytest.approx(0.1, abs=0.01)
    # Fieller's ends by hand: there the seeds' own slopes just differ from 0.
    for end in best[1:]:
        at = math.log1p(end / UNIT)
        rows = [[bent(seed, level) for level in LEVELS] for seed in SEEDS]
        slopes = [np.polyval(np.polyder(np.polyfit(x, row, 2)), at) for row in rows]
        assert stats.ttest_1samp(slopes, 0.0).pvalue == pytest.approx(0.05, rel=1e-6)
    assert found.best(higher_is_better=True) is None


@pytest.mark.slow
@pytest.mark.parametrize("lowest", [-0.1, 0.0, 1.5])
def test_a_best_level_that_was_not_tried_is_not_named(connection: sa.Connection, lowest: float) -> None:
    def loss(seed: int, level: float) -> float:
        x = math.log1p(level / UNIT)
        return 4.5 + 0.03 * seed + 0.2 * (x - math.log1p(lowest / UNIT)) ** 2 + wobble(seed, level)

    found = fit(dose(connection, loss))
    assert found.bend.p < 0.05
    assert found.best() is None
    assert "no best level is named" in section(render(connection), "Response to noise_std")


def test_a_seed_without_every_level_is_left_out(connection: sa.Connection) -> None:
    data = dose(connection, bent)
    whole = fit(data)
    for table in ("results", "measures"):
        connection.execute(sa.text(f"DELETE FROM {table} WHERE job_id = 1"))
    connection.execute(sa.text("UPDATE jobs SET status = 'queued', finished_at = NULL WHERE id = 1"))
    found = fit(load(connection, choose_study(connection)[0]))
    assert found.seeds == (2, 3, 4, 5)
    np.testing.assert_array_equal(found.values, whole.values[1:])


def test_other_factors_are_averaged_over_within_a_seed(connection: sa.Connection) -> None:
    factors = {"noise_std": [0.0, 0.1, 0.2, 0.3], "load_balancing_weight": [0.0, 0.01]}
    study = made.add_study(connection, grid={"factors": factors, "baseline": {}, "seeds": [1, 2]})
    for cell in made.cells(factors):
        for seed in (1, 2):
            loss = bent(seed, cell["noise_std"]) + 100 * cell["load_balancing_weight"] * seed
            made.finish(connection, study, cell, seed, val_loss=loss)
    found = fit(load(connection, choose_study(connection)[0]))
    expected = [[bent(seed, level) + 0.5 * seed for level in factors["noise_std"]] for seed in (1, 2)]
    np.testing.assert_allclose(found.values, expected)


@pytest.mark.slow
def test_the_report_says_the_shape_and_a_best_level_only_with_a_bend(connection: sa.Connection) -> None:
    dose(connection, bent)
    text = section(render(connection), "Response to noise_std")
    assert "SUPPORTED: val_loss rises with noise_std on the whole. SUPPORTED: the response bends" in text
    assert "it is best near 0.10" in text
    levels, terms = tables(text)
    assert [row["noise_std"] for row in levels] == ["0", "0.02", "0.05", "0.1", "0.2", "0.3", "0.5", "1"]
    assert {row["n"] for row in levels} == {"5"}
    losses = [bent(seed, 0.3) for seed in SEEDS]
    assert levels[5]["Mean"] == f"{np.mean(losses):.4f}"
    assert [row["Term"] for row in terms] == ["straight line", "bend"]
    assert "x = ln(1 + noise\\_std / 0.2)" in text or "x = ln(1 + noise_std / 0.2)" in text


@pytest.mark.slow
def test_without_a_bend_no_best_level_is_named(connection: sa.Connection) -> None:
    dose(connection, straight)
    text = section(render(connection), "Response to noise_std")
    assert (
        "SUPPORTED: val_loss rises with noise_std on the whole. OPEN: whether the response bends; no" in text
    )


@pytest.mark.parametrize(
    ("loss", "seeds", "why"),
    [
        (bent, (1,), "Not fitted: 1 seed with every level finished; two are needed."),
        (lambda seed, level: 4.0 + seed, (1, 2), "Not fitted: the levels are equal within every seed"),
        (
            lambda seed, level: 4.0 + seed / 7 + math.log1p(level / UNIT) / 3,
            (1, 2),
            "OPEN: whether val_loss rises or falls with noise_std on the whole",
        ),
    ],
)
def test_what_cannot_be_fitted_is_said(
    connection: sa.Connection, loss: Callable[[int, float], float], seeds: tuple[int, ...], why: str
) -> None:
    dose(connection, loss, seeds)
    assert why in section(render(connection), "Response to noise_std")


@pytest.mark.parametrize("levels", [[0.0, 0.1, 0.5], ["a", "b", "c", "d"], [-1.0, 0.0, 1.0, 2.0]])
def test_few_levels_names_and_numbers_below_zero_have_no_dose(
    connection: sa.Connection, levels: list[Any]
) -> None:
    made.add_study(connection, grid={"factors": {"x": levels}})
    assert dosed(choose_study(connection)[0]) == []


@pytest.mark.slow
def test_the_figure_shows_points_means_and_curve(connection: sa.Connection) -> None:
    data = dose(connection, bent)
    report = compose(analyse(data, Options()), partial(pictures, read_curves(connection, data)))
    picture = next(p for p in report.pictures if p.name == "response-noise_std")
    figure = picture.draw()
    lines = figure.axes[0].get_lines()
    _, seeds, _ = lines  # the curve, the seeds, their means
    np.testing.assert_allclose(seeds.get_ydata(), fit(data).values.ravel())
    np.testing.assert_allclose(lines[-1].get_ydata(), fit(data).values.mean(axis=0))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][-1] == "1"
    assert style.save(figure, "svg") == style.save(picture.draw(), "svg")


# Horizons


HORIZONS = {"noise_std": [0.0, 0.5], "load_balancing_weight": [0.01, 0.0], "steps": [400, 4000]}


def long_study(
    connection: sa.Connection, effect: dict[int, float], name: str = "long", **factors: list[Any]
) -> None:
    """Noise 0.5 adds `effect` at each horizon, a little else by seed."""
    chosen = {**HORIZONS, **factors}
    baseline = {factor: levels[0] for factor, levels in chosen.items()}
    study = made.add_study(connection, name, grid={"factors": chosen, "baseline": baseline})
    for cell in made.cells(chosen):
        for seed in made.SEEDS:
            steps, noisy = int(cell["steps"]), cell["noise_std"] == 0.5
            loss = 5.0 - 0.1 * math.log(steps) + 0.02 * seed + noisy * effect[steps]
            loss += 0.001 * math.sin(seed * 7 + steps + 3 * noisy + 50 * cell["load_balancing_weight"])
            tokens = steps * 24 * 512
            values = {"val_loss": loss, "train_loss_last_100": loss - 0.2, "tokens_seen": tokens}
            job = made.finish(connection, study, cell, seed, **values, unique_tokens=12_288_000)
            for step in range(100, steps + 1, steps // 4):
                made.add_metric(connection, job, "loss", 6.0 - step / 4000, step=step, split="train")


@pytest.mark.slow
def test_each_horizon_says_what_it_saw(connection: sa.Connection) -> None:
    long_study(connection, {400: 0.1, 4000: 0.1})
    seen, compared = tables(section(render(connection), "Horizons"))
    assert [(row["steps"], row["n"], row["Tokens seen"], row["Epochs"]) for row in seen] == [
        ("400", "12", "4,915,200", "0.4"),
        ("4000", "12", "49,152,000", "4.0"),
    ]
    assert float(seen[0]["Val loss"]) - float(seen[0]["Train loss, last 100 steps"]) == pytest.approx(0.2)
    assert [row["Contrast"] for row in compared] == [
        "noise_std 0.5 - 0.0",
        "load_balancing_weight 0.0 - 0.01",
    ]


@pytest.mark.parametrize(
    ("effect", "sign", "sentence"),
    [
        ({400: 0.1, 4000: 0.1}, "the same", "No difference has opposite signs"),
        (
            {400: 0.1, 4000: -0.1},
            "opposite, SUPPORTED",
            "SUPPORTED: opposite effects at the two horizons",
        ),
        ({400: 1e-5, 4000: -0.1}, "opposite, OPEN", "OPEN: opposite signs"),
    ],
)
def test_a_reversal_is_a_difference_of_differences(
    connection: sa.Connection, effect: dict[int, float], sign: str, sentence: str
) -> None:
    long_study(connection, effect, load_balancing_weight=[0.01])
    text = section(render(connection), "Horizons")
    row = tables(text)[1][0]
    assert row["Sign"] == sign
    assert sentence in text
    data = load(connection, choose_study(connection)[0])
    values = {
        (run["noise_std"], run["steps"], run["seed"]): run["val_loss"] for run in data.done.to_dict("records")
    }
    short, long = (
        np.array([values[0.5, steps, seed] - values[0.0, steps, seed] for seed in made.SEEDS])
        for steps in (400, 4000)
    )
    assert float(row["At 400"]) == pytest.approx(short.mean(), abs=5e-5)
    assert float(row["Later - earlier"]) == pytest.approx((long - short).mean(), abs=5e-5)
    assert float(row["p"]) == pytest.approx(stats.ttest_rel(long, short).pvalue, rel=0.05, abs=5e-5)


@pytest.mark.slow
def test_learning_curves_have_two_lengths(connection: sa.Connection) -> None:
    long_study(connection, {400: 0.1, 4000: 0.1})
    data = load(connection, choose_study(connection)[0])
    report = compose(analyse(data, Options()), partial(pictures, read_curves(connection, data)))
    learning = next(p for p in report.pictures if p.name == "learning")
    figure = learning.draw()
    ends = [max(max(line.get_xdata()) for line in axes.get_lines()) for axes in figure.axes[:4]]
    titles = [axes.get_title(loc="left") for axes in figure.axes[:4]]
    assert [("steps=4000" in title, end > 400) for title, end in zip(titles, ends, strict=True)] == [
        (long, long) for long in (False, True, False, True)
    ]


def test_a_study_of_one_length_has_no_horizons(connection: sa.Connection) -> None:
    made.finished_study(connection)
    assert "## Horizons" not in render(connection)


@pytest.mark.slow
def test_two_studies_of_different_horizons_compare(connection: sa.Connection) -> None:
    long_study(connection, {400: 0.1}, "short", steps=[400])
    long_study(connection, {4000: -0.1}, "long", steps=[4000])
    # A grid of one length has no factor for it: its steps are in the configuration alone.
    for name in ("short", "long"):
        connection.execute(
            sa.text(
                "UPDATE studies SET grid = json_remove(grid, '$.factors.steps', '$.baseline.steps') "
                "WHERE name = :name"
            ),
            {"name": name},
        )
    text = compare_studies(connection, "short", "long")
    effects = tables(section(text, "Effects side by side"))[0]
    row = next(r for r in effects if "noise_std=0.5, load_balancing_weight=0.01" in r["Condition"])
    assert float(row["Difference, short"]) == pytest.approx(0.1, abs=0.002)
    assert float(row["Difference, long"]) == pytest.approx(-0.1, abs=0.002)
    signs = {r["Condition"]: r["Signs"] for r in effects}
    assert signs[row["Condition"]] == "opposite"
    assert len(tables(section(text, "Conditions side by side"))[0]) == 4
