"""A run that another study has is taken over whole, where it was made alike, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import sqlalchemy as sa

from model.events import Measured, Resumed
from reports.reading.frames import choose_study, load
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.design.linking import link
from runner.design.more import more_seeds
from runner.design.program import reseeding
from runner.queue import jobs, looks, records
from runner.queue.looks import Decided
from runner.queue.store import Store
from runner.work import provenance, source
from tests.conftest import TINY_GRID, both_engines, row, rows
from tests.report_reading import fact, render

HERE = {
    "source_sha256": "a" * 64,
    "host": "here",
    "processor": "one",
    "python": "3.12.1",
    "packages": {"torch": "2.13"},
}
RESULT = {"val_loss": 1.5, "val_perplexity": 4.48}
LOOKED = """
[[claims]]
name = "Noise harms"
kind = "greater"
compare = { noise_std = 0.5 }

[looks]
seeds = [3, 4, 6]
"""


def train(store: Store, here: dict[str, Any] = HERE, device: str = "one") -> None:
    """Finish every queued job, each with metrics and counts."""
    worker = jobs.Worker(owner="worker-1", host="here", pid=1, device="cpu")
    while (lease := store.write(lambda c: jobs.claim(c, worker))) is not None:
        held = lease

        def live(connection: sa.Connection, lease: jobs.Lease = held) -> None:
            records.describe(connection, lease, here, "trainer.log", 7)
            records.rewind(connection, lease, Resumed(0, environment={"device": device}))
            records.record(connection, lease, Measured(40, "val", {"loss": 1.5}, [[3, 1]]))
            jobs.finish(connection, lease, RESULT | {"val_loss": 1.5 + lease.job_id})

        store.write(live)


@pytest.fixture
def trained(queued: Store) -> Store:
    """The study `tiny`, its four runs finished."""
    train(queued)
    return queued


def again(
    store: Store, tiny_grid: Path, here: dict[str, Any] = HERE, seeds: str = "42..44"
) -> dict[str, int]:
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds=seeds)
    store.write(lambda c: enqueue(c, "later", grid))
    return store.write(lambda c: link(c, "later", here))


def test_the_results_of_one_engine_are_not_anothers(trained: Store, tiny_grid: Path) -> None:
    """The hash leaves it out: the configurations are otherwise the same."""
    plain = scales.adjust(grid_file.load_grid(str(tiny_grid)), assignments=["engine=plain"])
    trained.write(lambda c: enqueue(c, "plain", plain))
    assert trained.write(lambda c: link(c, "plain", HERE)) == {}
    train(trained)
    trained.write(lambda c: enqueue(c, "plainly", plain))
    assert trained.write(lambda c: link(c, "plainly", HERE)) == {"plain": 4}


@both_engines
def test_a_run_made_alike_is_taken_over_whole(trained: Store, tiny_grid: Path) -> None:
    assert again(trained, tiny_grid) == {"tiny": 4}
    mine = rows(trained, "jobs", study_id=2)
    assert [(job["seed"], job["status"]) for job in mine] == [
        *[(seed, "done") for seed in (42, 42, 43, 43)],
        *[(44, "queued")] * 2,
    ]
    for job in mine[:4]:
        theirs = next(j for j in rows(trained, "jobs", study_id=1) if j["config_hash"] == job["config_hash"])
        for table in ("results", "measures", "metrics", "expert_counts"):
            copied = [{**r, "job_id": 0} for r in rows(trained, table, job_id=job["id"])]
            assert copied == [{**r, "job_id": 0} for r in rows(trained, table, job_id=theirs["id"])]
            assert copied
        tried = row(trained, "attempts", job_id=job["id"])
        assert tried["message"] == f"taken over from job {theirs['id']} of study tiny"
        assert json.loads(tried["provenance"])["host"] == "here"
        assert tried["started_at"] == tried["ended_at"]
    assert trained.write(lambda c: link(c, "later", HERE)) == {}


@pytest.mark.slow
def test_a_report_names_what_was_taken_over(trained: Store, tiny_grid: Path) -> None:
    again(trained, tiny_grid)
    with trained.read() as connection:
        data = load(connection, choose_study(connection, "later")[0])
        assert data.linked == (("tiny", 4),)
        told = fact(render(connection, "later"), "Shared runs")
        assert told.endswith("Taken over and not trained again: 4 from study tiny")
        assert load(connection, choose_study(connection, "tiny")[0]).linked == ()


@pytest.mark.parametrize("changed", [*HERE])
def test_what_was_made_otherwise_is_trained(trained: Store, tiny_grid: Path, changed: str) -> None:
    assert again(trained, tiny_grid, HERE | {changed: "another"}) == {}
    assert {job["status"] for job in rows(trained, "jobs", study_id=2)} == {"queued"}


@pytest.mark.parametrize(
    "spoilt",
    [
        "UPDATE results SET exact = 0",
        "UPDATE attempts SET provenance = NULL",
        "UPDATE attempts SET provenance = json_set(provenance, '$.program_sha256', 'before an edit')",
        "UPDATE studies SET program = '{}' WHERE id = 1",
        "UPDATE studies SET imported_from = 'results.csv'",
    ],
)
def test_what_is_not_known_to_be_alike_is_trained(trained: Store, tiny_grid: Path, spoilt: str) -> None:
    trained.write(lambda c: c.execute(sa.text(spoilt)))
    assert again(trained, tiny_grid) == {}


@pytest.fixture
def looked(trained: Store, tmp_path: Path) -> Store:
    """Besides `tiny`, a study with looks whose first three seeds are done: 40, 41 and 50."""
    path = tmp_path / "looked.toml"
    path.write_text(TINY_GRID + LOOKED)
    grid = scales.adjust(grid_file.load_grid(str(path)), seeds="40,41,50,42,43,51")
    trained.write(lambda c: enqueue(c, "looked", grid))
    train(trained)
    return trained


def look(store: Store, number: int) -> list[looks.Made]:
    """Make the look that is due, in which nothing is decided."""
    cells = [{"noise_std": level} for level in (0.0, 0.5)]
    decided = Decided(number, [{"name": "Noise harms", "look": 0}], cells, "")
    taking = partial(link, here=HERE)
    return looks.make_due(store, lambda *_: decided, "me", reseeding(Path()), taking)


@pytest.mark.slow
@both_engines
def test_a_look_takes_over_what_another_study_has_and_leads_on(looked: Store) -> None:
    (first,) = look(looked, 1)
    assert first.told() == (
        "looked: look 1: 0 of 1 claims decided; 2 runs queued, 2 of them taken over from study tiny"
    )
    assert {job["status"] for job in rows(looked, "jobs")} == {"done"}
    (second,) = look(looked, 2)  # due at once: no run of its block was left to train
    assert (second.jobs, second.taken_over) == (4, {"tiny": 2})
    assert [job["seed"] for job in rows(looked, "jobs", status="queued")] == [51, 51]
    assert [(made["number"], made["jobs"]) for made in rows(looked, "looks")] == [(1, 2), (2, 4)]


@pytest.mark.slow
def test_a_study_that_trains_afresh_does_so_at_its_looks(looked: Store) -> None:
    looked.write(lambda c: link(c, "looked", HERE, fresh=True))
    (first,) = look(looked, 1)
    assert (first.jobs, first.taken_over) == (2, {})
    train(looked)
    (second,) = look(looked, 2)
    assert (second.jobs, second.taken_over) == (4, {})


def test_what_ran_on_another_device_than_the_study_is_trained(trained: Store, tiny_grid: Path) -> None:
    """A study that has begun stays of one numeric environment."""
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="40")
    trained.write(lambda c: enqueue(c, "later", grid))
    train(trained, device="two")
    trained.write(lambda c: more_seeds(c, "later", (42,), Path()))
    assert trained.write(lambda c: link(c, "later", HERE)) == {}
    train(trained, device="one")
    trained.write(lambda c: more_seeds(c, "later", (43,), Path()))
    assert trained.write(lambda c: link(c, "later", HERE)) == {"tiny": 2}


def test_the_command_takes_over_more_seeds_too_and_keeps_that_a_study_trains_afresh(
    store: Store, cli: Callable[..., CompletedProcess[str]], tiny_grid: Path
) -> None:
    of_grid = ("--grid", str(tiny_grid), "--corpus", "bundled")
    assert cli("enqueue", *of_grid, "--study", "pilot", "--seeds", "45,46").returncode == 0
    train(store, provenance.of_this_machine() | source.take().provenance())
    assert cli("enqueue", *of_grid, "--study", "mine", "--seeds", "42").stdout == "mine: 2 queued\n"
    more = cli("enqueue", "--study", "mine", "--seeds", "45")
    assert more.stdout == "mine: 0 queued, 2 taken over from study pilot\n"
    assert "trained those runs with the same code; --fresh, in another --study" in more.stderr
    afresh = cli("enqueue", "--study", "mine", "--seeds", "46", "--fresh")
    assert (afresh.stdout, afresh.stderr) == ("mine: 2 queued\n", "")
    other = cli("enqueue", *of_grid, "--study", "other", "--seeds", "45", "--fresh")
    assert other.stdout == "other: 2 queued\n"
    for study in ("mine", "other"):
        assert json.loads(row(store, "studies", name=study)["grid"])["fresh"]


def test_runs_that_waited_are_taken_over_and_not_counted_as_new(
    store: Store, cli: Callable[..., CompletedProcess[str]], tiny_grid: Path
) -> None:
    of_grid = ("--grid", str(tiny_grid), "--corpus", "bundled")
    assert cli("enqueue", *of_grid, "--study", "mine", "--seeds", "45").stdout == "mine: 2 queued\n"
    assert cli("pause", "--study", "mine", "--yes").returncode == 0
    assert cli("enqueue", *of_grid, "--study", "pilot", "--seeds", "45").stdout == "pilot: 2 queued\n"
    train(store, provenance.of_this_machine() | source.take().provenance())
    more = cli("enqueue", *of_grid, "--study", "mine", "--seeds", "45,46")
    assert more.stdout == "mine: 2 queued, 2 taken over from study pilot, 2 already there\n"


def test_of_two_numeric_environments_the_newer_is_taken(trained: Store, tiny_grid: Path) -> None:
    provenance = json.dumps(HERE | {"numeric_environment": {"device": "two"}})
    trained.write(
        lambda c: c.execute(
            sa.text("UPDATE attempts SET provenance = :p WHERE job_id = 4"), {"p": provenance}
        )
    )
    assert again(trained, tiny_grid) == {"tiny": 1}
