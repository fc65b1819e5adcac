"""No interleaving breaks the queue: hypothesis drives queue/jobs.py against a small model of its states.

Workers claim, beat, save, finish, fail and vanish; leases expire; people cancel and retry; and every worker
may act on a claim that it has long lost. The model is a dictionary; the database is a real one of each kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from model.events import Checkpointed, Measured, Resumed
from runner.queue import jobs, records, schema
from runner.queue.jobs import Lease, LeaseLost, Worker
from runner.queue.store import Store, now, open_store
from tests.conftest import both_engines

JOBS = 3
RESULT = {"val_loss": 1.0, "val_perplexity": 2.718}


@dataclass
class Expected:
    """What the model believes of one job."""

    status: str = "queued"
    attempt: int = 0
    failures: int = 0
    owner: str | None = None
    cancel_requested: bool = False
    saved_by_attempt: bool = False
    finished_by: int | None = None


class Queue(RuleBasedStateMachine):
    """Claims are a bundle that only grows: a stale claim may be used at any later time."""

    leases = Bundle("leases")

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.expected = {number: Expected() for number in range(1, JOBS + 1)}
        self.store.write(self._fill)

    def _fill(self, connection: sa.Connection) -> None:
        connection.execute(schema.studies.insert().values(id=1, name="s", grid="{}", created_at=now()))
        same = {"config": "{}", "cell": '{"noise_std": 0.0}', "total_steps": 400}
        runs = [{**same, "seed": seed, "config_hash": str(seed)} for seed in range(JOBS)]
        assert jobs.submit(connection, 1, runs) == JOBS

    def teardown(self) -> None:
        self.store.close()

    # --- moves ----------------------------------------------------------------------------------------------

    @rule(target=leases, owner=st.sampled_from(["a", "b"]))
    def claim(self, owner: str) -> object:
        lease = self.store.write(lambda c: jobs.claim(c, Worker(owner, "here", 1, "cpu")))
        free = [number for number, job in self.expected.items() if job.status == "queued"]
        if not free:
            assert lease is None
            return multiple()
        assert lease is not None
        assert lease.job_id == free[0]
        job = self.expected[lease.job_id]
        job.status, job.owner, job.attempt, job.saved_by_attempt = "running", owner, job.attempt + 1, False
        assert lease.attempt == job.attempt
        return lease

    @rule(lease=leases)
    def heartbeat(self, lease: Lease) -> None:
        answer = self._fenced(lease, lambda c: jobs.heartbeat(c, lease, 60, 1))
        if self._mine(lease):
            assert answer == self.expected[lease.job_id].cancel_requested

    @rule(lease=leases, step=st.integers(1, 5))
    def measure(self, lease: Lease, step: int) -> None:
        def transaction(connection: sa.Connection) -> None:
            records.rewind(connection, lease, Resumed(0))
            records.record(connection, lease, Measured(step, "val", {"loss": 1.0}, [[1, 2]]))

        self._fenced(lease, transaction)

    @rule(lease=leases)
    def save(self, lease: Lease) -> None:
        job = self.expected[lease.job_id]
        if self._mine(lease) and job.saved_by_attempt:
            return  # one checkpoint a step and attempt
        # Higher than any earlier one, so that the attempt has moved the job on.
        event = Checkpointed(10 * lease.attempt, "", "0" * 64, 1, 0.1)
        self._fenced(lease, lambda c: records.checkpointed(c, lease, event, f"{lease.attempt}"))
        if self._mine(lease):
            job.saved_by_attempt = True

    @rule(lease=consumes(leases))
    def finish(self, lease: Lease) -> None:
        mine = self._mine(lease)
        self._fenced(lease, lambda c: jobs.finish(c, lease, RESULT))
        if mine:
            self._end(lease, "done")
            self.expected[lease.job_id].finished_by = lease.attempt

    @rule(lease=leases)
    def release(self, lease: Lease) -> None:
        mine = self._mine(lease)
        self._fenced(lease, lambda c: jobs.release(c, lease, "signal"))
        if mine:
            self._end(lease, "queued")

    @rule(lease=leases, cause=st.sampled_from(["stalled", "infrastructure", "diverged", "bad_config"]))
    def fail(self, lease: Lease, cause: str) -> None:
        mine = self._mine(lease)
        status = self._fenced(lease, lambda c: jobs.fail(c, lease, cause, "because"))
        if mine:
            final = cause in ("diverged", "bad_config")
            assert status == self._charge(lease.job_id, final)

    @rule(lease=leases)
    def end_cancelled(self, lease: Lease) -> None:
        mine = self._mine(lease)
        self._fenced(lease, lambda c: jobs.end_cancelled(c, lease))
        if mine:
            self._end(lease, "cancelled")

    @rule(number=st.integers(1, JOBS))
    def lease_expires(self, number: int) -> None:
        expire = sa.text(f"UPDATE jobs SET lease_expires_at = 1 WHERE id = {number} AND status = 'running'")
        self.store.write(lambda c: c.execute(expire))
        lost = self.store.write(jobs.requeue_lost)
        job = self.expected[number]
        assert lost == ([number] if job.status == "running" else [])
        if lost:
            self._charge(number, final=False)

    @rule(number=st.integers(1, JOBS))
    def cancel(self, number: int) -> None:
        job = self.expected[number]
        found = self.store.write(lambda c: jobs.cancel_all(c, [number]))
        assert found == tuple([number] if job.status == status else [] for status in ("queued", "running"))
        if job.status == "queued":
            job.status = "cancelled"
        elif job.status == "running":
            job.cancel_requested = True

    @rule(number=st.integers(1, JOBS))
    def retry(self, number: int) -> None:
        job = self.expected[number]
        again = job.status in ("failed", "cancelled")
        assert self.store.write(lambda c: jobs.retry_all(c, [number])) == ([number] if again else [])
        if again:
            job.status, job.failures = "queued", 0

    @rule()
    def back_off_passes(self) -> None:
        self.store.write(lambda c: c.execute(sa.text("UPDATE jobs SET run_after = NULL")))

    # --- the model ------------------------------------------------------------------------------------------

    def _mine(self, lease: Lease) -> bool:
        job = self.expected[lease.job_id]
        return (job.status, job.attempt, job.owner) == ("running", lease.attempt, lease.owner)

    def _fenced(self, lease: Lease, transaction: object) -> object:
        """Run a write of the claim's holder; a stale one must be refused and change nothing."""
        mine, before = self._mine(lease), None if self._mine(lease) else self._everything()
        try:
            answer = self.store.write(transaction)  # type: ignore[arg-type]
        except LeaseLost:
            assert not mine
            assert self._everything() == before
            return None
        assert mine
        return answer

    def _end(self, lease: Lease, status: str) -> None:
        job = self.expected[lease.job_id]
        job.status, job.owner, job.cancel_requested = status, None, False

    def _charge(self, number: int, final: bool) -> str:
        job = self.expected[number]
        job.failures += final or not job.saved_by_attempt
        job.status = "failed" if final or job.failures >= 3 else "queued"
        if job.cancel_requested:
            job.status = "cancelled"
        job.owner, job.cancel_requested = None, False
        # The back-off would hide the job from the next claim; time is a rule of its own elsewhere.
        self.back_off_passes()
        return job.status

    def _everything(self) -> list[list[tuple[object, ...]]]:
        with self.store.read() as connection:
            return [
                [tuple(r) for r in connection.execute(sa.select(t))] for t in schema.metadata.tables.values()
            ]

    # --- what must always hold ------------------------------------------------------------------------------

    @invariant()
    def database_agrees_with_the_model(self) -> None:
        with self.store.read() as connection:
            found = connection.execute(sa.select(schema.jobs).order_by(schema.jobs.c.id)).all()
            results = dict(
                connection.execute(sa.select(schema.results.c.job_id, schema.results.c.attempt)).all()
            )
            attempts = connection.execute(sa.select(schema.attempts)).all()
        for row in found:
            job = self.expected[row.id]
            state = (row.status, row.attempt, row.failures, row.owner, bool(row.cancel_requested))
            assert state == (job.status, job.attempt, job.failures, job.owner, job.cancel_requested)
            assert (row.id in results) == (row.status == "done")
            assert results.get(row.id) == job.finished_by
            mine = [attempt for attempt in attempts if attempt.job_id == row.id]
            assert sorted(attempt.number for attempt in mine) == list(range(1, row.attempt + 1))
            open_ones = [attempt.number for attempt in mine if attempt.outcome is None]
            assert open_ones == ([row.attempt] if row.status == "running" else [])


def emptied(database: str) -> Store:
    """The database without a row, its ids beginning at 1."""
    if "://" not in database:
        Path(database).unlink(missing_ok=True)
        return open_store(database, create=True)
    store = open_store(database)
    tables = ", ".join(name for name in schema.metadata.tables if name != "meta")
    store.write(lambda c: c.exec_driver_sql(f"TRUNCATE {tables} RESTART IDENTITY"))
    return store


@pytest.mark.slow
@both_engines
def test_no_interleaving_breaks_the_queue(database: str) -> None:
    run_state_machine_as_test(
        lambda: Queue(emptied(database)),
        settings=settings(
            max_examples=settings().max_examples // (2 if "://" in database else 1),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_leases_are_values() -> None:
    """A lease can be copied and compared: what it fences is in its fields alone."""
    lease = Lease(1, 2, "a", "s", {}, 42, 40, "{}", ())
    assert replace(lease) == lease
    assert replace(lease, attempt=3) != lease
