# ruff: noqa: F811 (a fixture is imported, and is a parameter)
"""What a database server can do to a worker: go away, come back, crash in mid-transaction, tell a password.

Single errors and refusals are in test_postgresql.py.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import sqlalchemy as sa

from runner.queue import schema
from runner.queue.store import locate, open_store
from tests.conftest import PROJECT, on_a_server, results_bits, rows
from tests.injection import inject
from tests.postgres import PASSWORD, Cluster
from tests.work.test_worker import (  # noqa: F401
    Cli,
    Start,
    enqueue_long,
    start,
    steps_done,
    undisturbed,
    wait_for,
)


@on_a_server
def test_dropped_database_stops_the_worker_loudly(
    cli: Cli, start: Start, tiny_grid: Path, database: str, cluster: Cluster
) -> None:
    cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled", "--set=train.steps=40000")
    store = open_store(database)
    worker = start("--lease-seconds", "6")
    wait_for(lambda: steps_done(store) > 0, "a step")
    store.close()
    cluster.drop(database)
    _, errors = worker.communicate(timeout=120)
    with cluster.admin.connect() as admin:  # for the fixture to drop
        admin.exec_driver_sql(f"CREATE DATABASE {sa.make_url(database).database}")
    assert worker.returncode == 69, errors
    assert "moved, deleted or replaced" in errors
    assert "Traceback" not in errors
    assert PASSWORD not in errors


RESTARTS = """
if SUPERVISOR:
    import itertools, time
    import runner.store as store
    numbers, plain = itertools.count(1), store.Store.try_write
    def try_write(self, transaction):
        number = next(numbers)
        def struck(connection):
            answer = transaction(connection)
            if number % 2 and number < 12:
                open(os.path.join(HERE, f"ask-{number}"), "w").close()
                while not os.path.exists(os.path.join(HERE, f"went-{number}")):
                    time.sleep(0.01)
            return answer
        return plain(self, struck)
    store.Store.try_write = try_write
"""
"""Every other write is cut off before its COMMIT: the claim, measurements, the ending, the sign-off."""


@on_a_server
def test_restarts_of_the_server_cost_retries_and_no_bit(
    cli: Cli,
    start: Start,
    tiny_grid: Path,
    tmp_path: Path,
    database: str,
    own_cluster: Cluster,
    undisturbed: str,
) -> None:
    """The server is stopped and crashed by turns, in the midst of the worker's transactions."""
    enqueue_long(cli, tiny_grid)
    fault = tmp_path / "fault"
    env = inject(fault, RESTARTS)
    worker = start(PYTHONPATH=f"{env['PYTHONPATH']}{os.pathsep}{PROJECT}")
    struck: list[Path] = []
    while worker.poll() is None:
        for ask in set(fault.glob("ask-*")) - set(struck):
            own_cluster.stop("immediate" if len(struck) % 2 else "fast")
            ask.with_name(ask.name.replace("ask", "went")).touch()
            own_cluster.start()
            struck.append(ask)
        time.sleep(0.01)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0, errors
    assert len(struck) >= 4  # claim, ending, claim, ending: at least
    assert "connection to the database is lost" in errors
    store = open_store(database)
    assert [job["status"] for job in rows(store, "jobs")] == ["done", "done"]
    assert [(a["outcome"], a["number"]) for a in rows(store, "attempts")] == [("done", 1)] * 2
    assert results_bits(store) == undisturbed
    store.close()


@on_a_server
def test_server_away_longer_than_a_lease_costs_a_checkpoint_and_no_job(
    cli: Cli, start: Start, tiny_grid: Path, tmp_path: Path, database: str, own_cluster: Cluster
) -> None:
    """The worker fences itself and saves; when the server is back, the job goes on from there, uncharged."""
    enqueue_long(cli, tiny_grid, steps=100_000)
    store = open_store(database)
    worker = start("--lease-seconds", "3")
    wait_for(lambda: steps_done(store) > 20, "some steps")
    own_cluster.stop()
    wait_for(
        lambda: list(tmp_path.rglob("step-*.safetensors")), "the checkpoint of a worker without a server"
    )
    own_cluster.start()
    wait_for(lambda: len(rows(store, "attempts")) == 2, "the next attempt")
    wait_for(lambda: rows(store, "attempts")[-1]["resumed_from_step"], "its first step")
    assert cli("cancel", "2").returncode == 0  # first the one that waits, lest it be claimed meanwhile
    assert cli("cancel", "1").returncode == 0
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0, errors
    assert [(a["job_id"], a["outcome"]) for a in rows(store, "attempts")] == [
        (1, "preempted"),
        (1, "cancelled"),
    ]
    assert {job["failures"] for job in rows(store, "jobs")} == {0}
    store.close()


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
        cli("test", "--study", "tiny", *db),
        cli("compare", "tiny", "tiny", *db),
        cli("power", "--half-width", "0.5nats", *db),
        cli("doctor", *db),
        cli("db", "copy", database, "copy.db"),
    ]
    assert [done.returncode for done in said] == [0] * len(said), [done.stderr for done in said]
    said += [cli("db", "backup", "x", *db), cli("show", "9", *db), cli("db", "copy", "copy.db", database)]
    assert [done.returncode for done in said[-3:]] == [65, 65, 65]
    assert not [done.args for done in said if PASSWORD in done.stdout + done.stderr]
    assert locate(database).name in said[3].stdout  # how to make the report again
    store = open_store(database)
    assert PASSWORD not in str([rows(store, table) for table in schema.metadata.tables])
    assert "test revealed" in [event["kind"] for event in rows(store, "events")]
    store.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]
