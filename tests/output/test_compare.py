"""Two studies side by side: what matches, what differs, numbers by scipy."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import sqlalchemy as sa
from scipy import stats

from model.config import ConfigError
from reports.output.compare import compare_studies
from reports.reading.units import UnknownOption
from tests import report_fixtures as made
from tests.report_reading import section, tables


@pytest.mark.slow
def test_published_against_ours(connection: sa.Connection) -> None:
    made.published_study(connection)
    made.finished_study(connection, "ours")
    text = compare_studies(connection, "published", "ours")
    assert compare_studies(connection, "published", "ours") == text
    assert "The texts are not the same" in text
    assert "The protocols differ (published, sound)" in text
    assert "python cli.py compare published ours > comparison.md" in text
    with made.PUBLISHED_CSV.open(newline="") as file:
        given = list(csv.DictReader(file))
    rows = tables(section(text, "Conditions side by side"))[0]
    assert len(rows) == 6
    for row, cell in zip(rows, made.cells(made.FACTORS), strict=True):
        theirs = [float(g["val_loss"]) for g in given if all(float(g[k]) == v for k, v in cell.items())]
        ours = [made.loss_of(cell, seed) for seed in made.SEEDS]
        assert row["Val loss, published"] == f"{np.mean(theirs):.4f} ± {np.std(theirs, ddof=1):.4f}"
        assert row["Val loss, ours"] == f"{np.mean(ours):.4f} ± {np.std(ours, ddof=1):.4f}"
        reference = stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval(1 - 0.05 / 6)
        assert row["95 % interval, together"] == f"{reference.low:.4f} to {reference.high:.4f}"
        assert row["Bits per byte, published"] == "–"
    effects = tables(section(text, "Effects side by side"))[0]
    assert len(effects) == 5
    first = [
        made.loss_of(made.cells(made.FACTORS)[1], s) - made.loss_of(made.cells(made.FACTORS)[0], s)
        for s in made.SEEDS
    ]
    assert effects[0]["Difference, ours"] == f"{np.mean(first):+.4f}"


def first_lines(text: str) -> str:
    """What stands before the first section."""
    return text.split("\n## ")[0]


def two_noises(connection: sa.Connection, name: str, effect: float, level: float = 4.0) -> None:
    """A study of five seeds in which the noise costs `effect`, and seeds differ a little about it."""
    noise = {"factors": {"noise_std": [0.0, 0.5]}, "baseline": {"noise_std": 0.0}, "seeds": [1, 2, 3, 4, 5]}
    study = made.add_study(connection, name, grid=noise)
    for noise_std in (0.0, 0.5):
        for seed in range(1, 6):
            job = made.add_job(connection, study, {"noise_std": noise_std}, seed)
            loss = level + (noise_std > 0) * (effect + 0.001 * (seed % 3))
            made.add_result(connection, job, val_loss=loss + 0.0001 * seed)


@pytest.mark.parametrize(
    ("effect", "same", "opposite", "is_open", "differ"),
    [
        (0.0505, "1 has", "none has opposite signs", "none is", "none is shown to differ in size."),
        (0.2, "1 has", "none has opposite signs", "none is", "1 is shown to differ in size (noise_std=0.5)."),
        (-0.2, "none has", "1 has opposite signs (noise_std=0.5)", "none is", "1 is shown"),
        (-0.001, "none has", "none has opposite signs", "1 is", "1 is shown to differ"),
    ],
)
def test_the_first_lines_answer(
    connection: sa.Connection, effect: float, same: str, opposite: str, is_open: str, differ: str
) -> None:
    two_noises(connection, "one", 0.05)
    two_noises(connection, "two", effect, 4.5)
    text = first_lines(compare_studies(connection, "one", "two"))
    said = (
        f"Of one effect against noise_std=0.0, {same} the same sign in both studies, {opposite} and {is_open}"
    )
    assert text.splitlines()[2].startswith(f"**Answer.** {said} open; {differ}")
    assert "Of 2 conditions, one has the lower val loss in 2; 0 are open." in text
    assert "- **Missing:** Nothing: all runs are done." in text


def test_the_first_lines_say_why_losses_do_not_compare(connection: sa.Connection) -> None:
    made.published_study(connection)
    made.unfinished_study(connection)
    text = first_lines(compare_studies(connection, "published", "factorial"))
    reasons = "the texts are not known to be the same and the protocols differ"
    assert f"Their values of val loss do not compare: {reasons}." in text
    assert "7 of 18 runs of factorial have no result." in text
    assert "Of 5 effects against noise_std=0.0, load_balancing_weight=0.01, " in text


def test_short_against_long_says_what_differs(connection: sa.Connection) -> None:
    made.finished_study(connection, "short")
    long = made.add_study(connection, "long")
    for cell in made.cells(made.FACTORS)[:2]:
        config = made.configuration(cell, 42)
        config["train"]["steps"] = 4000
        made.add_result(connection, made.add_job(connection, long, cell, 42, config=config), val_loss=4.0)
    text = compare_studies(connection, "short", "long")
    differing = {row[""]: (row["short"], row["long"]) for row in tables(section(text, "What differs"))[0]}
    assert differing["train.steps"] == ("400", "4000")
    assert differing["seeds"] == ("42, 43, 44", "42")
    assert "protocol" not in differing
    assert "> **Note:**" not in text
    assert tables(section(text, "Conditions side by side"))[0][0]["n, long"] == "1/1"


def test_factors_match_by_their_last_part(connection: sa.Connection) -> None:
    for name, factor in (("one", "noise_std"), ("two", "routing.noise_std")):
        study = made.add_study(connection, name, grid={"factors": {factor: [0.0, 0.5]}, "baseline": {}})
        made.add_result(connection, made.add_job(connection, study, {factor: 0.5}, 42))
    rows = tables(section(compare_studies(connection, "one", "two"), "Conditions side by side"))[0]
    assert [row["Condition"] for row in rows] == ["noise_std=0.0", "noise_std=0.5"]


def test_nothing_in_common_is_said(connection: sa.Connection) -> None:
    made.finished_study(connection, "one")
    made.add_study(connection, "two", grid={"factors": {"top_k": [1, 2]}, "baseline": {}})
    assert "No condition of one has the same" in compare_studies(connection, "one", "two")
    with pytest.raises(ConfigError, match="'three'"):
        compare_studies(connection, "one", "three")


def test_a_study_with_itself_is_refused(connection: sa.Connection) -> None:
    made.finished_study(connection)
    with pytest.raises(UnknownOption, match="nothing to differ from itself"):
        compare_studies(connection, "factorial", "factorial")


@pytest.mark.slow
def test_conditions_match_whatever_else_a_study_varies(connection: sa.Connection) -> None:
    # One study varies noise alone, at the weight 0.01 that its runs were told; the other varies both.
    made.finished_study(connection, "both")
    noise = {"factors": {"noise_std": [0.0, 0.5]}, "baseline": {"noise_std": 0.0}}
    study = made.add_study(connection, "noise", grid=noise)
    for level in (0.0, 0.5):
        for seed in made.SEEDS:
            cell = {"noise_std": level, "load_balancing_weight": 0.01}
            loss = 4.0 + seed / 100 - level / 10 + 0.0001 * (seed % 2) * level
            config = made.configuration(cell, seed)
            job = made.add_job(connection, study, {"noise_std": level}, seed, config=config)
            made.add_result(connection, job, val_loss=loss)
    text = compare_studies(connection, "both", "noise")
    rows = tables(section(text, "Conditions side by side"))[0]
    assert [row["Condition"] for row in rows] == [
        "noise_std=0.0, load_balancing_weight=0.01",
        "noise_std=0.5, load_balancing_weight=0.01",
    ]
    told = {row[""]: (row["both"], row["noise"]) for row in tables(section(text, "What differs"))[0]}
    assert told["routing.load_balancing_weight"] == ("varied: 0.01, 0.0", "0.01")
    assert told["routing.noise_std"] == ("varied: 0.0, 0.1, 0.5", "varied: 0.0, 0.5")
    (effect,) = tables(section(text, "Effects side by side"))[0]
    by = {
        level: np.array(
            [made.loss_of({"noise_std": level, "load_balancing_weight": 0.01}, s) for s in made.SEEDS]
        )
        for level in (0.0, 0.5)
    }
    ours = np.array([-0.05 + 0.00005 * (seed % 2) for seed in made.SEEDS])
    reference = stats.ttest_ind(by[0.5] - by[0.0], ours, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert effect["95 % interval, together"] == f"{interval.low:.4f} to {interval.high:.4f}"
    assert float(effect["p"]) == pytest.approx(reference.pvalue, abs=6e-5)


def test_one_seed_has_no_sign(connection: sa.Connection) -> None:
    for name, way in (("up", 1), ("down", -1)):
        study = made.add_study(connection, name, grid={"factors": {"noise_std": [0.0, 0.5]}, "baseline": {}})
        for level in (0.0, 0.5):
            job = made.add_job(connection, study, {"noise_std": level}, 42)
            made.add_result(connection, job, val_loss=4.0 + way * level)
    (effect,) = tables(section(compare_studies(connection, "up", "down"), "Effects side by side"))[0]
    assert effect["Signs"] == effect["p"] == "–"


def test_two_seeds_have_no_sign_either(connection: sa.Connection) -> None:
    for name, way in (("up", 1), ("down", -1)):
        study = made.add_study(connection, name, grid={"factors": {"noise_std": [0.0, 0.5]}, "baseline": {}})
        for level in (0.0, 0.5):
            for seed in (42, 43):
                job = made.add_job(connection, study, {"noise_std": level}, seed)
                made.add_result(connection, job, val_loss=4.0 + way * level * (1 + seed / 1e4))
    text = compare_studies(connection, "up", "down")
    (effect,) = tables(section(text, "Effects side by side"))[0]
    assert effect["Signs"] == "–"
    assert "none has opposite signs and 1 is open; none is shown to differ in size" in first_lines(text)


def test_intervals_within_a_study_hold_together(connection: sa.Connection) -> None:
    made.finished_study(connection, "one")
    made.published_study(connection)
    rows = tables(section(compare_studies(connection, "one", "published"), "Effects side by side"))[0]
    base, other = made.cells(made.FACTORS)[2], made.cells(made.FACTORS)[5]
    apart = [made.loss_of(other, seed) - made.loss_of(base, seed) for seed in made.SEEDS]
    # Of the five effects one is the same in every seed, and no test.
    low, high = stats.t.interval(1 - 0.05 / 4, 2, np.mean(apart), stats.sem(apart))
    (row,) = (r for r in rows if r["Condition"] == "noise_std=0.5, load_balancing_weight=0.0")
    assert row["95 % interval, together, one"] == f"{low:.4f} to {high:.4f}"


@pytest.mark.slow
def test_runs_that_both_studies_have_are_named(connection: sa.Connection) -> None:
    made.finished_study(connection, "one")
    made.finished_study(connection, "two")
    two_noises(connection, "three", 0.1)
    text = first_lines(compare_studies(connection, "one", "two"))
    assert "18 runs are in both one and two, of the same seed and with the same val loss" in text
    assert "to the last digit" not in compare_studies(connection, "one", "three")


def test_what_neither_study_recorded_has_no_column(connection: sa.Connection) -> None:
    for name in ("one", "two"):
        study = made.add_study(connection, name, grid={"factors": {"noise_std": [0.0]}, "baseline": {}})
        empty = {"val_accuracy": None, "val_bits_per_byte": None}
        made.add_result(connection, made.add_job(connection, study, {"noise_std": 0.0}, 42), **empty)
    text = compare_studies(connection, "one", "two")
    (row,) = tables(section(text, "Conditions side by side"))[0]
    assert "Val loss, one" in row
    assert not any(name.startswith(("Accuracy", "Bits per byte")) for name in row)
    assert "## Effects side by side" not in text
