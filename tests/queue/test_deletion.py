"""Deleting jobs and studies: what goes, what is refused, and what a command killed half-way leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import sqlalchemy as sa

from model.events import Checkpointed, Measured
from runner.care import clean, doctor
from runner.care.copying import content, copy_store
from runner.design import grid_file
from runner.design.enqueue import enqueue
from runner.queue import jobs, records, schema, studies
from runner.queue.jobs import Lease, UnknownJob, Worker
from runner.queue.store import Store, backup_store, open_store
from tests.conftest import both_engines, row, rows

Cli = Callable[..., CompletedProcess[str]]
RESULT = {"val_loss": 1.0, "val_perplexity": 2.7}
TABLES = ("jobs", "attempts", "metrics", "expert_counts", "results", "checkpoints")


def left_behind(store: Store, lease: Lease, runs: Path, attempt: str = "a1") -> None:
    """A row in every table, and a checkpoint, a log and weights in the run folder."""
    folder = runs / store.database_id / str(lease.job_id) / attempt
    folder.mkdir(parents=True)
    for name in ("step-10.safetensors", "trainer.log", "weights.safetensors"):
        (folder / name).write_text("a few bytes")
    event = Checkpointed(10, "", "0" * 64, 10, 0.1)
    path = f"{lease.job_id}/{attempt}/step-10.safetensors"
    store.write(lambda c: records.checkpointed(c, lease, event, path))
    store.write(lambda c: records.record(c, lease, Measured(10, "val", {"loss": 2.0}, [[1, 2]])))


@pytest.fixture
def mixed(queued: Store, tiny_grid: Path, worker: Worker, tmp_path: Path) -> Store:
    """tiny: job 1 done, 2 failed, 3 cancelled, 4 queued; other: jobs 5 to 8, 5 done with everything."""
    grid = grid_file.load_grid(str(tiny_grid))
    queued.write(lambda c: enqueue(c, "other", grid))
    for number in (1, 2, 5):
        queued.write(lambda c, n=number: jobs.prioritize(c, [n], 9))
        lease = queued.write(lambda c: jobs.claim(c, worker))
        assert lease is not None
        left_behind(queued, lease, tmp_path / "runs")
        if number == 2:
            queued.write(lambda c, k=lease: jobs.fail(c, k, "diverged", "no"))
        else:
            queued.write(lambda c, k=lease: jobs.finish(c, k, RESULT))
    queued.write(lambda c: jobs.cancel_all(c, [3]))
    return queued


def ids(store: Store, table: str) -> set[int]:
    return {found["id" if table == "jobs" else "job_id"] for found in rows(store, table)}


@both_engines
def test_a_study_goes_with_every_row_and_file_of_its_own_and_of_no_other(
    cli: Cli, mixed: Store, tmp_path: Path
) -> None:
    done = cli("delete", "--study", "tiny", "--yes")
    assert done.stdout == "4 jobs deleted, and study tiny\n66 B freed\n", done.stderr
    for table in TABLES:
        assert ids(mixed, table) == ({5, 6, 7, 8} if table == "jobs" else {5}), table
    assert {event["job_id"] for event in rows(mixed, "events")} <= {None, 5}
    assert [study["name"] for study in rows(mixed, "studies")] == ["other"]
    [event] = rows(mixed, "events", kind="deleted")
    assert json.loads(event["detail"]) == {
        "study": "tiny", "jobs": 4, "whole": True, "test_revealed_at": None
    }  # fmt: skip
    folder = tmp_path / "runs" / mixed.database_id
    assert [path.name for path in folder.iterdir()] == ["5"]
    assert len(list((folder / "5" / "a1").iterdir())) == 3


@both_engines
def test_some_jobs_go_and_the_design_forgets_levels_and_seeds_that_have_none(cli: Cli, mixed: Store) -> None:
    assert cli("delete", "--where", "study=other and (noise_std=0.5 or seed=43)", "--yes").returncode == 0
    assert ids(mixed, "jobs") == {1, 2, 3, 4, 5}
    grid = json.loads(row(mixed, "studies", name="other")["grid"])
    assert (grid["factors"], grid["seeds"]) == ({"noise_std": [0.0]}, [42])
    untouched = json.loads(row(mixed, "studies", name="tiny")["grid"])
    assert (untouched["factors"], untouched["seeds"]) == ({"noise_std": [0.0, 0.5]}, [42, 43])
    assert cli("delete", "--where", "study=other", "--yes").stdout.startswith(
        "1 job deleted, and study other"
    )
    assert cli("report", "--study", "tiny").returncode == 0


def test_the_baseline_stays_in_the_design(mixed: Store) -> None:
    mixed.write(lambda c: studies.delete(c, [1, 3]))
    grid = json.loads(row(mixed, "studies", name="tiny")["grid"])
    assert grid["factors"] == {"noise_std": [0.0, 0.5]}
    assert {job["cell"] for job in rows(mixed, "jobs", study_id=1)} == {'{"noise_std": 0.5}'}


@both_engines
def test_nothing_goes_while_any_of_it_runs(cli: Cli, mixed: Store, worker: Worker) -> None:
    held = mixed.write(lambda c: jobs.claim(c, worker))
    assert held is not None
    with mixed.read() as connection:
        before = content(connection)
    done = cli("delete", "--study", "tiny", "--yes")
    assert (done.returncode, done.stdout) == (65, "")
    assert f"`python cli.py cancel {held.job_id}` asks them to stop" in done.stderr
    with mixed.read() as connection:
        assert content(connection) == before
    # The lease of a worker that died holds nothing.
    mixed.write(
        lambda c: c.execute(sa.update(schema.jobs).values(lease_expires_at=1.0).where(held_job(held)))
    )
    assert cli("delete", "--study", "tiny", "--yes").returncode == 0
    assert ids(mixed, "jobs") == {5, 6, 7, 8}


def held_job(lease: Lease) -> sa.ColumnElement[bool]:
    return schema.jobs.c.id == lease.job_id


def test_it_shows_and_asks_first(cli: Cli, mixed: Store) -> None:
    done = cli("delete", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cancelled" in done.stderr
    assert "--yes" in done.stderr
    assert len(rows(mixed, "jobs")) == 8
    for selection, said in (("--where seed=9", "no job matches"), ("--study none", "known: other, tiny")):
        assert said in cli("delete", *selection.split(" ", 1), "--yes").stderr
    assert len(rows(mixed, "jobs")) == 8


@both_engines
def test_a_number_is_never_given_again(mixed: Store, tiny_grid: Path, database: str, tmp_path: Path) -> None:
    """Its run folder, an event of its study and people's notes would be taken for the new one's."""
    mixed.write(lambda c: studies.reveal_test(c, "other"))
    mixed.write(lambda c: studies.delete(c, [5, 6, 7, 8], "other"))
    grid = grid_file.load_grid(str(tiny_grid))
    mixed.write(lambda c: enqueue(c, "again", grid))
    assert ids(mixed, "jobs") == {1, 2, 3, 4, 9, 10, 11, 12}
    assert row(mixed, "studies", name="again")["id"] == 3
    mixed.write(lambda c: studies.delete(c, [9, 10, 11, 12], "again"))
    mixed.close()
    list(copy_store(database, str(tmp_path / "copy.db")))
    copy = open_store(str(tmp_path / "copy.db"))
    copy.write(lambda c: enqueue(c, "copied", grid))
    assert ids(copy, "jobs") == {1, 2, 3, 4, 13, 14, 15, 16}
    copy.close()


def test_what_a_killed_delete_leaves_is_found_and_removed(mixed: Store, tmp_path: Path) -> None:
    """Killed between rows and files."""
    runs = tmp_path / "runs"
    mixed.write(lambda c: studies.delete(c, [1, 2, 3, 4], "tiny"))
    left = [(file.job_id, file.kind, file.status) for file in clean.left_by_deleted(mixed, runs)]
    assert left == [
        (job, kind, "deleted") for job in (1, 2) for kind in ("checkpoint", "log", "other")
    ]  # fmt: skip
    found = {finding.name: finding for finding in doctor.database(str(mixed.path), runs)}
    assert found["checkpoints"].text.startswith("2 that no job points to")
    assert found["run folder"].text.startswith("4 more files of deleted jobs")
    for finding in found.values():
        if finding.mend is not None:
            finding.mend()
    assert [path.name for path in (runs / mixed.database_id).iterdir()] == ["5"]
    again = {finding.name: finding.level for finding in doctor.database(str(mixed.path), runs)}
    assert again["checkpoints"] == "ok"
    assert "run folder" not in again


def test_a_backup_leaves_what_the_database_did_since(mixed: Store, worker: Worker, tmp_path: Path) -> None:
    """It has the same run folder, and knows neither later jobs nor later attempts."""
    runs = tmp_path / "runs"
    backup_store(str(mixed.path), tmp_path / "monday.db")
    mixed.write(lambda c: jobs.retry_all(c, [2]))
    mixed.write(lambda c: jobs.prioritize(c, [2], 9))
    again = mixed.write(lambda c: jobs.claim(c, worker))
    assert again is not None
    left_behind(mixed, again, runs, "a2")
    later = runs / mixed.database_id / "9" / "a1"
    later.mkdir(parents=True)
    for name in ("step-10.safetensors", "weights.safetensors"):
        (later / name).write_text("a few bytes")
    before = sorted(runs.rglob("*"))
    for finding in doctor.database(str(tmp_path / "monday.db"), runs):
        if finding.mend is not None:
            finding.mend()
    assert sorted(runs.rglob("*")) == before
    monday = open_store(str(tmp_path / "monday.db"))
    found = clean.removable(monday, runs, weights=True)
    assert found
    assert not [file for file in found if file.job_id == 9 or "a2" in file.path.parts]
    monday.close()


def test_clean_removes_it_too(cli: Cli, mixed: Store, tmp_path: Path) -> None:
    mixed.write(lambda c: studies.delete(c, [1, 2, 3, 4], "tiny"))
    assert "2 others" in cli("clean").stdout
    assert cli("clean", "--yes").returncode == 0
    kept = [str(path.relative_to(tmp_path / "runs" / mixed.database_id)) for path in sorted(
        (tmp_path / "runs" / mixed.database_id).rglob("*.safetensors"))]  # fmt: skip
    assert kept == ["5/a1/weights.safetensors"]


def test_imported_results_can_be_deleted(cli: Cli, store: Store) -> None:
    source = Path(__file__).parents[1] / "data" / "published_results.csv"
    assert cli("import", str(source), "--study", "published").returncode == 0
    assert cli("delete", "--study", "published", "--yes").stdout.startswith(
        "18 jobs deleted, and study published"
    )
    assert rows(store, "results") == []


def test_running_jobs_are_named(mixed: Store, worker: Worker) -> None:
    mixed.write(lambda c: jobs.claim(c, worker))
    with pytest.raises(UnknownJob, match="still running: 1 job, and nothing was deleted"):
        mixed.write(lambda c: studies.delete(c, [4, 6, 7, 8]))
    assert len(rows(mixed, "jobs")) == 8
