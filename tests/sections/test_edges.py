"""Studies at the edges: missing seeds, sides of a comparison, values around 0, nothing that differs.

What a report must not say of them was once said: each test has the right value, by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from reports.output.as_json import as_json
from reports.output.report import compose
from reports.output.seeds import plan
from reports.reading.frames import choose_study, load
from reports.reading.measures import Measure
from reports.sections.answer import Answer, Line
from reports.statistics.analysis import Options, analyse
from reports.statistics.inference import weighted_contrast
from reports.statistics.words import FEWEST, Kind, verdict
from runner.queue import schema
from runner.queue.dialects import storable
from tests import report_fixtures as made
from tests.report_reading import render, section, tables

Value = Callable[[float, int, int], float]
LEVELS = (0.0, 0.1, 0.5)
LOSS = {"name": "loss", "better": "lower"}
VAL_LOSS = {"name": "val_loss", "better": "lower", "exponential": True}


def add(
    connection: sa.Connection,
    value: Value,
    measure: dict[str, Any] = LOSS,
    levels: tuple[float, ...] = LEVELS,
    seeds: int = 4,
    repeats: int = 1,
    lost: dict[tuple[float, int], str] | None = None,
    **grid: Any,
) -> None:
    """A study of one factor and one measure, whose value is that of (level, seed, repeat).

    `lost`: (level, seed) → the cause for which that run failed.
    """
    factors = {"x": list(levels)}
    told = {"factors": factors, "baseline": {}, "margins": {}, "primary": "", "seeds": list(range(seeds))}
    study = made.add_study(connection, "edge", grid=told | grid)
    program = {"path": "p.py", "hash": "ab", "measures": [measure], "keys": {"x": "float", "seed": "int"}}
    connection.execute(sa.update(schema.studies).values(program=json.dumps(program), facts="{}"))
    for level in levels:
        for seed in range(seeds):
            for repeat in range(repeats):
                config = {"x": level, "seed": seed, "repeat": repeat}
                cause = (lost or {}).get((level, seed))
                state = "failed" if cause else "done"
                job = made.add_job(connection, study, {"x": level}, seed, state, config=config)
                made.add_attempt(connection, job, outcome=state, cause=cause)
                if not cause:
                    row = {"job_id": job, "attempt": 1, "recorded_at": made.START + job}
                    connection.execute(sa.insert(schema.results).values(**row))
                    found = storable(value(level, seed, repeat))
                    connection.execute(
                        sa.insert(schema.measures).values(job_id=job, name=measure["name"], **found)
                    )


def jitter(level: float, seed: int) -> float:
    """Noise that is the same each time, and in none of the digits that are looked at."""
    return 1e-5 * math.sin(37 * seed + 1000 * level)


def told(connection: sa.Connection, **options: Any) -> str:
    """The sentences of the first screen."""
    text = render(connection, **options).replace("\u00a0", " ")
    return text.split("**Answer.** ", 1)[1].split("\n", 1)[0]


def test_a_condition_that_lacks_the_hard_seeds_is_not_the_best(connection: sa.Connection) -> None:
    lost = {(0.5, seed): "oom" for seed in (2, 3)}  # its mean is 4.25, the others' 4.75
    add(connection, lambda level, seed, _: 4 + seed / 2 + level / 50 + jitter(level, seed), lost=lost)
    text = told(connection)
    assert text.startswith("x=0.0 has the lowest loss, 4.75")
    assert "and is the baseline. Not every condition has every seed: each was compared over those" in text


def test_a_percentage_is_of_the_seeds_that_are_compared(connection: sa.Connection) -> None:
    lost = {(0.5, seed): "oom" for seed in (2, 3)}
    add(connection, lambda level, seed, _: (1.0, 2.0, 10.0, 20.0)[seed] * (1 + level), lost=lost)
    row = tables(render(connection))[0][1]
    assert (row["Comparison"], row["n"], row["In percent"]) == ("x 0.5 - 0.0", "2", "+50.00 %")


@pytest.mark.parametrize(
    ("measure", "saved"), [(VAL_LOSS, 100 * (1 - math.exp(-0.5))), (LOSS, 100 * 0.5 / 4.5)]
)
def test_a_level_is_set_against_the_baseline_whichever_comes_first(
    connection: sa.Connection, measure: dict[str, Any], saved: float
) -> None:
    add(connection, lambda level, seed, _: 4 + level + jitter(level, seed), measure, baseline={"x": 0.5})
    text = told(connection)
    word = f"saves {saved:.1f} %" if measure is VAL_LOSS else f"is better by {saved:.1f} %"
    assert f"Compared with x 0.5: 0.0 {word}" in text
    assert f"-{saved:.1f}" in text  # the best condition's, against the baseline
    assert section(render(connection), "Paired contrasts").count("####") == 1


def test_values_around_0_have_no_percentage(connection: sa.Connection) -> None:
    add(connection, lambda level, seed, _: (-1.0) ** seed + level + jitter(level, seed))
    assert {row["In percent"] for row in tables(render(connection))[0]} == {"–"}
    assert "Compared with x 0.0: 0.1 and 0.5 are worse." in told(connection)


def test_equal_conditions_are_called_equal(connection: sa.Connection) -> None:
    add(connection, lambda level, seed, _: 1.5 + seed)
    assert told(connection).startswith(
        "All 3 conditions have the same loss, 3.0000. Compared with x 0.0: 0.1"
    )


def test_two_best_conditions_are_both_named(connection: sa.Connection) -> None:
    add(connection, lambda level, seed, _: 1.0 + (level > 0.1))
    assert told(connection).startswith(
        "x=0.0 has the lowest loss, 1.0000 (as has x=0.1), and is the baseline."
    )


def test_what_survived_is_said_of_the_lowest_loss(connection: sa.Connection) -> None:
    lost = {(0.5, seed): "diverged" for seed in range(5)}
    add(connection, lambda level, seed, _: 2 - level + jitter(level, seed), seeds=10, lost=lost)
    said = told(connection)
    assert said.startswith("x=0.5 has the lowest loss, 1.5000 (")
    assert "(of the runs that survived: 5 of its 10 diverged), -25.00 % against the baseline (un" in said


def test_one_condition_is_said_to_be_alone(connection: sa.Connection) -> None:
    add(connection, lambda level, seed, _: 1.0 + seed, levels=(0.1,))
    assert told(connection) == (
        "There is one condition, and nothing to compare it with: its loss is 2.5000 over 4 seeds."
    )


@pytest.mark.slow
def test_a_sentence_does_not_name_two_hundred_levels(connection: sa.Connection) -> None:
    levels = tuple(i / 100 for i in range(40))
    add(connection, lambda level, seed, _: 1 + jitter(level, seed), levels=levels, seeds=3)
    assert told(connection).endswith("Its 29 further levels stand below.")


def test_no_dose_is_best_where_neither_way_is(connection: sa.Connection) -> None:
    levels = (0.0, 0.05, 0.1, 0.3, 0.5, 1.0)
    add(
        connection,
        lambda level, seed, _: (math.log1p(level / 0.3) - 0.6) ** 2 + jitter(level, seed),
        {"name": "width", "better": "none"},
        levels,
    )
    text = section(render(connection), "Response to x")
    assert "SUPPORTED: the response bends; of width neither more nor less is better" in text
    assert "best near" not in text


def test_repeats_are_one_observation_in_the_json_too(connection: sa.Connection) -> None:
    add(connection, lambda level, seed, repeat: seed + repeat / 10 + level, repeats=3)
    analysis = analyse(load(connection, choose_study(connection)[0]), Options())
    found = json.loads(as_json(compose(analysis), analysis))["conditions"][0]["metrics"]["loss"]
    means = np.arange(4) + 0.1
    low, high = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
    expected = {"n": 4, "mean": means.mean(), "sd": means.std(ddof=1), "low": low, "high": high}
    assert found == pytest.approx(expected)


def test_a_study_without_a_margin_or_with_one_claim_is_told_in_english(connection: sa.Connection) -> None:
    sides = {"metric": "loss", "against": {"x": 0.0}, "kind": "greater"}
    claims = [
        {"name": "More costs", "compare": {"x": 0.5}, **sides},
        {"name": "So does most", "compare": {"x": 0.7}, **sides},
    ]
    add(connection, lambda level, seed, _: 1 + level + jitter(level, seed), claims=claims)
    text = render(connection)
    assert "No margin was declared, so there is no equivalence p." in text
    assert "One claim can be tested: its interval holds in 95 % of studies." in text
    assert "OPEN: So does most. x=0.7 against x=0.0: unclear, the study has no such conditions." in text


def test_a_plan_calls_comparisons_that_nobody_claimed_different(connection: sa.Connection) -> None:
    add(connection, lambda level, seed, _: 1 + level + jitter(level, seed))
    text = plan(connection, None, "0.00001", None).text
    assert [line.split()[4] for line in text.splitlines()[3:6]] == ["different"] * 3
    assert "greater" not in text


def test_the_method_explains_what_was_recorded(connection: sa.Connection) -> None:
    made.published_study(connection)
    text = section(render(connection), "Method")
    assert "Best Val PPL is the lowest" in text
    assert "Aux loss" not in text
    assert "bits per byte" not in text


# --- a verdict is what its printed interval says ----------------------------------------------------------

METRIC = {"lower": Measure("m", "M", better="lower"), "higher": Measure("m", "M", better="higher")}


def read_off(kind: Kind, n: int, shown: str, margin: float, better: str) -> str:
    """The verdict by what stands on paper, and nothing else."""
    if n < FEWEST:
        return "OPEN"
    low, high = map(float, shown.split(" to "))
    worst, best = (high, low) if better == "lower" else (-low, -high)
    if kind == "not_worse":
        return "SUPPORTED" if worst < margin else "REFUTED" if best > margin else "OPEN"
    if kind == "equivalent":
        inside, beyond = -margin < low and high < margin, low > margin or high < -margin
        return "SUPPORTED" if inside else "REFUTED" if beyond else "OPEN"
    up, down = (low > 0, high < 0) if kind == "greater" else (high < 0, low > 0)
    return "SUPPORTED" if up else "REFUTED" if down else "OPEN"


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 12),
    shift=st.floats(-0.01, 0.01),
    spread=st.floats(1e-5, 0.01),
    tests=st.integers(1, 8),
    margin=st.sampled_from([math.log(1.005), 0.005, 0.001, 0.05]),
    kind=st.sampled_from(["less", "greater", "equivalent", "not_worse"]),
    better=st.sampled_from(["lower", "higher"]),
)
def test_every_verdict_can_be_read_off_the_printed_interval(
    seed: int, n: int, shift: float, spread: float, tests: int, margin: float, kind: Kind, better: str
) -> None:
    differences = np.random.default_rng(seed).normal(shift, spread, (n, 1))
    contrast = weighted_contrast(differences, [1.0]).corrected(tests)
    # What is nearer to a bound than the eighth decimal is shown as the bound.
    ends = (contrast.low, contrast.high)
    assume(all(abs(end - bound) > 1e-8 for end in ends for bound in (-margin, 0.0, margin)))
    found = verdict(kind, contrast, margin, better == "higher")
    line = Line("A claim", METRIC[better], contrast, False, math.nan, margin, found)
    table = Answer("", (), (line,), 0, (), "", ()).table
    assert table is not None
    ((*_, shown, seeds, said),) = table.rows
    assert said == read_off(kind, int(seeds), shown, margin, better)
