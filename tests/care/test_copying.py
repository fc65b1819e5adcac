"""`db copy`: nothing lost on the way to a server and back, and every reader says the same of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from model.config import ConfigError
from model.events import Checkpointed, Measured, Resumed
from runner.care import copying
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue import jobs, records, schema, selection, studies
from runner.queue.backlog import backlog
from runner.queue.store import Store, StoreUnreachable, open_store
from runner.view import digest, snapshot, status
from runner.view.details import job_details
from tests import report_fixtures as made
from tests.conftest import both_engines, on_a_server, row, rows
from tests.postgres import PASSWORD, Cluster
from tests.queue.test_jobs import RESULT
from tests.report_reading import render


def add_to(database: str, *states: object) -> None:
    """Fill a file with studies in the states that the report's tests use."""
    store = open_store(database, create=True)
    for state in states:
        store.write(state)  # type: ignore[arg-type]
    store.close()


def everything(database: str) -> dict[str, list[dict[str, object]]]:
    store = open_store(database)
    found = {table: rows(store, table) for table in schema.metadata.tables}
    store.close()
    return found


@pytest.fixture
def lived(store: Store, tiny_grid: Path, worker: jobs.Worker) -> str:
    """A database in which something of everything has happened; nothing runs any more."""
    grid = grid_file.load_grid(str(tiny_grid))
    store.write(lambda c: enqueue(c, "tiny", grid))
    values = {"loss": 1 / 3, "perplexity": float("inf"), "accuracy": float("nan"), "smallest": 5e-324}

    def live(connection: sa.Connection) -> None:
        first = jobs.claim(connection, worker)
        assert first is not None
        records.describe(connection, first, {"host": "Zürich · 東京"}, "1/a1/trainer.log", 7)
        records.rewind(connection, first, Resumed(0))
        records.record(connection, first, Measured(20, "val", values, [[2**40, 0], [1, 2]]))
        records.checkpointed(connection, first, Checkpointed(20, "", "0" * 64, 2**33, 0.1), "1/a1/step-20")
        jobs.finish(connection, first, {**RESULT, "tokens_seen": 2**35, "max_grad_norm": float("nan")})
        second = jobs.claim(connection, worker)
        assert second is not None
        jobs.fail(connection, second, "bug", "it's broken", "Traceback:\n  'quoted' \\ \t “text”")
        jobs.cancel_all(connection, [3])
        look = {"study_id": 1, "number": 1, "seeds": 3, "made_at": 1.5, "owner": "w", "reason": "", "jobs": 2}
        connection.execute(schema.looks.insert().values(**look, claims='[{"name": "größer"}]'))
        studies.hold(connection, "tiny", True)

    store.write(live)
    return store.place.name


def test_there_and_back_nothing_is_lost(lived: str, cluster: Cluster, tmp_path: Path) -> None:
    server, back = cluster.database(empty=True), str(tmp_path / "back.db")
    there = list(copying.copy_store(lived, server))
    assert there[:-1] == list(copying.copy_store(server, back))[:-1]  # the same counts and hashes
    assert PASSWORD not in there[-1]
    assert everything(server) == everything(lived) == everything(back)
    counts = {line.split()[0]: int(line.split()[1]) for line in there[:-1]}
    assert counts == {table: len(found) for table, found in everything(lived).items()}
    assert {table for table, count in counts.items() if not count} == {"workers"}
    cluster.drop(server)


def test_hash_sees_every_change(lived: str) -> None:
    store = open_store(lived)
    seen = set()
    for change in (
        "SELECT 1",
        "UPDATE metrics SET value = value + 1e-15 WHERE name = 'loss'",
        "UPDATE events SET kind = 'claimed ' WHERE id = 2",
        "UPDATE attempts SET traceback = NULL",
        "DELETE FROM checkpoints",
    ):
        store.write(lambda c, change=change: c.exec_driver_sql(change))
        with store.read() as connection:
            seen.add(str(copying.content(connection)))
    assert len(seen) == 5
    store.close()


def test_queue_goes_on_in_the_copy(lived: str, cluster: Cluster, worker: jobs.Worker) -> None:
    """Ids follow those that came: the next job, attempt and event are new rows."""
    server = cluster.database()  # with its tables, and no row
    list(copying.copy_store(lived, server))
    store = open_store(server)
    before = everything(server)
    store.write(lambda c: studies.hold(c, "tiny", False))
    store.write(lambda c: c.exec_driver_sql("UPDATE jobs SET run_after = NULL"))
    lease = store.write(lambda c: jobs.claim(c, worker))
    assert lease is not None
    assert (lease.job_id, lease.attempt) == (2, 2)
    store.write(lambda c: jobs.finish(c, lease, RESULT))
    assert max(a["id"] for a in rows(store, "attempts")) == max(a["id"] for a in before["attempts"]) + 1
    assert row(store, "results", job_id=2)["attempt"] == 2
    store.close()
    cluster.drop(server)


def test_nothing_is_overwritten_and_no_running_job_copied(
    lived: str, tmp_path: Path, worker: jobs.Worker
) -> None:
    target = tmp_path / "new.db"
    with pytest.raises(ConfigError, match="exists already"):
        list(copying.copy_store(lived, lived))
    with pytest.raises(StoreUnreachable, match="no database there"):
        list(copying.copy_store(str(tmp_path / "none.db"), str(target)))
    store = open_store(lived)
    store.write(lambda c: studies.hold(c, "tiny", False))
    store.write(lambda c: jobs.claim(c, worker))
    with pytest.raises(ConfigError, match=r"1 job running.*stop the workers"):
        list(copying.copy_store(lived, str(target)))
    assert not target.exists()
    store.close()


