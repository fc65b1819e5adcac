"""Queueing into a study that is there: what it says of everything that it leaves as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from model.config import ConfigError
from runner.design.enqueue import enqueue, not_done
from runner.design.grid import Grid
from runner.design.grid_file import parse_grid
from runner.design.more import more_seeds
from runner.queue import jobs
from runner.queue.jobs import Worker
from runner.queue.store import Store
from tests.conftest import both_engines, row, rows

Cli = Callable[..., CompletedProcess[str]]
CLAIM = {
    "name": "a",
    "kind": "less",
    "metric": "val_loss",
    "compare": {"noise_std": 0.1},
    "against": {"noise_std": 0.0},
}
CONTENT: dict[str, Any] = {
    "name": "mine",
    "question": "Does it?",
    "factors": {"noise_std": [0.0, 0.1, 0.5], "top_k": [1, 2]},
    "baseline": {"noise_std": 0.0},
    "margins": {"val_loss": 0.005},
    "claims": [CLAIM],
    "seeds": [1],
}


def made(**change: Any) -> Grid:
    return parse_grid({**CONTENT, **change})


@pytest.fixture
def mine(store: Store) -> Store:
    """A study of six jobs."""
    store.write(lambda c: enqueue(c, "mine", made(), priority=1))
    return store


def said(store: Store, grid: Grid, **options: int) -> list[str]:
    with store.read() as connection:
        return not_done(connection, "mine", grid, **options)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, None),
        ({"seeds": [2, 3]}, None),
        ({"question": "Really?"}, "keeps its question ('Does it?', not 'Really?')"),
        ({"primary": "val_accuracy"}, "keeps its primary ('val_loss', not 'val_accuracy')"),
        ({"baseline": {"noise_std": 0.1}}, "keeps its baseline (noise_std=0.0, not noise_std=0.1)"),
        ({"baseline": {}}, "keeps its baseline (noise_std=0.0, not none)"),
        ({"margins": {"val_loss": 0.01}}, "keeps its margins (val_loss=0.005, not val_loss=0.01)"),
        ({"claims": []}, "keeps its claims"),
        ({"claims": [{**CLAIM, "kind": "greater"}]}, "keeps its claims"),
    ],
)
def test_another_declaration_is_not_taken_over_and_said_to_be_so(
    mine: Store, change: dict[str, Any], line: str | None
) -> None:
    before = row(mine, "studies")["grid"]
    grid = made(**change)
    lines = said(mine, grid)
    expected = (
        [] if line is None else [f"study 'mine' {line}; another needs a study of its own, --study NAME"]
    )
    assert lines == expected
    mine.write(lambda c: enqueue(c, "mine", grid))
    if line:
        assert row(mine, "studies")["grid"] == before


@pytest.mark.parametrize("factors", [{"noise_std": [0.0, 0.1]}, {"top_k": [1, 2], "muon_lr": [0.01, 0.02]}])
def test_other_factors_are_refused_with_the_remedy(mine: Store, factors: dict[str, Any]) -> None:
    grid = made(factors=factors, baseline={}, claims=[])
    said(mine, grid)  # what `enqueue` says first, whatever it is, it says without failing
    with pytest.raises(ConfigError, match=r"its factors are noise_std, top_k, not .*; start another study"):
        mine.write(lambda c: enqueue(c, "mine", grid))


def test_a_grid_without_the_names_of_levels_is_refused_too(store: Store) -> None:
    named = {"factors": {"amount": ["none", "much"]}, "baseline": {}, "claims": []}
    levels = {"amount": {"none": {"noise_std": 0.0}, "much": {"noise_std": 0.5}}}
    store.write(lambda c: enqueue(c, "mine", made(**named, levels=levels)))
    grid = made(baseline={}, claims=[])
    said(store, grid)
    with pytest.raises(ConfigError, match="start another study"):
        store.write(lambda c: enqueue(c, "mine", grid))


@both_engines
def test_jobs_that_stay_as_they_are_are_named_with_the_command_that_changes_them(
    mine: Store, worker: Worker
) -> None:
    lease = mine.write(lambda c: jobs.claim(c, worker))
    assert lease is not None
    mine.write(lambda c: jobs.fail(c, lease, "diverged", "no"))
    mine.write(lambda c: jobs.cancel_all(c, [2, 3]))
    grid = made(factors={"noise_std": [0.0, 0.1], "top_k": [1, 2]})
    assert said(mine, grid, priority=1, max_failures=3) == [
        "study 'mine': noise_std=0.5 is no longer in the grid; "
        "`python cli.py delete --study mine --where noise_std=0.5` removes it",
        "study 'mine': still failed: 1 job; "
        '`python cli.py retry --study mine --where "status=failed"` queues again',
        "study 'mine': still cancelled: 2 jobs; "
        '`python cli.py retry --study mine --where "status=cancelled"` queues again',
    ]
    assert said(mine, made(), priority=4, max_failures=1)[2:] == [
        "study 'mine': of another priority: 3 jobs; "
        "`python cli.py prioritize --study mine --priority 4` changes it",
        "study 'mine': of another --max-failures: 3 jobs; 1 is for those queued now",
    ]


def test_levels_that_differ_by_rounding_are_warned_of(mine: Store) -> None:
    near = made(factors={"noise_std": [0.0, 0.1, 0.5, 0.1 + 1e-17 + 2e-17], "top_k": [1, 2]})
    assert said(mine, near)[:1] == [
        "warning: noise_std = 0.1 and 0.10000000000000003 are two levels; if you want one: "
        '`python cli.py delete --study mine --where "noise_std=0.10000000000000003"`'
    ]
    later = made(factors={"noise_std": [0.30000000000000004, 0.3], "top_k": [1, 2]}, baseline={}, claims=[])
    with mine.read() as connection:
        [line] = not_done(connection, "new", later)
    assert line.startswith("warning: noise_std = 0.3 and 0.30000000000000004 are two levels")
    small = made(factors={"noise_std": [0.0, 1e-300], "top_k": [1, 2]}, claims=[])
    with mine.read() as connection:
        assert not_done(connection, "new", small) == []


@pytest.mark.parametrize(
    ("factors", "same"),
    [
        ({"engine": ["auto", "plain"]}, r"{'engine': 'plain'} is the same run as {'engine': 'auto'}"),
        ({"micro_batch": [12, 0]}, None),
        ({"micro_batch": [0, 8, 24]}, r"{'micro_batch': 24} is the same run as {'micro_batch': 0}"),
        ({"micro_batch": [0, 25]}, r"{'micro_batch': 25} is the same run as {'micro_batch': 0}"),
        ({"noise_std": [0.0, -0.0]}, "twice"),
        ({"noise_std": [0, 0.0]}, "twice"),
    ],
)
def test_levels_that_make_the_same_run_are_refused(factors: dict[str, Any], same: str | None) -> None:
    content = {"name": "mine", "factors": factors, "seeds": [1]}
    if same is None:
        assert parse_grid(content).size == 2
        return
    with pytest.raises(ConfigError, match=same):
        parse_grid(content)


def test_minus_zero_is_zero() -> None:
    content = {**CONTENT, "claims": [{**CLAIM, "against": {"noise_std": -0.0}}]}
    minus = parse_grid({**content, "factors": {"noise_std": [-0.0, 0.1]}, "baseline": {"noise_std": -0.0}})
    plus = parse_grid({**CONTENT, "factors": {"noise_std": [0.0, 0.1]}})
    assert repr(minus.describe()) == repr(plus.describe())
    assert [(repr(cell), config.hash) for cell, config in minus.runs()] == [
        (repr(cell), config.hash) for cell, config in plus.runs()
    ]


def told_of_jobs(done: CompletedProcess[str]) -> list[str]:
    """What stderr says, the two lines about the text aside."""
    return [line for line in done.stderr.splitlines() if not line.startswith(("text: ", "vocabulary "))]


def test_the_command_says_what_it_did_not_do(cli: Cli, tiny_grid: Path, tmp_path: Path) -> None:
    enqueue_tiny = ("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled")
    assert told_of_jobs(cli(*enqueue_tiny)) == []
    again = cli(*enqueue_tiny, "--priority", "0")
    assert (again.stdout, told_of_jobs(again)) == ("tiny: 0 queued, 4 already there\n", [])
    cli("cancel", "1")
    told = cli(*enqueue_tiny, "--priority", "2")
    assert [line.partition(";")[0] for line in told_of_jobs(told)] == [
        "study 'tiny': still cancelled: 1 job",
        "study 'tiny': of another priority: 3 jobs",
    ]


# --- more seeds, without the grid file --------------------------------------------------------------------


@pytest.mark.slow
def test_more_seeds_are_what_the_study_holds_with_other_seeds(store: Store) -> None:
    """To the last bit of each configuration: what the whole grid with those seeds would have queued."""
    grid = made(base={"train.steps": 8}, repeats=2)
    store.write(lambda c: enqueue(c, "mine", grid))
    store.write(lambda c: enqueue(c, "whole", made(base={"train.steps": 8}, repeats=2, seeds=[1, 2, 3])))
    assert store.write(lambda c: more_seeds(c, "mine", (2, 3), Path())) == (24, 24)
    assert store.write(lambda c: more_seeds(c, "mine", (3,), Path())) == (0, 12)

    def runs(study: int) -> list[tuple[Any, ...]]:
        names = ("config_hash", "config", "cell", "seed", "total_steps")
        return sorted(tuple(job[name] for name in names) for job in rows(store, "jobs", study_id=study))

    assert runs(1) == runs(2)
    one, two = (json.loads(row(store, "studies", id=number)["grid"]) for number in (1, 2))
    assert one == two


@pytest.mark.slow
def test_more_seeds_of_some_conditions(mine: Store) -> None:
    added = mine.write(
        lambda c: more_seeds(c, "mine", range(2, 9), Path(), "noise_std in (0.0, 0.1) and top_k=1")
    )
    assert added == (14, 14)
    new = [json.loads(job["cell"]) for job in rows(mine, "jobs") if job["seed"] > 1]
    assert {(cell["noise_std"], cell["top_k"]) for cell in new} == {(0.0, 1), (0.1, 1)}
    with pytest.raises(ConfigError, match="no run of it matches --where"):
        mine.write(lambda c: more_seeds(c, "mine", (9,), Path(), "noise_std=7"))
    with pytest.raises(ConfigError, match="'other': not in this database"):
        mine.write(lambda c: more_seeds(c, "other", (9,), Path()))


def test_another_design_names_everything_that_differs(mine: Store) -> None:
    changed = made(base={"train.steps": 8, "dropout": 0.5})
    said = "holds runs with model.dropout = 0.1, not 0.5; train.steps = 400, not 8; start another"
    with pytest.raises(ConfigError, match=said):
        mine.write(lambda c: enqueue(c, "mine", changed))


def test_the_command_adds_seeds_and_refuses_what_the_study_has(cli: Cli, tiny_grid: Path) -> None:
    made = ("--grid", str(tiny_grid), "--corpus", "bundled", "--study", "mine", "--set", "muon_lr=0.02")
    assert cli("enqueue", *made).returncode == 0
    more = cli("enqueue", "--study", "mine", "--seeds", "45..51", "--where", "noise_std=0.5")
    assert (more.stdout, more.stderr) == ("mine: 7 queued\n", "")
    refused = [
        (("--study", "mine"), "--study NAME --seeds 45..51 adds seeds"),
        (("--study", "mine", "--seeds", "52", "--set", "muon_lr=0.1"), "--set goes with --grid"),
        ((*made, "--where", "noise_std=0.5"), "leave out --grid"),
    ]
    for words, said in refused:
        done = cli("enqueue", *words)
        assert (done.returncode, said in " ".join(done.stderr.split())) == (2, True), done.stderr
