"""A database on a server: how it is made and upgraded, and what "not now" means there.

What is the same on both engines is tested on both in test_store.py, test_jobs.py, test_queue_properties.py,
test_worker.py and test_faults.py; who may come in: test_server_access.py; what a server can do to a worker:
test_server_faults.py.
"""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from model.events import Checkpointed, Measured
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue import jobs, records, schema
from runner.queue.store import (
    Store,
    StoreRefused,
    StoreUnavailable,
    StoreUnreachable,
    open_store,
    upgrade_store,
)
from tests.conftest import PROJECT, described, four_at_once, on_a_server, row, rows, wide
from tests.postgres import Cluster

# --- making it --------------------------------------------------------------------------------------------


@on_a_server
def test_database_of_an_earlier_schema_is_refused_then_upgraded_whole(
    store: Store, cluster: Cluster, worker: jobs.Worker
) -> None:
    """A dump of one in mid-life: its tables and views are then those of a fresh database."""
    url = cluster.database(empty=True)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        dump = gzip.decompress((PROJECT / "tests/data/schema-0002.sql.gz").read_bytes()).decode()
        connection.connection.driver_connection.execute(dump)  # type: ignore[union-attr]
        connection.exec_driver_sql("ALTER TABLE jobs DROP COLUMN progress_at")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
        losses = "UPDATE results SET best_val_loss = 'infinity', max_grad_norm = NULL WHERE job_id = 1"
        connection.exec_driver_sql(losses)
        before = [
            dict(row)
            for row in connection.execute(sa.text("SELECT * FROM results ORDER BY job_id")).mappings()
        ]
    engine.dispose()
    with pytest.raises(StoreRefused, match=r"0001, older than .*db upgrade"):
        open_store(url)
    assert upgrade_store(url) == ("0001", schema.HEAD)
    assert upgrade_store(url) == (schema.HEAD, schema.HEAD)
    upgraded = open_store(url)
    made = described(upgraded.engine)
    assert made == described(store.engine)
    assert 'TEXT COLLATE "C"' in str(made["meta"])  # in the order of its bytes, as on SQLite
    assert "BIGINT" in str(made["results"])
    lease = upgraded.write(lambda c: jobs.claim(c, worker))
    assert lease is not None
    assert lease.primary == "val_loss"
    assert wide(upgraded) == before
    upgraded.close()
    cluster.drop(url)


def test_many_processes_make_one_database(cluster: Cluster) -> None:
    url = cluster.database(empty=True)
    code = f"from runner.queue.store import open_store; print(open_store({url!r}, True).database_id)"
    assert len(set(four_at_once(code))) == 1
    cluster.drop(url)


@on_a_server
def test_the_same_grid_queued_by_four_at_once_is_queued_once(database: str, tiny_grid: Path) -> None:
    code = f"""
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue.store import open_store
grid = scales.adjust(grid_file.load_grid({str(tiny_grid)!r}), seeds="1..100")
print(open_store({database!r}).write(lambda c: enqueue(c, "tiny", grid)))
"""
    assert sorted(map(int, four_at_once(code))) == [0, 0, 0, 200]
    store = open_store(database)
    assert len(rows(store, "studies")) == 1
    assert len(rows(store, "jobs")) == 200
    store.close()


# --- not now ----------------------------------------------------------------------------------------------


@on_a_server
def test_planner_knows_of_a_large_submission_at_once(store: Store) -> None:
    grid = scales.adjust(grid_file.load_grid("factorial"), seeds="1..200")
    store.write(lambda c: enqueue(c, "large", grid))
    with store.read() as connection:
        known = connection.exec_driver_sql("SELECT reltuples FROM pg_class WHERE relname = 'jobs'").scalar()
    assert known == grid.size == 1_200


@on_a_server
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("53100", "disk full"),
        ("58030", "disk full"),
        ("40001", "locked or busy"),
        ("40P01", "locked or busy"),
        ("53300", "locked or busy"),
        ("25006", "read-only"),
        ("57P01", "connection .* lost"),
        ("08006", "connection .* lost"),
    ],
)
def test_server_that_cannot_now_is_asked_again(store: Store, state: str, message: str) -> None:
    """The server itself raises the error, in the midst of a transaction."""
    raising = f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$"
    tried: list[int] = []

    def transaction(connection: sa.Connection) -> None:
        tried.append(1)
        connection.execute(schema.meta.insert().values(key="half", value=str(len(tried))))
        if len(tried) == 1:
            connection.exec_driver_sql(raising)

    with pytest.raises(StoreUnavailable, match=message):
        store.try_write(transaction)
    tried.clear()
    store.write(transaction)
    assert row(store, "meta", key="half")["value"] == "2"  # the first try left nothing behind


