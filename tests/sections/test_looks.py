"""A study with looks, as it is read: decided by its looks, shown as they left it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from reports.output import seeds as planning
from reports.output.as_json import as_json
from reports.output.looks import next_look
from reports.output.report import compose
from reports.reading.frames import choose_study, load
from reports.reading.units import UnknownOption
from reports.statistics.analysis import Options, analyse
from reports.statistics.judgement import judge
from runner.design.program import reseeding
from runner.queue import looks
from tests import report_fixtures as made
from tests.report_reading import fact, render, section, tables

PLAN = {
    "seeds": [3, 6, 10],
    "order": list(range(42, 52)),
    "spending": "obrien-fleming",
    "futility": None,
    "drop": True,
}
CLAIMS = [
    {"name": name, "kind": "greater", "compare": {"noise_std": level}, "against": {"noise_std": 0.0}}
    for name, level in (("Noise harms", 0.5), ("A little harms", 0.1))
]
EFFECTS = {0.0: 0.0, 0.1: 0.0, 0.5: 0.2}
NOISE = (0.010, -0.012, 0.003, -0.004, 0.008, -0.006, 0.001, 0.005, -0.009, 0.004)


def add_study(connection: sa.Connection, **plan: Any) -> int:
    claims = [{"metric": "val_loss", "interaction": {}, "margin": None, **claim} for claim in CLAIMS]
    grid = {
        "factors": {"noise_std": [0.0, 0.1, 0.5]},
        "baseline": {"noise_std": 0.0},
        "claims": claims,
        "seeds": [42, 43, 44],
    }
    return made.add_study(connection, grid=grid, looks=json.dumps(PLAN | plan))


def add_runs(connection: sa.Connection, study: int, seeds: range, levels: tuple[float, ...]) -> None:
    """Finished runs: a difference of 0.2 at the highest level, nothing at the middle one."""
    for seed in seeds:
        for i, level in enumerate(levels):
            loss = 4.5 + 0.05 * (seed % 4) + EFFECTS[level] + NOISE[(3 * seed + i) % len(NOISE)]
            job = made.add_job(connection, study, {"noise_std": level}, seed)
            made.add_attempt(connection, job)
            made.add_result(connection, job, val_loss=loss)


def make_look(connection: sa.Connection) -> looks.Decided:
    """Store the next look, and delete the jobs that it queued: their results are added by hand."""
    (study,) = looks.due(connection)
    decided = next_look(connection, study.study)
    kept = looks._queue
    try:
        looks._queue = lambda *_: 0  # type: ignore[assignment]
        assert looks.make(connection, study, decided, "w", reseeding(Path()), lambda *_: {})
    finally:
        looks._queue = kept
    return decided


@pytest.fixture
def looked(connection: sa.Connection) -> sa.Connection:
    """Two looks of three: the first decides nothing, the second the claim that is true."""
    study = add_study(connection)
    add_runs(connection, study, range(42, 45), (0.0, 0.1, 0.5))
    first = make_look(connection)
    assert [claim["look"] for claim in first.claims] == [0, 0]
    assert list(first.cells) == [{"noise_std": 0.0}, {"noise_std": 0.1}, {"noise_std": 0.5}]
    add_runs(connection, study, range(45, 48), (0.0, 0.1, 0.5))
    second = make_look(connection)
    assert [claim["look"] for claim in second.claims] == [2, 0]
    return connection


@pytest.mark.slow
def test_conditions_of_decided_claims_get_no_further_seeds(looked: sa.Connection) -> None:
    add_runs(looked, 1, range(48, 52), (0.0, 0.1))
    data = load(looked, choose_study(looked)[0])
    assert data.seeds_to_come == 4
    last = make_look(looked)
    assert (last.reason, list(last.cells)) == ("the last look: no further seeds were declared", [])
    assert [(claim["n"], claim["look"]) for claim in last.claims] == [(6, 2), (10, 0)]
    assert not looks.due(looked)


@pytest.mark.slow
def test_every_condition_goes_on_where_none_is_dropped(connection: sa.Connection) -> None:
    study = add_study(connection, drop=False)
    for seeds in (range(42, 45), range(45, 48)):
        add_runs(connection, study, seeds, (0.0, 0.1, 0.5))
        decided = make_look(connection)
    assert [claim["look"] for claim in decided.claims] == [2, 0]
    assert len(decided.cells) == 3


def test_the_first_screen_says_how_far_the_looks_have_come(looked: sa.Connection) -> None:
    text = render(looked)
    told = fact(text, "Looks")
    assert told == "look 2 of 3, 6 seeds, 1 of 2 claims decided; next look at 10"
    first, second = tables(text)[0]
    assert (first["Verdict"], first["n"]) == ("SUPPORTED", "6")
    assert second["Verdict"] == "OPEN (PROVISIONAL)"
    assert "Interval of its look" in first
    findings = section(text, "Findings")
    assert "interval of its look 2" in findings
    assert "PROVISIONAL: 4 seeds to come. OPEN: A little harms." in findings
    assert "Over all looks and claims a verdict is wrong in at most 5 % of studies." in findings


@pytest.mark.slow
def test_the_section_of_the_looks_ends_each_claim_where_it_was_decided(looked: sa.Connection) -> None:
    add_runs(looked, 1, range(48, 52), (0.0, 0.1))
    make_look(looked)
    (rows,) = tables(section(render(looked), "Looks"))
    assert [(row["Claim"], row["Seeds"], row["Claims"], row["Verdict"]) for row in rows] == [
        ("Noise harms", "3", "2", "OPEN"),
        ("Noise harms", "6", "2", "SUPPORTED"),
        ("A little harms", "3", "2", "OPEN"),
        ("A little harms", "6", "1", "OPEN"),
        ("A little harms", "10", "1", "OPEN"),
    ]
    assert fact(render(looked), "Looks").startswith("look 3 of 3, 10 seeds, 1 of 2 claims decided; stopped:")


def test_what_comes_after_a_look_changes_nothing_of_it(looked: sa.Connection) -> None:
    before = judge(load(looked, choose_study(looked)[0]))
    add_runs(looked, 1, range(48, 50), (0.0, 0.1, 0.5))
    after = judge(load(looked, choose_study(looked)[0]))
    assert [(j.contrast, j.verdict, j.outcome) for j in after] == [
        (j.contrast, j.verdict, j.outcome) for j in before
    ]


def test_before_the_first_look_nothing_is_decided(connection: sa.Connection) -> None:
    study = add_study(connection)
    add_runs(connection, study, range(42, 44), (0.0, 0.1, 0.5))
    text = render(connection)
    assert fact(text, "Looks").startswith("no look yet: the first of 3 is at 3 seeds")
    assert {row["Verdict"] for row in tables(text)[0]} == {"OPEN (PROVISIONAL)"}
    assert "no look was made at it yet" in section(text, "Findings")


def test_a_program_reads_every_look(looked: sa.Connection) -> None:
    analysis = analyse(load(looked, choose_study(looked)[0]), Options())
    content = json.loads(as_json(compose(analysis), analysis))
    assert [(look["number"], look["seeds"], look["reason"]) for look in content["looks"]] == [
        (1, 3, ""),
        (2, 6, ""),
    ]
    claim = content["claims"][0]
    assert claim["look"]["look"] == 2
    assert claim["p"] == claim["look"]["p"] < 0.05


def test_the_paths_are_drawn(looked: sa.Connection) -> None:
    from reports.figures.looks import path_picture

    analysis = analyse(load(looked, choose_study(looked)[0]), Options())
    picture = path_picture(analysis)
    assert picture is not None
    figure = picture.draw()
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["Noise harms", "A little harms"]
    for axes, judged in zip(panels, analysis.judged, strict=True):
        low, high, difference = (line.get_ydata() for line in axes.lines[1:])
        assert len(difference) == 3
        assert difference[1] == pytest.approx(judged.contrast.difference)
        assert high[1] == -low[1] == pytest.approx((judged.contrast.high - judged.contrast.low) / 2)


@pytest.mark.slow
def test_power_plans_looks_and_leaves_those_that_are_there_alone(looked: sa.Connection) -> None:
    text = planning.plan_looks(looked, None, (3, 6, 10, 15), "0.2nats")
    head, table, _ = text.split("\n\n")
    assert head.startswith("factorial: looks at 3, 6, 10, 15 seeds")
    assert "as one of 2 claims that are open. 0.2 nats (" in head
    named, row = (line.split("  ") for line in table.splitlines())
    assert [cell.strip() for cell in named if cell][:2] == ["difference", "power"]
    assert "1.000" in [cell.strip() for cell in row]  # 0.2 nats is many sd
    many = planning.plan_looks(looked, None, (3, 6), None).split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in many[1:]] == ["0.50", "1.00", "1.50"]
    with pytest.raises(UnknownOption, match="has looks, which say how many seeds it gets"):
        planning.plan(looked, None, "0.2nats", None)
