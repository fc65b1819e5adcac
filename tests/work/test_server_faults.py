"""What a database server can do to a worker: go away, come back, crash in mid-transaction, tell a password.

Single errors and refusals are in test_postgresql.py.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from runner.queue import schema
from runner.queue.store import locate, open_store
from runner.work.worker import DRAINED
from tests.conftest import on_a_server, rows
from tests.injection import RESTARTS
from tests.postgres import PASSWORD, Cluster
from tests.work.night import Night, wait_for

Cli = Callable[..., subprocess.CompletedProcess[str]]


@on_a_server
def test_dropped_database_stops_the_worker_loudly(night: Night, database: str, cluster: Cluster) -> None:
    worker = night.work_to_gate("--lease-seconds", "6")
    night.store.close()
    cluster.drop(database)
    _, errors = worker.communicate(timeout=120)
    with cluster.admin.connect() as admin:  # for the fixture to drop
        admin.exec_driver_sql(f"CREATE DATABASE {sa.make_url(database).database}")
    assert worker.returncode == 69, errors
    assert "moved, deleted or replaced" in errors
    assert "Traceback" not in errors
    assert PASSWORD not in errors


@on_a_server
def test_restarts_of_the_server_cost_retries_and_no_bit(
    night: Night, own_cluster: Cluster, bits: str
) -> None:
    """The server is stopped and crashed by turns, in the midst of the worker's transactions."""
    worker = night.start("work", **night.inject(RESTARTS))
    fault, struck = night.folder / "fault", list[Path]()
    while worker.poll() is None:
        for ask in set(fault.glob("ask-*")) - set(struck):
            own_cluster.stop("immediate" if len(struck) % 2 else "fast")
            ask.with_name(ask.name.replace("ask", "went")).touch()
            own_cluster.start()
            struck.append(ask)
        time.sleep(0.01)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == DRAINED, errors
    assert len(struck) >= 4  # claim, ending, claim, ending: at least
    assert "connection to the database is lost" in errors
    assert [(a["outcome"], a["number"]) for a in rows(night.store, "attempts")] == [("done", 1)] * 2
    night.assert_undisturbed(bits)


@on_a_server
def test_server_away_longer_than_a_lease_costs_a_checkpoint_and_no_job(
    night: Night, own_cluster: Cluster, bits: str
) -> None:
    """The worker fences itself and saves; when the server is back, the job goes on from there, uncharged."""
    worker = night.work_to_gate("--lease-seconds", "3")
    own_cluster.stop()
    night.go_on_when_asked()  # the worker fences itself
    wait_for(lambda: list(night.folder.rglob("step-*.safetensors")), "the checkpoint of a worker on its own")
    own_cluster.start()
    assert worker.wait(timeout=300) == DRAINED
    first, second = rows(night.store, "attempts", job_id=1)
    assert (first["outcome"], second["outcome"]) == ("preempted", "done")
    assert second["resumed_from_step"] == 22
    assert {job["failures"] for job in rows(night.store, "jobs")} == {0}
    night.assert_undisturbed(bits)


@on_a_server
def test_password_on_the_command_line_is_in_nothing_that_is_left(
    cli: Cli, tiny_grid: Path, tmp_path: Path, database: str
) -> None:
    """Neither in what a command prints, nor in a row, a log or a report, nor where it fails."""
    db = ("--db", database)
    said = [
        cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled", *db),
        cli("cancel", "1", *db),
        cli("work", "--on-finish", "cat", *db),
        cli("report", *db),
        cli("test", "--study", "tiny", "--yes", *db),
        cli("power", "--half-width", "0.5nats", *db),
        cli("doctor", *db),
        cli("db", "copy", database, "copy.db"),
    ]
    assert [done.returncode for done in said] == [0] * len(said), [done.stderr for done in said]
    said += [cli("db", "backup", "x", *db), cli("show", "9", *db), cli("db", "copy", "copy.db", database)]
    said += [cli("compare", "tiny", "tiny", *db)]
    assert [done.returncode for done in said[-4:]] == [65, 65, 65, 65]
    assert not [done.args for done in said if PASSWORD in done.stdout + done.stderr]
    assert locate(database).name in said[3].stdout  # how to make the report again
    store = open_store(database)
    assert PASSWORD not in str([rows(store, table) for table in schema.metadata.tables])
    assert "test revealed" in [event["kind"] for event in rows(store, "events")]
    store.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]