def test_server_that_holds_rows_is_not_filled(lived: str, cluster: Cluster) -> None:
    server = cluster.database()
    list(copying.copy_store(lived, server))
    before = everything(server)
    with pytest.raises(ConfigError, match="holds rows already") as refusal:
        list(copying.copy_store(lived, server))
    assert PASSWORD not in str(refusal.value)
    assert everything(server) == before
    cluster.drop(server)


def test_text_that_a_server_cannot_hold_is_said_and_leaves_it_empty(lived: str, cluster: Cluster) -> None:
    server = cluster.database()
    store = open_store(lived)
    store.write(lambda c: c.execute(schema.attempts.update().values(message="a\0b")))
    store.close()
    with pytest.raises(ConfigError, match="NUL"):
        list(copying.copy_store(lived, server))
    store = open_store(lived)
    store.write(lambda c: c.execute(schema.attempts.update().values(message="ab")))
    store.close()
    list(copying.copy_store(lived, server))  # the first try left nothing behind
    cluster.drop(server)


# --- readers ----------------------------------------------------------------------------------------------


def test_report_from_a_server_is_the_same_text(cluster: Cluster, tmp_path: Path) -> None:
    file, server = str(tmp_path / "jobs.db"), cluster.database()
    whole = lambda c: made.finished_study(c, "whole")  # noqa: E731
    add_to(file, whole, made.published_study, made.unfinished_study)
    list(copying.copy_store(file, server))
    texts = []
    for database in (file, server):
        store = open_store(database)
        with store.read() as connection:
            names = list(connection.scalars(sa.select(schema.studies.c.name).order_by("id")))
            texts.append([render(connection, name) for name in names])
        store.close()
    assert texts[0] == texts[1]
    assert all(len(text) > 2_000 for text in texts[0])
    cluster.drop(server)


@both_engines
def test_every_reader_reads_a_server_too(store: Store, database: str, tiny_grid: Path) -> None:
    """What people ask for in a day, over jobs in every state: the values do not depend on the engine."""
    worker = jobs.Worker("worker-1", "here", 1, "cpu")
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="1..4")

    def live(connection: sa.Connection) -> None:
        enqueue(connection, "tiny", grid)
        row = {"id": "worker-1", "host": "here", "pid": 1, "device": "cpu"}
        connection.execute(schema.workers.insert().values(started_at=1, heartbeat_at=1, **row))
        done, failed, running = (jobs.claim(connection, worker) for _ in range(3))
        assert None not in (done, failed, running)
        records.record(connection, running, Measured(8, "train", {"loss": 4.5, "tokens_per_second": 9.0}))
        jobs.finish(connection, done, RESULT)
        jobs.fail(connection, failed, "diverged", "at step 7")
        jobs.hold(connection, [8])
        jobs.cancel_all(connection, [7])

    store.write(live)
    with store.read() as connection:
        (overview,) = status.studies_overview(connection)
        (running,) = status.running_jobs(connection)
        shown = snapshot.snapshot(connection, "tiny", [])
        counts = snapshot._counts(connection, 1)
        text = digest.digest(connection)
        found = {
            where: [job.id for job in selection.jobs_meant(connection, [], "tiny", where, schema.STATUSES)]
            for where in (
                "noise_std=0.5",
                "noise_std!=0.5 and not status=queued",
                "d_model=16 and seed in (1, 2)",
                "corpus=bundled",
                "cause=diverged or held=1",
                "steps > 39 and priority < 1 and id <= 2",
            )
        }
        details = job_details(connection, 3)
        left = backlog(connection)
    json.dumps([overview, running, details])  # whole numbers and floats alone: `--json` prints them
    states = {name: overview[name] for name in schema.STATUSES}
    assert states == {"queued": 4, "running": 1, "done": 1, "failed": 1, "cancelled": 1}
    assert (overview["queued"], overview["held"], overview["steps_left"]) == (4, 1, 4 * 40 - 8)
    assert (running["value"], running["tokens_per_second"], running["stale"]) == (4.5, 9.0, False)
    assert sum(map(len, shown.cells.values())) == sum(sum(each.values()) for each in counts.values()) == 8
    assert {state: sum(each.get(state, 0) for each in counts.values()) for state in ("paused", "done")} == {
        "paused": 1,
        "done": 1,
    }
    assert "1 done, 1 failed, 1 cancelled" in text
    assert (left.due, left.running, left.steps, type(left.steps)) == (3, 1, 4 * 40 - 8, int)
    assert found == {
        "noise_std=0.5": [2, 4, 6, 8],
        "noise_std!=0.5 and not status=queued": [1, 3, 7],
        "d_model=16 and seed in (1, 2)": [1, 2, 3, 4],
        "corpus=bundled": list(range(1, 9)),
        "cause=diverged or held=1": [2, 8],
        "steps > 39 and priority < 1 and id <= 2": [1, 2],
    }


@on_a_server
def test_commands_run_on_a_server(cli, queued: Store) -> None:
    for words in (
        ["status", "--json"],
        ["watch"],
        ["digest"],
        ["show", "1"],
        ["pause", "--where", "noise_std=0.5", "--yes"],
        ["prioritize", "1", "--priority", "9"],
        ["export", "--table", "runs"],
        ["clean"],
        ["db", "upgrade"],
        ["report"],
    ):
        done = cli(*words)
        assert done.returncode == 0, done.stderr
    assert [job["held"] for job in rows(queued, "jobs")] == [0, 1, 0, 1]