@on_a_server
def test_what_trying_again_would_not_mend_is_raised(store: Store) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        store.write(lambda c: c.execute(schema.meta.insert().values(key="database_id", value="twice")))


@on_a_server
def test_row_that_is_locked_is_waited_for(queued: Store, lease: jobs.Lease, database: str) -> None:
    holder = sa.create_engine(database)
    with holder.begin() as other:
        other.exec_driver_sql("SELECT id FROM jobs WHERE id = 1 FOR UPDATE")
        with pytest.raises(StoreUnavailable, match="locked or busy"):
            queued.try_write(lambda c: jobs.heartbeat(c, lease, 60, 1))
        assert queued.write(jobs.requeue_lost) == []  # passes over locked rows, and does not wait
    queued.write(lambda c: jobs.heartbeat(c, lease, 60, 1))
    holder.dispose()


@on_a_server
def test_claim_passes_over_a_row_in_anothers_hands(queued: Store, worker: jobs.Worker, database: str) -> None:
    holder = sa.create_engine(database)
    with holder.begin() as other:
        other.exec_driver_sql("SELECT id FROM jobs WHERE id = 1 FOR UPDATE")
        second = queued.write(lambda c: jobs.claim(c, worker))
        assert second is not None
        assert second.job_id == 2
    holder.dispose()


@on_a_server
def test_claim_that_waits_for_no_one_sees_what_changed_meanwhile(
    queued: Store, worker: jobs.Worker, database: str
) -> None:
    """Two claims that begin in the same moment: the second one's snapshot still shows job 1 as queued."""
    other = open_store(database)
    theirs = jobs.Worker("worker-2", "there", 2, "cpu")
    first_holds, second_may_go = threading.Event(), threading.Event()
    found: list[jobs.Lease | None] = []

    def claim_and_stay(connection: sa.Connection) -> None:
        found.append(jobs.claim(connection, theirs))
        first_holds.set()
        second_may_go.wait(60)

    holding = threading.Thread(target=lambda: other.write(claim_and_stay))
    holding.start()
    assert first_holds.wait(60)
    mine = queued.write(lambda c: jobs.claim(c, worker))
    second_may_go.set()
    holding.join(60)
    other.close()
    assert [claim.job_id for claim in (*found, mine) if claim] == [1, 2]


@on_a_server
def test_connection_cut_in_mid_transaction_is_made_anew(store: Store, cluster: Cluster) -> None:
    def cut(connection: sa.Connection) -> None:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with cluster.admin.connect() as admin:
            admin.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 10000)")
        connection.execute(sa.select(schema.meta))

    with pytest.raises(StoreUnavailable, match="lost"):
        store.try_write(cut)
    with pytest.raises(StoreUnavailable, match="lost"), store.read() as connection:
        cut(connection)
    store.try_write(lambda c: c.execute(schema.meta.insert().values(key="after", value="cut")))


@on_a_server
def test_event_that_is_sent_again_is_there_once(queued: Store, lease: jobs.Lease) -> None:
    """The answer to its COMMIT was lost: the worker cannot know, and writes it again."""
    measured = Measured(10, "val", {"loss": 1.0, "accuracy": float("nan")}, [[1, 2], [3, 4]])
    for _ in range(2):
        queued.write(lambda c: records.record(c, lease, measured))
        queued.write(lambda c: records.checkpointed(c, lease, Checkpointed(10, "", "0" * 64, 1, 0.1), "p"))
    assert len(rows(queued, "metrics")) == 2
    assert [count["tokens"] for count in rows(queued, "expert_counts")] == [1, 2, 3, 4]
    assert row(queued, "checkpoints")["path"] == "p"


# --- gone, or another -------------------------------------------------------------------------------------


def test_server_away_is_waited_for_but_another_database_is_not(own_cluster: Cluster) -> None:
    url = own_cluster.database()
    store = open_store(url)
    own_cluster.stop()
    store.check_identity()  # it does not answer: no reason to think that it is another
    with pytest.raises(StoreUnavailable, match="lost"):
        store.try_write(lambda c: None)
    own_cluster.start()
    store.write(lambda c: None)
    store.check_identity()
    store.write(lambda c: c.exec_driver_sql("UPDATE meta SET value = 'x' WHERE key = 'database_id'"))
    with pytest.raises(StoreUnreachable, match="replaced"):
        store.check_identity()
    store.close()
    own_cluster.drop(url)
    with pytest.raises(StoreUnreachable, match="deleted"):
        store.check_identity()
