"""A job's life, transition by transition, and the fence that no stale writer passes."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import sqlalchemy as sa

from model.config import ConfigError
from model.events import Checkpointed, Measured, Resumed
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue import jobs, records, schema, studies
from runner.queue.backlog import backlog
from runner.queue.jobs import Lease, LeaseLost, Worker
from runner.queue.store import Store
from runner.view import status
from tests import warm
from tests.conftest import PROJECT, TEXT, both_engines, environment, row, rows

pytestmark = both_engines
RESULT = {"val_loss": 1.0, "val_perplexity": 2.718}


def claim(store: Store, worker: Worker) -> Lease | None:
    return store.write(lambda c: jobs.claim(c, worker))


def expire(store: Store, job_id: int) -> None:
    """Let the lease of a running job run out: as though its worker had been silent."""
    store.write(lambda c: c.execute(sa.text(f"UPDATE jobs SET lease_expires_at = 1 WHERE id = {job_id}")))


def make_due(store: Store) -> None:
    """Let every back-off be over."""
    store.write(lambda c: c.execute(sa.text("UPDATE jobs SET run_after = NULL")))


def checkpoint(store: Store, lease: Lease, step: int) -> list[str]:
    event = Checkpointed(step, "", "0" * 64, 10, 0.1)
    path = f"{lease.job_id}/a{lease.attempt}/step-{step}.safetensors"
    return store.write(lambda c: records.checkpointed(c, lease, event, path))


# --- into the queue ---------------------------------------------------------------------------------------


def test_submitting_again_adds_nothing_and_new_seeds_add_their_blocks(queued: Store, tiny_grid) -> None:
    grid = grid_file.load_grid(str(tiny_grid))
    assert queued.write(lambda c: enqueue(c, "tiny", grid)) == 0
    more = scales.adjust(grid, seeds="42..44")
    assert queued.write(lambda c: enqueue(c, "tiny", more)) == 2
    assert [job["seed"] for job in rows(queued, "jobs")] == [42, 42, 43, 43, 44, 44]


@pytest.mark.parametrize("change", ["train.steps=80", "muon_lr=0.1", "data.tokens=7000"])
def test_another_design_in_the_same_study_is_refused(queued: Store, tiny_grid, change: str) -> None:
    other = scales.adjust(grid_file.load_grid(str(tiny_grid)), assignments=[change])
    with pytest.raises(ConfigError, match=rf"{change.split('=')[0].split('.')[-1]}.*--study NAME"):
        queued.write(lambda c: enqueue(c, "tiny", other))
    assert len(rows(queued, "jobs")) == 4


def test_another_corpus_or_protocol_is_refused(queued: Store, tiny_grid) -> None:
    grid = grid_file.load_grid(str(tiny_grid))
    data = replace(grid.base.data, corpus_id="another")
    for base in (replace(grid.base, data=data), replace(grid.base, protocol="published")):
        with pytest.raises(ConfigError, match="--study NAME"):
            queued.write(lambda c, base=base: enqueue(c, "tiny", replace(grid, base=base)))


# --- claim ------------------------------------------------------------------------------------------------


def test_claims_go_block_by_block_and_each_job_once(queued: Store, worker: Worker) -> None:
    taken = [claim(queued, worker) for _ in range(5)]
    assert taken[4] is None
    assert [(c.seed, c.cell["noise_std"]) for c in taken if c] == [(42, 0.0), (42, 0.5), (43, 0.0), (43, 0.5)]
    assert {c.attempt for c in taken if c} == {1}
    running = rows(queued, "jobs", status="running")
    assert {job["owner"] for job in running} == {worker.owner}
    assert all(job["lease_expires_at"] - job["heartbeat_at"] == pytest.approx(60, abs=0.1) for job in running)


def test_priority_goes_first_and_held_jobs_and_studies_wait(queued: Store, worker: Worker) -> None:
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET priority = 5 WHERE id = 3")))
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET held = 1 WHERE id = 1")))
    first = claim(queued, worker)
    assert first is not None
    assert first.job_id == 3
    second = claim(queued, worker)
    assert second is not None
    assert second.job_id == 2
    queued.write(lambda c: c.execute(sa.text("UPDATE studies SET held = 1")))
    assert claim(queued, worker) is None


@pytest.mark.slow
def test_eight_processes_claim_four_hundred_jobs_once_each(store: Store, tiny_grid, database: str) -> None:
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="1..200")
    assert store.write(lambda c: enqueue(c, "tiny", grid)) == 400
    code = f"""
