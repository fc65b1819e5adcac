"""Power and seeds needed against statsmodels and by hand; differences with their units; the enqueue line."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import sqlalchemy as sa
from scipy import stats
from scipy.optimize import brentq
from statsmodels.stats.power import TTestPower

from model.program import METRICS
from reports.output.seeds import plan
from reports.reading.frames import choose_study, load
from reports.reading.measures import measure
from reports.reading.plans import PLANNED
from reports.reading.study import Target
from reports.reading.units import UnknownOption, describe_difference, parse_difference
from reports.sections.power import count
from reports.statistics import power, words
from reports.statistics.inference import weighted_contrast
from reports.statistics.judgement import judge
from runner.queue.attempts import note
from runner.queue.store import Store
from tests import report_fixtures as made
from tests.conftest import rows
from tests.report_reading import render, section, tables

LOSS, ACCURACY = (measure({"name": name, **METRICS[name]}) for name in ("val_loss", "val_accuracy"))


@pytest.mark.parametrize("n", [3, 5, 10, 40])
def test_the_detectable_difference_is_statsmodels(n: int) -> None:
    reference = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
    assert power.detectable_difference(0.3, n) == pytest.approx(0.3 * reference, rel=1e-5)


@pytest.mark.parametrize("effect", [0.2, 0.5, 0.8, 1.5])
def test_the_seeds_needed_are_statsmodels(effect: float) -> None:
    reference = TTestPower().solve_power(effect_size=effect, alpha=0.05, power=0.8)
    assert power.seeds_needed(2.0, 2.0 * effect) == math.ceil(reference)
    assert power.seeds_needed(2.0, -2.0 * effect) == math.ceil(reference)


def test_what_the_seeds_needed_detect_is_no_more_than_was_asked() -> None:
    for difference in (0.01, 0.1, 1.0):
        seeds = power.seeds_needed(0.2, difference)
        assert seeds is not None
        assert power.detectable_difference(0.2, seeds) <= difference * (1 + 1e-6)
        assert seeds == 3 or power.detectable_difference(0.2, seeds - 1) > difference


def test_what_cannot_be_planned() -> None:
    assert power.seeds_needed(math.nan, 0.1) is None
    assert power.seeds_needed(0.1, 0.0) is None
    assert math.isnan(power.detectable_difference(0.1, 1))
    assert power.seeds_needed(1.0, 1e-9) == power.MAX_SEEDS + 1
    assert count(power.MAX_SEEDS + 1) == "more than 100,000"
    assert power.stein_seeds(0.1, 1, 0.1) is None


def test_steins_rule_by_hand() -> None:
    # t(0.975, 2) = 4.30265: (4.30265 · 0.01 / 0.005)² = 74.05, so 75.
    assert power.stein_seeds(0.01, 3, 0.005) == 75
    assert power.stein_seeds(0.01, 3, 10.0) == 3  # never fewer than are there
    t = stats.t.ppf(0.975, 9)
    assert power.stein_seeds(1.0, 10, t / 8) == 64


def test_two_seeds_can_detect_what_a_noncentral_t_says() -> None:
    # Cauchy's t(0.975, 1) is 12.706; statsmodels has no number here, and NaN was once taken for power 1.
    assert power.detectable_difference(1.0, 2) == pytest.approx(11.55, abs=0.005)
    random = np.random.default_rng(0).normal(11.55, 1.0, (100_000, 2))
    t = random.mean(axis=1) / (random.std(axis=1, ddof=1) / math.sqrt(2))
    assert (t > stats.t.ppf(0.975, 1)).mean() == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("effect", np.geomspace(0.1, 40, 40))
def test_no_effect_size_gives_too_few_seeds(effect: float) -> None:
    seeds = power.seeds_needed(1.0, effect)
    assert seeds is not None
    assert power.power("greater", effect, math.nan, seeds) >= 0.8
    assert seeds == 3 or power.power("greater", effect, math.nan, seeds - 1) < 0.8


@pytest.mark.parametrize("tests", [1, 6])
@pytest.mark.parametrize(("kind", "effect"), [("equivalent", 0.0), ("equivalent", 0.3), ("not_worse", 0.2)])
def test_power_against_a_margin_is_what_a_simulation_has(kind: words.Kind, effect: float, tests: int) -> None:
    n, margin = 12, 1.2
    values = np.random.default_rng(1).normal(effect, 1.0, (100_000, n))
    reach = stats.t.ppf(1 - 0.025 / tests, n - 1) * values.std(axis=1, ddof=1) / math.sqrt(n)
    mean = values.mean(axis=1)
    inside = mean + reach < margin
    if kind == "equivalent":
        inside &= mean - reach > -margin
    assert power.power(kind, effect, margin, n, tests) == pytest.approx(inside.mean(), abs=0.006)


def test_steins_final_interval_is_no_wider_and_misses_one_in_twenty() -> None:
    random, missed = np.random.default_rng(2), 0
    for _ in range(1_000):
        first = random.normal(size=4)
        total = power.stein_seeds(float(first.std(ddof=1)), 4, 0.8)
        assert total is not None
        values = np.concatenate([first, random.normal(size=total - 4)])
        found = weighted_contrast(values[:, None], [1.0], np.arange(total) < 4)
        assert (found.high - found.low) / 2 <= 0.8 + 1e-9
        missed += not found.low <= 0 <= found.high
    assert missed / 1_000 == pytest.approx(0.05, abs=0.02)


def test_the_power_table(connection: sa.Connection) -> None:
    made.published_study(connection)
    row = tables(section(render(connection), "Power and seeds needed"))[0][0]
    # statsmodels has NaN for the power beyond 7 sd, and solves to 0.787 here.
    t = stats.t.ppf(1 - 0.05 / 5 / 2, 2)
    effect = brentq(lambda d: stats.nct.sf(t, 2, d * math.sqrt(3)) - 0.8, 1, 50)
    sd = math.sqrt(sum((d - 0.0023333) ** 2 for d in (0.0095, -0.0004, -0.0021)) / 2)
    assert float(row["Detectable difference"]) == pytest.approx(effect * sd, abs=0.00006)
    seeds = TTestPower().solve_power(effect_size=math.log(1.005) / sd, alpha=0.05 / 5, power=0.8)
    assert int(row["Seeds for the margin"]) == math.ceil(seeds)


@pytest.mark.parametrize(
    ("text", "nats"),
    [
        ("0.005nats", 0.005),
        ("0.5percent", math.log(1.005)),
        ("0.5 %", math.log(1.005)),
        ("0.5ppl", math.log(130.5 / 130.0)),
        ("1e-3 NATS", 0.001),
    ],
)
def test_differences_carry_their_unit(text: str, nats: float) -> None:
    assert parse_difference("--difference", text, LOSS, 130.0) == pytest.approx(nats)


@pytest.mark.parametrize(
    ("text", "metric", "said"),
    [
        ("0.5", "val_loss", "--difference 0.5: of what? write 0.5nats, 0.5ppl, 0.5percent"),
        ("0", "val_loss", "write a number above 0 with its unit"),
        ("-1ppl", "val_loss", "write a number above 0"),
        ("nan", "val_loss", "write a number above 0"),
        ("1.2.3nats", "val_loss", "write a number above 0"),
        ("1e999nats", "val_loss", "write a number above 0"),
        ("0.5miles", "val_loss", "write a number above 0"),
        ("0.5ppl", "val_accuracy", "val_accuracy has its own unit"),
    ],
)
def test_bad_differences_are_one_line(text: str, metric: str, said: str) -> None:
    with pytest.raises(UnknownOption, match=re.escape(said)) as refusal:
        parse_difference("--difference", text, LOSS if metric == LOSS.column else ACCURACY, 130.0)
    assert "\n" not in str(refusal.value)


def test_a_difference_in_ppl_needs_a_perplexity() -> None:
    with pytest.raises(UnknownOption, match="no perplexity is recorded yet"):
        parse_difference("--margin", "1ppl", LOSS, math.nan)


def test_a_difference_is_said_in_every_unit() -> None:
    loss = Target(LOSS, None, "")
    assert (
        describe_difference(math.log(1.005), loss, 200.0)
        == "0.004988 nats (0.5 % of the PPL, 1 PPL at 200.00)"
    )
    assert describe_difference(0.01, Target(ACCURACY, None, ""), 1.0) == "0.01 share of tokens"


@pytest.mark.slow
def test_the_plan_follows_the_contrast_that_varies_most(connection: sa.Connection) -> None:
    made.published_study(connection)
    planned = plan(connection, None, "0.5percent", None)
    # 0.5 without balancing varies most; three more claims of that family would not change it.
    needed = power.seeds_needed(0.0102704, math.log(1.005), tests=5, there=3)
    assert needed is not None
    assert planned.seeds == f"45..{45 + needed - 3 - 1}"
    assert f"{needed} seeds in all support each claim that is true with 80 % power" in planned.text
    assert "noise_std=0.5, load_balancing_weight=0.0. 3 seeds are there." in planned.text
    assert plan(connection, None, "50percent", None).seeds == ""
    assert "No seed is missing" in plan(connection, None, None, "10nats").text
    assert "Stein" in plan(connection, None, None, "0.5ppl").text


@pytest.mark.parametrize("arguments", [(None, None), ("1ppl", "1ppl")])
def test_one_of_the_two_is_planned_for(
    connection: sa.Connection, arguments: tuple[str | None, str | None]
) -> None:
    made.published_study(connection)
    with pytest.raises(UnknownOption, match="one of them"):
        plan(connection, None, *arguments)


def test_nothing_can_be_planned_from_one_seed(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"seeds": [42]})
    for cell in made.cells(made.FACTORS):
        made.finish(connection, study, cell, 42)
    planned = plan(connection, None, "1percent", None)
    assert planned.seeds == ""
    assert "run a few seeds first" in planned.text


def test_the_printed_line_adds_exactly_those_seeds(
    cli: Callable[..., CompletedProcess[str]], tiny_grid: Path, tmp_path: Path, store: Store
) -> None:
    changed = ("--set", "muon_lr=0.02", "--set", "train.steps=20")
    done = cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled", "--study", "mine", *changed)
    assert done.returncode == 0, done.stderr

    def finish(connection: sa.Connection) -> None:
        connection.exec_driver_sql("UPDATE jobs SET status = 'done', finished_at = 1.0, attempt = 1")
        for job, loss in ((1, 4.0), (2, 4.1), (3, 4.0), (4, 4.12)):
            made.add_result(connection, job, val_loss=loss)

    store.write(finish)
    said = cli("power", "--study", "mine", "--difference", "0.03nats")
    assert said.returncode == 0, said.stderr
    line = said.stdout.splitlines()[-1]
    assert line.startswith("python cli.py enqueue --study mine --seeds 44..")
    added = cli(*shlex.split(line)[2:])
    assert added.returncode == 0, added.stderr
    needed = power.seeds_needed(0.02 / math.sqrt(2), 0.03, there=2)
    assert needed is not None
    seeds = [row["seed"] for row in rows(store, "jobs")]
    assert sorted(set(seeds)) == list(range(42, 42 + needed))
    assert len(seeds) == 2 * needed
    # What the plan rested on is kept, and from then on the sd is that of the added seeds alone.
    (event,) = [json.loads(row["detail"]) for row in rows(store, "events") if row["kind"] == PLANNED]
    assert (event["rule"], event["seeds"], event["total"]) == ("difference", [42, 43], needed)


def test_the_final_interval_keeps_the_first_stage(connection: sa.Connection) -> None:
    claim = {
        "name": "harms", "kind": "greater", "metric": "val_loss",
        "compare": {"noise_std": 0.5}, "against": {"noise_std": 0.0},
    }  # fmt: skip
    grid = {"factors": {"noise_std": [0.0, 0.5]}, "baseline": {}, "claims": [claim], "seeds": [1, 2, 3]}
    study = made.add_study(connection, grid=grid)

    def finish(seeds: dict[int, float]) -> None:
        for seed, difference in seeds.items():
            for noise, more in ((0.0, 0.0), (0.5, difference)):
                job = made.add_job(connection, study, {"noise_std": noise}, seed)
                made.add_result(connection, job, val_loss=4.0 + seed + more)

    first, later = {1: 0.10, 2: 0.12, 3: 0.17}, {4: 0.11, 5: 0.05, 6: 0.2, 7: 0.1}
    finish(first)
    planned = plan(connection, None, None, "0.05nats")
    assert (planned.event["rule"], planned.event["seeds"]) == ("half-width", [1, 2, 3])
    note(connection, PLANNED, detail=planned.event)
    finish(later)
    (judged,) = judge(load(connection, choose_study(connection)[0]))
    values = np.array([*first.values(), *later.values()])
    reach = stats.t.ppf(0.975, 2) * np.std(list(first.values()), ddof=1) / math.sqrt(7)
    assert (judged.contrast.n, judged.contrast.df) == (7, 2)
    assert judged.contrast.low == pytest.approx(values.mean() - reach)
    # A second plan for a half-width keeps the stage; one for a difference takes the others' sd.
    assert plan(connection, None, None, "0.01nats").event["seeds"] == [1, 2, 3]


def test_claims_are_planned_each_by_its_kind(connection: sa.Connection) -> None:
    levels = {"compare": {"noise_std": 0.5}, "against": {"noise_std": 0.0}, "metric": "val_loss"}
    kinds: tuple[words.Kind, ...] = ("greater", "equivalent", "not_worse")
    claims = [{"name": kind, "kind": kind, **levels} for kind in kinds]
    made.published_study(connection, claims=claims)
    planned = plan(connection, None, "1percent", None)
    (sd,) = {judged.contrast.sd for judged in judge(load(connection, choose_study(connection)[0]))}
    needed = [
        power.seeds_needed(sd, difference, tests=3, kind=kind, margin=math.log(1.005), there=3)
        for kind, difference in zip(kinds, (math.log(1.01), 0.0, 0.0), strict=True)
    ]
    assert planned.total == max(seed or 0 for seed in needed)
    shown = [int(line.split()[-1]) for line in planned.text.splitlines()[3:6]]
    assert shown == needed
