"""The first screen: at most forty lines, the answer in plain sentences, made from the verdicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from reports.output.files import first_screen
from reports.output.page import bars
from reports.reading.frames import choose_study, load
from reports.sections.answer import MAX_LINES, answer
from reports.statistics.analysis import Options, analyse
from tests import report_fixtures as made
from tests.report_reading import fact, render, section, tables

LINES = 40


def claims(count: int) -> list[dict[str, Any]]:
    sides = {"compare": {"noise_std": 0.5}, "against": {"noise_std": 0.0}}
    names = [f"Claim {i} | with *marks*" for i in range(count)]
    return [{"name": name, "kind": "greater", "metric": "val_loss", **sides} for name in names]


def many_claims(connection: sa.Connection) -> None:
    made.finished_study(connection, grid={"claims": claims(20)})


def only_declared(connection: sa.Connection) -> None:
    made.add_study(connection)


@pytest.mark.parametrize(
    "state",
    [made.finished_study, made.unfinished_study, made.published_study, many_claims, only_declared],
)
def test_the_first_screen_has_at_most_forty_lines(
    connection: sa.Connection, state: Callable[[sa.Connection], object]
) -> None:
    state(connection)
    text = first_screen(connection, None)
    assert len(text.splitlines()) <= LINES
    asked = [] if state is made.published_study else ["**Question.**"]
    order = [text.index(word) for word in (*asked, "**Answer.**", "**Missing:**", "**Scale:**")]
    assert order == sorted(order)
    for label in ("Corpus", "Seeds"):
        assert fact(text, label)


def test_the_published_study_is_answered_in_its_first_lines(connection: sa.Connection) -> None:
    made.published_study(connection)
    first = "\n".join(first_screen(connection, None).splitlines()[:6]).replace("\u00a0", " ")
    assert "Compared with noise_std 0.0: 0.1 costs 0.9 % and 0.5 costs 10.7 % of the perplexity." in first
    assert "Compared with load_balancing_weight 0.01: 0.0 is open." in first
    assert "has the lowest val loss" in first


def test_a_claim_shows_its_difference_in_the_metric_and_in_percent(connection: sa.Connection) -> None:
    made.published_study(connection, claims=claims(1))
    (row,) = tables(first_screen(connection, None))[0]
    assert row["Claim"] == "Claim 0 \\| with \\*marks\\*"
    assert row["n"] == "3"
    assert {"Claim", "In percent", "95 % interval", "n", "Verdict"} < set(row)
    assert row["Difference in val_loss, nats per token"] == "+0.1016"
    assert row["In percent"] == "+10.70 %"
    assert row["95 % interval"] == "0.0928 to 0.1104"


def test_one_factor_has_its_levels_in_one_table(connection: sa.Connection) -> None:
    levels = [0.0, 0.1, 0.2, 0.3, 0.5]
    study = made.add_study(connection, grid={"factors": {"noise_std": levels}, "baseline": {}})
    for level in levels:
        for seed in made.SEEDS:
            made.add_result(
                connection,
                made.add_job(connection, study, {"noise_std": level}, seed),
                val_loss=4.5 + level * seed / 40,
            )
    found = section(render(connection), "Paired contrasts")
    assert found.count("####") == 1
    assert len(tables(found)[0]) == len(levels) - 1


def test_what_does_not_fit_is_counted(connection: sa.Connection) -> None:
    many_claims(connection)
    text = first_screen(connection, None)
    assert len(tables(text)[0]) == MAX_LINES
    assert f"And {20 - MAX_LINES} more, below." in text


def test_bars_share_a_scale_and_keep_their_order(connection: sa.Connection) -> None:
    made.published_study(connection)
    analysis = analyse(load(connection, choose_study(connection)[0]), Options())
    lines = answer(analysis).lines
    drawn = [bar for bar in bars(lines) if bar is not None]
    for bar, line in zip(drawn, lines, strict=True):
        assert 0 <= bar.low <= bar.point <= bar.high <= 100
        assert (bar.point > 50) == (line.contrast.difference > 0)
    assert len({bar.margin_width for bar in drawn}) == 1


def test_an_effect_is_told_where_its_average_left_a_condition_out(connection: sa.Connection) -> None:
    study = made.add_study(connection)
    for number, cell in enumerate(made.cells(made.FACTORS)):
        for seed in made.SEEDS:
            if number == 5:
                made.add_job(connection, study, cell, seed, "cancelled")
            else:
                made.finish(connection, study, cell, seed)
    first = first_screen(connection, None).replace("\u00a0", " ")
    assert "Compared with noise_std 0.1: 0.0 is open and 0.5 costs 8.5 % of the perplexity." in first


def test_that_every_run_of_a_condition_diverged_is_the_answer(connection: sa.Connection) -> None:
    factors = {"noise_std": [0.0, 0.5], "load_balancing_weight": [0.01]}
    baseline = {"noise_std": 0.0, "load_balancing_weight": 0.01}
    study = made.add_study(connection, grid={"factors": factors, "baseline": baseline})
    for cell in made.cells(factors):
        for seed in made.SEEDS:
            if not cell["noise_std"]:
                made.finish(connection, study, cell, seed)
                continue
            job = made.add_job(connection, study, cell, seed, "failed")
            made.add_attempt(connection, job, outcome="failed", cause="diverged", message="loss is nan")
    said = "noise_std=0.5, load_balancing_weight=0.01 diverged in 3 of 3 runs, the baseline in 0 of 3"
    assert said in first_screen(connection, None)


def test_repeats_of_a_seed_are_not_called_mixed(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"noise_std": [0.1]}, "baseline": {}, "repeats": 2})
    for repeat in range(2):
        config = {**made.configuration({"noise_std": 0.1}, 42), "repeat": repeat}
        job = made.add_job(connection, study, {"noise_std": 0.1}, 42, config=config)
        made.add_result(connection, job)
    assert "Mixed" not in render(connection)


@pytest.mark.slow
def test_a_text_that_doubts_its_own_loss_is_a_note(connection: sa.Connection) -> None:
    facts = {"documents": {"train": 80, "val": 10, "test": 10}, "lost": 0.03, "overlap": 0.8}
    doubts = {"lossy": "loses 3 % of the text", "near": "Near duplicates: 80 % of the validation text"}
    for i, flag in enumerate(("", *doubts)):
        grid = {"text": facts | {each: each == flag for each in doubts}}
        made.finished_study(connection, name=f"s{i}", grid=grid)
        text = first_screen(connection, f"s{i}")
        assert [each for each, words in doubts.items() if words in text] == [flag][: bool(flag)]