import sys
from runner.queue import jobs
from runner.queue.store import open_store
store = open_store({database!r})
me = jobs.Worker(sys.argv[1], "here", 1, "cpu")
while (lease := store.write(lambda c: jobs.claim(c, me))) is not None:
    store.write(lambda c: jobs.finish(c, lease, {RESULT!r}))
    print(lease.job_id)
"""
    workers = [
        warm.Command([sys.executable, "-c", code, f"worker-{number}"], cwd=PROJECT, env=environment(), **TEXT)
        for number in range(8)
    ]
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [errors for _, errors in outputs] == [""] * 8  # no "database is locked" among them
    done = [int(line) for out, _ in outputs for line in out.split()]
    assert sorted(done) == list(range(1, 401))
    assert len(rows(store, "attempts")) == len(rows(store, "results")) == 400
    assert {job["attempt"] for job in rows(store, "jobs", status="done")} == {1}


# --- the fence --------------------------------------------------------------------------------------------

STALE_WRITES = {
    "heartbeat": lambda c, mine: jobs.heartbeat(c, mine, 60, 5),
    "measured": lambda c, mine: records.record(c, mine, Measured(10, "train", {"loss": 1.0})),
    "counts": lambda c, mine: records.record(c, mine, Measured(10, "val", {}, [[1, 2]])),
    "checkpoint": lambda c, mine: records.checkpointed(c, mine, Checkpointed(10, "", "0", 1, 0.1), "x"),
    "rewind": lambda c, mine: records.rewind(c, mine, Resumed(0)),
    "describe": lambda c, mine: records.describe(c, mine, {}, "log", 1),
    "finish": lambda c, mine: jobs.finish(c, mine, RESULT),
    "fail": lambda c, mine: jobs.fail(c, mine, "bug", "stale"),
    "release": lambda c, mine: jobs.release(c, mine, "stale"),
    "cancelled": jobs.end_cancelled,
}


def everything(store: Store) -> list[list[dict[str, object]]]:
    return [rows(store, table) for table in schema.metadata.tables]


@pytest.mark.parametrize("meanwhile", ["requeued", "taken", "taken by the same owner", "done", "cancelled"])
def test_stale_attempt_writes_nothing(queued: Store, worker: Worker, meanwhile: str) -> None:
    mine = claim(queued, worker)
    assert mine is not None
    expire(queued, mine.job_id)
    queued.write(jobs.requeue_lost)
    make_due(queued)
    if meanwhile != "requeued":
        other = replace(worker, owner=worker.owner if "same" in meanwhile else "worker-2")
        theirs = claim(queued, other)
        assert theirs is not None
        assert (theirs.job_id, theirs.attempt) == (mine.job_id, 2)
        if meanwhile == "done":
            queued.write(lambda c: jobs.finish(c, theirs, RESULT))
        if meanwhile == "cancelled":
            queued.write(lambda c: jobs.end_cancelled(c, theirs))
    before = everything(queued)
    for name, write in STALE_WRITES.items():
        with pytest.raises(LeaseLost):
            queued.write(lambda c, write=write: write(c, mine))
        assert everything(queued) == before, name


def test_late_heartbeat_keeps_a_job_that_nobody_took(queued: Store, lease: Lease) -> None:
    expire(queued, lease.job_id)
    queued.write(lambda c: jobs.heartbeat(c, lease, 60, 7))
    assert queued.write(jobs.requeue_lost) == []
    assert row(queued, "jobs", id=lease.job_id)["progress_step"] == 7


# --- done -------------------------------------------------------------------------------------------------


def test_finish_records_one_result_and_ends_the_attempt(queued: Store, lease: Lease) -> None:
    queued.write(lambda c: jobs.finish(c, lease, RESULT))
    job = row(queued, "jobs", id=lease.job_id)
    assert (job["status"], job["owner"], job["progress_step"]) == ("done", None, 40)
    assert job["finished_at"] is not None
    assert row(queued, "attempts")["outcome"] == "done"
    result = row(queued, "results")
    assert (result["attempt"], result["exact"]) == (1, 1)
    assert {each["name"]: each["value"] for each in rows(queued, "measures")} == RESULT
    with queued.read() as connection:
        assert jobs.is_finished_by(connection, lease)
        assert not jobs.is_finished_by(connection, replace(lease, attempt=2))
    with pytest.raises(LeaseLost):
        queued.write(lambda c: jobs.finish(c, lease, RESULT))


def test_finish_and_result_stand_or_fall_together(queued: Store, lease: Lease) -> None:
    with pytest.raises(ValueError, match="val_loss = None: a result needs a finite number"):
        queued.write(lambda c: jobs.finish(c, lease, {"val_perplexity": 1.0}))
    with pytest.raises(TypeError):
        queued.write(lambda c: jobs.finish(c, lease, {**RESULT, "val_accuracy": "high"}))  # type: ignore[dict-item]
    assert row(queued, "jobs", id=lease.job_id)["status"] == "running"
    assert rows(queued, "results") == []


def test_schema_itself_refuses_a_job_half_way(queued: Store) -> None:
    for change in (
        "status = 'running'",
        "status = 'done'",
        "owner = 'x'",
        "status = 'asleep'",
        "attempt = -1",
    ):
        with pytest.raises(sa.exc.IntegrityError):
            queued.write(
                lambda c, change=change: c.execute(sa.text(f"UPDATE jobs SET {change} WHERE id = 1"))
            )


# --- failures ---------------------------------------------------------------------------------------------


def fail_until_final(store: Store, worker: Worker, cause: str) -> int:
    """How many attempts one job gets when each ends with this cause."""
    store.write(lambda c: c.execute(sa.text("UPDATE jobs SET held = 1 WHERE id > 1")))
    for attempts in range(1, 10):
        make_due(store)
        lease = claim(store, worker)
        assert lease is not None
        if store.write(lambda c, lease=lease: jobs.fail(c, lease, cause, "because")) == "failed":
            return attempts
    raise AssertionError("never final")


@pytest.mark.parametrize(
    ("cause", "attempts"),
    [
        ("bad_config", 1),
        ("diverged", 1),
        ("bug", 2),
        ("oom", 2),
        ("stalled", 3),
        ("device", 3),
        ("infrastructure", 3),
    ],
)
def test_cause_decides_how_often_a_job_is_tried(
    queued: Store, worker: Worker, cause: str, attempts: int
) -> None:
    assert fail_until_final(queued, worker, cause) == attempts
    job = row(queued, "jobs", id=1)
    assert (job["status"], job["failures"], job["attempt"]) == ("failed", attempts, attempts)
    assert [a["cause"] for a in rows(queued, "attempts")] == [cause] * attempts


def test_failures_back_off_twice_as_long_each_time(queued: Store, worker: Worker) -> None:
    waits = []
    for _ in range(2):
        make_due(queued)
        lease = claim(queued, worker)
        assert lease is not None
        assert lease.job_id == 1
        queued.write(lambda c, lease=lease: jobs.fail(c, lease, "stalled", "silent"))
        job, attempt = row(queued, "jobs", id=1), rows(queued, "attempts", job_id=1)[-1]
        waits.append(job["run_after"] - attempt["ended_at"])
        next_one = claim(queued, worker)
        assert next_one is not None
        assert next_one.job_id != 1  # another job goes on meanwhile
    assert waits == pytest.approx([jobs.BACKOFF_SECONDS, 2 * jobs.BACKOFF_SECONDS], abs=0.1)


def test_text_that_no_database_keeps_is_written_out(queued: Store, lease: Lease) -> None:
    queued.write(lambda c: jobs.fail(c, lease, "bug", "a\0b", "half \ud83d of it, and 東京"))
    attempt = row(queued, "attempts")
    assert (attempt["message"], attempt["traceback"]) == ("a\\0b", "half \\ud83d of it, and 東京")


def test_lost_lease_is_charged_and_requeued_then_failed(queued: Store, worker: Worker) -> None:
    for number in (1, 2, 3):
        make_due(queued)
        lease = claim(queued, worker)
        assert lease is not None
        assert (lease.job_id, lease.attempt) == (1, number)
        expire(queued, 1)
        assert queued.write(jobs.requeue_lost) == [1]
    job = row(queued, "jobs", id=1)
    assert (job["status"], job["failures"]) == ("failed", 3)
    assert {(a["outcome"], a["cause"], a["charged"]) for a in rows(queued, "attempts")} == {
        ("lost", "lost", 1)
    }


def test_lost_attempt_that_moved_the_job_on_is_not_charged(queued: Store, worker: Worker) -> None:
    for number in range(1, 8):
        make_due(queued)
        lease = claim(queued, worker)
        assert lease is not None
        assert lease.job_id == 1
        resumed = Resumed(2 * (number - 1))
        queued.write(lambda c, lease=lease, resumed=resumed: records.rewind(c, lease, resumed))
        checkpoint(queued, lease, 2 * number)
        expire(queued, 1)
        queued.write(jobs.requeue_lost)
    assert row(queued, "jobs", id=1)["failures"] == 0
    assert {a["charged"] for a in rows(queued, "attempts")} == {0}


def test_attempt_that_repeats_the_same_stretch_is_charged(queued: Store, worker: Worker) -> None:
    for _ in range(2):
        make_due(queued)
        lease = claim(queued, worker)
        assert lease is not None
        queued.write(lambda c, lease=lease: records.rewind(c, lease, Resumed(20)))
        expire(queued, 1)
        queued.write(jobs.requeue_lost)
    assert row(queued, "jobs", id=1)["failures"] == 2


def test_release_charges_nothing_and_is_claimable_at_once(
    queued: Store, lease: Lease, worker: Worker
) -> None:
    queued.write(lambda c: jobs.release(c, lease, "SIGTERM"))
    again = claim(queued, worker)
    assert again is not None
    assert (again.job_id, again.attempt) == (1, 2)
    assert row(queued, "jobs", id=1)["failures"] == 0
    assert row(queued, "attempts", number=1)["outcome"] == "preempted"


def test_broken_device_costs_the_jobs_nothing(queued: Store, worker: Worker) -> None:
    for _ in range(3):
        lease = claim(queued, worker)
        assert lease is not None
        queued.write(lambda c, lease=lease: jobs.fail(c, lease, "infrastructure", "dead"))
    queued.write(lambda c: jobs.uncharge(c, worker.owner, [1, 2, 3]))
    assert {(j["status"], j["failures"], j["run_after"]) for j in rows(queued, "jobs")} == {
        ("queued", 0, None)
    }
    assert {(a["cause"], a["charged"]) for a in rows(queued, "attempts")} == {("device", 0)}


def test_broken_device_is_paid_back_whatever_became_of_the_jobs_meanwhile(
    queued: Store, worker: Worker
) -> None:
    other = replace(worker, owner="other")
    for _ in range(4):
        lease = claim(queued, worker)
        assert lease is not None
        queued.write(lambda c, lease=lease: jobs.fail(c, lease, "infrastructure", "dead"))
    queued.write(lambda c: c.exec_driver_sql("UPDATE jobs SET run_after = NULL"))
    leases = [claim(queued, other) for _ in range(3)]
    queued.write(lambda c: jobs.finish(c, leases[1], {"val_loss": 1.0}))
    queued.write(lambda c: jobs.fail(c, leases[2], "diverged", "ran away"))
    queued.write(lambda c: jobs.retry_all(c, [4]))  # counts anew
    queued.write(lambda c: jobs.uncharge(c, worker.owner, [1, 2, 3, 4]))
    assert [(j["status"], j["failures"], j["owner"]) for j in rows(queued, "jobs")][:4] == [
        ("running", 0, "other"),
        ("done", 0, None),
        ("failed", 1, None),  # of the other's own
        ("queued", 0, None),
    ]


# --- asked for by people ----------------------------------------------------------------------------------


def test_living_worker_does_not_hide_a_silent_trainer(queued: Store, lease: Lease) -> None:
    queued.write(lambda c: jobs.heartbeat(c, lease, 60, 1, silent_seconds=500.0))
    with queued.read() as connection:
        [running] = status.running_jobs(connection)
    assert running["heartbeat_age_seconds"] < 500.0 <= running["event_age_seconds"]


def test_cancel_ends_a_queued_job_and_asks_a_running_ones_worker(queued: Store, lease: Lease) -> None:
    assert queued.write(lambda c: jobs.cancel_all(c, [1, 2, 99])) == ([2], [1])
    assert queued.write(lambda c: jobs.heartbeat(c, lease, 60, 1)) is True
    queued.write(lambda c: jobs.end_cancelled(c, lease))
    assert [job["status"] for job in rows(queued, "jobs")][:2] == ["cancelled", "cancelled"]
    assert queued.write(lambda c: jobs.cancel_all(c, [1, 2])) == ([], [])


def test_cancel_holds_when_the_attempt_fails_or_is_lost_first(queued: Store, lease: Lease) -> None:
    queued.write(lambda c: jobs.cancel_all(c, [1]))
    expire(queued, 1)
    queued.write(jobs.requeue_lost)
    assert row(queued, "jobs", id=1)["status"] == "cancelled"


def test_retry_counts_anew_and_keeps_the_history(queued: Store, worker: Worker) -> None:
    fail_until_final(queued, worker, "bug")
    queued.write(lambda c: jobs.retry_all(c, [1]))
    assert row(queued, "jobs", id=1)["failures"] == 0
    lease = claim(queued, worker)
    assert lease is not None
    assert lease.attempt == 3
    # The bugs before the retry no longer make the next one final.
    assert queued.write(lambda c: jobs.fail(c, lease, "bug", "again")) == "queued"
    assert len(rows(queued, "attempts")) == 3


def test_done_is_for_ever(queued: Store, lease: Lease) -> None:
    queued.write(lambda c: jobs.finish(c, lease, RESULT))
    assert queued.write(lambda c: jobs.retry_all(c, [1])) == []
    assert queued.write(lambda c: jobs.cancel_all(c, [1])) == ([], [])
    assert row(queued, "jobs", id=1)["status"] == "done"


def test_held_jobs_wait_and_a_running_one_is_held_when_it_comes_back(
    queued: Store, lease: Lease, worker: Worker
) -> None:
    assert queued.write(lambda c: jobs.hold(c, [1, 2, 3])) == [1, 2, 3]
    queued.write(lambda c: jobs.heartbeat(c, lease, 60, 5))  # it goes on
    queued.write(lambda c: jobs.release(c, lease, "signal"))
    fourth = claim(queued, worker)
    assert fourth is not None
    assert fourth.job_id == 4
    assert claim(queued, worker) is None
    assert queued.write(lambda c: jobs.unhold(c, [1])) == [1]
    first = claim(queued, worker)
    assert first is not None
    assert (first.job_id, first.attempt) == (1, 2)


def test_priority_decides_and_then_the_id(queued: Store, worker: Worker) -> None:
    assert queued.write(lambda c: jobs.prioritize(c, [3, 4], 2)) == [3, 4]
    assert queued.write(lambda c: jobs.prioritize(c, [1], -1)) == [1]
    taken = [claim(queued, worker) for _ in range(4)]
    assert [each.job_id for each in taken if each] == [3, 4, 2, 1]


def test_many_are_changed_at_once_and_others_are_passed_over(queued: Store, worker: Worker) -> None:
    finished, running = claim(queued, worker), claim(queued, worker)
    assert finished is not None
    assert running is not None
    queued.write(lambda c: jobs.finish(c, finished, RESULT))
    assert queued.write(lambda c: jobs.cancel_all(c, [1, 2, 3, 4, 99])) == ([3, 4], [2])
    assert [job["status"] for job in rows(queued, "jobs")] == ["done", "running", "cancelled", "cancelled"]
    for change in (jobs.hold, jobs.unhold, lambda c, ids: jobs.prioritize(c, ids, 1)):
        assert queued.write(lambda c, change=change: change(c, [1, 3, 99])) == []
    assert queued.write(lambda c: jobs.retry_all(c, [1, 2, 3, 4, 99])) == [3, 4]
    kinds = [event["kind"] for event in rows(queued, "events", job_id=3)]
    assert kinds == ["cancelled", "retried"]


@pytest.mark.slow
def test_more_jobs_than_a_statement_takes_are_changed(store: Store, tiny_grid) -> None:
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="1..600")
    store.write(lambda c: enqueue(c, "tiny", grid))
    everyone = list(range(1, 1201))
    assert store.write(lambda c: jobs.hold(c, everyone)) == everyone
    assert {job["held"] for job in rows(store, "jobs")} == {1}
    assert len(rows(store, "events", kind="paused")) == 1200


def test_holding_a_study_holds_what_comes_later_too(queued: Store, tiny_grid, worker: Worker) -> None:
    queued.write(lambda c: jobs.hold(c, [2]))
    queued.write(lambda c: studies.hold(c, "tiny", True))
    more = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="99")
    queued.write(lambda c: enqueue(c, "tiny", more))
    assert claim(queued, worker) is None
    queued.write(lambda c: studies.hold(c, "tiny", False))
    assert {job["held"] for job in rows(queued, "jobs")} == {0}
    assert claim(queued, worker) is not None
    with pytest.raises(ConfigError, match="not in this database"):
        queued.write(lambda c: studies.hold(c, "other", True))


# --- what a running attempt records -----------------------------------------------------------------------


def test_resume_deletes_what_lies_past_the_checkpoint(queued: Store, lease: Lease) -> None:
    for step in (10, 20, 30):
        event = Measured(step, "val", {"loss": step / 10}, [[1, 2], [3, 4]])
        queued.write(lambda c, event=event: records.record(c, lease, event))
    queued.write(
        lambda c: records.rewind(c, lease, Resumed(20, "x", True, ["newer: damaged"], {"threads": 1}))
    )
    assert {r["step"] for r in rows(queued, "metrics")} == {10, 20}
    assert {r["step"] for r in rows(queued, "expert_counts")} == {10, 20}
    attempt = row(queued, "attempts")
    assert attempt["resumed_from_step"] == 20
    assert '"threads": 1' in attempt["provenance"]
    assert "newer: damaged" in row(queued, "events", kind="checkpoint refused")["detail"]


def test_values_that_are_not_numbers_are_told_apart(queued: Store, lease: Lease) -> None:
    values = {"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 2.0}
    queued.write(lambda c: records.record(c, lease, Measured(1, "train", values)))
    found = {r["name"]: (r["value"], r["nonfinite"]) for r in rows(queued, "metrics")}
    assert found == {"a": (None, "nan"), "b": (None, "inf"), "c": (None, "-inf"), "d": (2.0, None)}


def test_two_newest_checkpoints_are_kept_and_offered_newest_first(queued: Store, worker: Worker) -> None:
    first = claim(queued, worker)
    assert first is not None
    assert checkpoint(queued, first, 10) == []
    assert checkpoint(queued, first, 20) == []
    assert checkpoint(queued, first, 30) == ["1/a1/step-10.safetensors"]
    queued.write(lambda c: jobs.release(c, first, "signal"))
    second = claim(queued, worker)
    assert second is not None
    assert [path for path, *_ in second.checkpoints] == [
        "1/a1/step-30.safetensors",
        "1/a1/step-20.safetensors",
    ]
    assert len(queued.write(lambda c: records.forget_checkpoints(c, 1))) == 2
    assert rows(queued, "checkpoints") == []


def test_backlog_tells_due_later_and_running_apart(queued: Store, worker: Worker) -> None:
    first, second = claim(queued, worker), claim(queued, worker)
    assert first is not None
    assert second is not None
    queued.write(lambda c: jobs.fail(c, first, "stalled", "silent"))
    with queued.read() as connection:
        left = backlog(connection)
    assert (left.due, left.later, left.running, left.jobs, left.steps) == (2, 1, 1, 4, 160)
    expire(queued, second.job_id)
    with queued.read() as connection:
        assert backlog(connection).due == 3
