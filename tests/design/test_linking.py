"""A run that another study has is taken over whole, where it was made alike, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from model.events import Measured, Resumed
from reports.reading.frames import choose_study, load
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.design.linking import link
from runner.queue import jobs, records
from runner.queue.store import Store
from tests.conftest import both_engines, row, rows
from tests.report_reading import fact, render

HERE = {
    "source_sha256": "a" * 64,
    "host": "here",
    "processor": "one",
    "python": "3.12.1",
    "packages": {"torch": "2.13"},
}
RESULT = {"val_loss": 1.5, "val_perplexity": 4.48}


@pytest.fixture
def trained(queued: Store, worker: jobs.Worker) -> Store:
    """The study `tiny`, its four runs finished, each with metrics and counts."""
    while (lease := queued.write(lambda c: jobs.claim(c, worker))) is not None:
        held = lease

        def live(connection: sa.Connection, lease: jobs.Lease = held) -> None:
            records.describe(connection, lease, HERE, "trainer.log", 7)
            records.rewind(connection, lease, Resumed(0, environment={"device": "one"}))
            records.record(connection, lease, Measured(40, "val", {"loss": 1.5}, [[3, 1]]))
            jobs.finish(connection, lease, RESULT | {"val_loss": 1.5 + lease.job_id})

        queued.write(live)
    return queued


def again(
    store: Store, tiny_grid: Path, here: dict[str, Any] = HERE, seeds: str = "42..44"
) -> dict[str, int]:
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds=seeds)
    store.write(lambda c: enqueue(c, "later", grid))
    return store.write(lambda c: link(c, "later", here))


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


def test_of_two_numeric_environments_the_newer_is_taken(trained: Store, tiny_grid: Path) -> None:
    provenance = json.dumps(HERE | {"numeric_environment": {"device": "two"}})
    trained.write(
        lambda c: c.execute(
            sa.text("UPDATE attempts SET provenance = :p WHERE job_id = 4"), {"p": provenance}
        )
    )
    assert again(trained, tiny_grid) == {"tiny": 1}
