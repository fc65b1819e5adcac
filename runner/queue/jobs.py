"""A job's whole life: every statement that moves a job from one state to another, and why each is safe.

    queued ──claim──► running ──finish──► done
      ▲  ▲               │ ├────fail────► failed     (final cause, or too many failures)
      │  └────retry──────┼─┼─────────────┘
      └──release, fail, requeue_lost       cancel──► cancelled

This module alone writes `jobs.status`. Each function takes an open write transaction (`Store.write`), so
that a caller may join several in one. What a running attempt measures is written by runner/queue/records.py.

On SQLite a write transaction has the whole database to itself. On PostgreSQL (READ COMMITTED) each function
locks the rows of `jobs` that it decides on before it decides, several in the order of their ids, and only
then what belongs to them: what it has read stays true until it commits, and no two wait for each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from runner.queue import attempts as attempt_log
from runner.queue.attempts import FINAL_CAUSES, SECOND_IS_FINAL, Ending
from runner.queue.attempts import Lease as Lease
from runner.queue.attempts import LeaseLost as LeaseLost
from runner.queue.attempts import Worker as Worker
from runner.queue.dialects import count_anew, new_ids, now, one_at_a_time, storable
from runner.queue.schema import (
    OPEN,
    JobStatus,
    attempts,
    checkpoints,
    jobs,
    measures,
    results,
    studies,
    workers,
)

BACKOFF_SECONDS = 10.0
"""Pause after a first failure; each further one doubles it, up to `BACKOFF_LIMIT_SECONDS`."""
BACKOFF_LIMIT_SECONDS = 600.0
MANY = 1_000
"""From this many new jobs on, run ANALYZE: the planner still believes the table is empty."""
RETRIABLE = (JobStatus.FAILED, JobStatus.CANCELLED)
"""States that `retry_all` moves a job out of."""
SUBMISSION = "submission"
"""Advisory lock held while reading which jobs exist and inserting the rest."""


class UnknownJob(Exception):
    """No such job, or it is not in a state that allows this; the message says which."""

    exit_code = 65


# --- submit: a job begins ---------------------------------------------------------------------------------


def submit(
    connection: sa.Connection,
    study_id: int,
    runs: Iterable[Mapping[str, Any]],
    max_failures: int = 3,
    priority: int = 0,
) -> int:
    """Queue one job for each run that the study does not hold yet; returns how many were added.

    Safe to repeat: what is there is read under the write lock (on PostgreSQL an advisory one, which every
    submission takes), and (study_id, config_hash) is unique.

    Args:
        runs: of each, the columns config_hash, config, cell, seed and total_steps.
    """
    one_at_a_time(connection, SUBMISSION)
    held = set(connection.scalars(sa.select(jobs.c.config_hash).where(jobs.c.study_id == study_id)))
    new = {run["config_hash"]: run for run in runs if run["config_hash"] not in held}
    same = {"study_id": study_id, "max_failures": max_failures, "priority": priority}
    rows = [{**run, **same} for run in new.values()]
    if rows:
        rows = [row | own_id for row, own_id in zip(rows, new_ids(connection, jobs, len(rows)), strict=True)]
        connection.execute(jobs.insert().values(created_at=now()), rows)
        attempt_log.note(connection, "submitted", detail={"study_id": study_id, "jobs": len(rows)})
    if len(rows) >= MANY:
        count_anew(connection, jobs)
    return len(rows)


# --- claim: queued → running ------------------------------------------------------------------------------


def claim(connection: sa.Connection, worker: Worker) -> Lease | None:
    """Take the next due job, after giving back those whose lease has expired; None when there is none.

    Safe on SQLite because it is one UPDATE under the write lock (BEGIN IMMEDIATE). On PostgreSQL the choice
    is SELECT … FOR UPDATE SKIP LOCKED in a CTE. PostgreSQL never inlines a CTE that locks rows, so it runs
    once and locks one row, which it reads again if it changed meanwhile. Either way no other claim can take
    the row between choice and change. `attempt` grows with every claim and is never reset, so an earlier
    holder's writes match nothing from here on.
    """
    requeue_lost(connection)
    free_studies = sa.select(studies.c.id).where(studies.c.held == 0)
    candidate = (
        sa.select(jobs.c.id)
        .where(
            jobs.c.status == JobStatus.QUEUED,
            jobs.c.held == 0,
            sa.or_(jobs.c.run_after.is_(None), jobs.c.run_after <= now()),
            jobs.c.study_id.in_(free_studies),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=jobs)
        .cte("candidate")
    )
    taken = connection.execute(
        sa.update(jobs)
        .where(jobs.c.id == sa.select(candidate.c.id).scalar_subquery(), jobs.c.status == JobStatus.QUEUED)
        .values(
            status=JobStatus.RUNNING,
            attempt=jobs.c.attempt + 1,
            owner=worker.owner,
            lease_expires_at=now() + worker.lease_seconds,
            heartbeat_at=now(),
            progress_at=now(),
            run_after=None,
        )
        .returning(*jobs.c)
    ).first()
    if taken is None:
        return None
    lease = _held(connection, taken)
    attempt_log.begin(connection, lease, worker)
    return lease


def _held(connection: sa.Connection, job: sa.Row[Any]) -> Lease:
    """The lease of a row of `jobs` that is running."""
    files = connection.execute(
        sa.select(checkpoints.c.path, checkpoints.c.sha256, checkpoints.c.step, attempts.c.provenance)
        .join(
            attempts,
            sa.and_(attempts.c.job_id == checkpoints.c.job_id, attempts.c.number == checkpoints.c.attempt),
        )
        .where(checkpoints.c.job_id == job.id)
        .order_by(checkpoints.c.step.desc(), checkpoints.c.id.desc())
    )
    study = connection.execute(
        sa.select(studies.c.name, studies.c.program).where(studies.c.id == job.study_id)
    ).one()
    return Lease(
        job_id=job.id,
        attempt=job.attempt,
        owner=job.owner,
        study=study.name,
        cell=json.loads(job.cell),
        seed=job.seed,
        total_steps=job.total_steps,
        config_json=job.config,
        checkpoints=tuple((row.path, row.sha256, row.step, _environment(row.provenance)) for row in files),
        program=json.loads(study.program),
    )


def _environment(provenance: str | None) -> dict[str, Any]:
    """The numeric environment of an attempt."""
    return dict(json.loads(provenance or "{}").get("numeric_environment") or {})


# --- heartbeat: running, and ours -------------------------------------------------------------------------


def fence(connection: sa.Connection, lease: Lease, **values: Any) -> None:
    """Change the job's row only while it is ours, and hold the row for the rest of the transaction.

    Raises:
        LeaseLost: id, attempt, owner and status do not all match. Status alone would not do: the job may be
            running again in another's hands.

    On PostgreSQL an UPDATE that waited for the row looks at it anew, and matches only if it is still ours.
    """
    matched = connection.execute(
        sa.update(jobs)
        .where(
            jobs.c.id == lease.job_id,
            jobs.c.attempt == lease.attempt,
            jobs.c.owner == lease.owner,
            jobs.c.status == JobStatus.RUNNING,
        )
        .values(**(values or {"owner": lease.owner}))
    )
    if matched.rowcount != 1:
        raise LeaseLost(f"job {lease.job_id}: attempt {lease.attempt} no longer holds it")


def heartbeat(
    connection: sa.Connection, lease: Lease, lease_seconds: float, step: int, silent_seconds: float = 0.0
) -> bool:
    """Renew the lease and note the progress; True when someone asked to cancel the job.

    `silent_seconds` is how long ago the trainer last sent an event: the worker lives, but does the job?

    An expired lease that nobody has taken is renewed: the fence is the attempt, not the time.
    """
    fence(
        connection,
        lease,
        lease_expires_at=now() + lease_seconds,
        heartbeat_at=now(),
        progress_at=now() - silent_seconds,
        progress_step=step,
    )
    connection.execute(sa.update(workers).where(workers.c.id == lease.owner).values(heartbeat_at=now()))
    wanted = connection.scalar(sa.select(jobs.c.cancel_requested).where(jobs.c.id == lease.job_id))
    return bool(wanted)


# --- finish: running → done -------------------------------------------------------------------------------


def finish(connection: sa.Connection, lease: Lease, values: Mapping[str, float | None]) -> None:
    """Record the result and end the job in one transaction: a result exists exactly for a done job.

    Safe to try again after a COMMIT without an answer: the fence then fails, and `is_finished_by` tells
    whether it was done. `results.job_id` is a primary key, so that no job can have two.

    Args:
        values: the measures; None is one that the run does not have.

    Raises:
        LeaseLost: the job is another's; its result is not ours to record.
        ValueError: the study's primary measure is missing, or no finite number.
    """
    if lease.primary is not None:
        value = values.get(lease.primary)
        if value is None or not math.isfinite(value):
            raise ValueError(f"{lease.primary} = {value}: a result needs a finite number here")
    fence(connection, lease, progress_step=lease.total_steps, **_ending(JobStatus.DONE))
    exact = connection.scalar(
        sa.select(sa.func.min(attempts.c.exact)).where(attempts.c.job_id == lease.job_id)
    )
    record_result(connection, lease.job_id, lease.attempt, exact or 0, values)
    attempt_log.end(connection, lease, Ending("done"))


def record_result(
    connection: sa.Connection, job_id: int, attempt: int, exact: int, values: Mapping[str, float | None]
) -> None:
    """Write a result's row and its measures; who moves the job does that in the same transaction."""
    connection.execute(
        results.insert().values(job_id=job_id, attempt=attempt, recorded_at=now(), exact=exact)
    )
    rows = [
        {"job_id": job_id, "name": name, **storable(value)}
        for name, value in values.items()
        if value is not None
    ]
    if rows:
        connection.execute(measures.insert(), rows)


def _recorded(job_id: int) -> sa.Select[Any]:
    return sa.select(results.c.attempt).where(results.c.job_id == job_id)


def is_finished_by(connection: sa.Connection, lease: Lease) -> bool:
    """Whether our own finish was committed: for a connection that was lost during COMMIT."""
    recorded: int | None = connection.scalar(_recorded(lease.job_id))
    return recorded == lease.attempt


# --- fail: running → queued or failed ---------------------------------------------------------------------


def fail(
    connection: sa.Connection,
    lease: Lease,
    cause: str,
    message: str,
    traceback: str | None = None,
    exit_code: int | None = None,
) -> str:
    """End the attempt with its cause; the job is queued again or failed, as the cause decides.

    Safe because the fence has locked the row: the counts that decide are those of this attempt. Returns the
    job's new state.

    Raises:
        LeaseLost: the job is another's.
    """
    fence(connection, lease)
    ending = Ending("failed", cause, message, traceback, exit_code)
    return _fail_or_retry(connection, lease, ending)


def _fail_or_retry(
    connection: sa.Connection, lease: Lease, ending: Ending, ended_at: float | None = None
) -> str:
    """Close the attempt; the job is queued again, after a wait, or failed, as cause and count decide."""
    job_id, cause = lease.job_id, ending.cause or "bug"
    job = connection.execute(
        sa.select(jobs.c.failures, jobs.c.max_failures, jobs.c.cancel_requested).where(jobs.c.id == job_id)
    ).one()
    charged = not attempt_log.advanced(connection, lease, cause)
    failures = job.failures + charged
    final = (
        cause in FINAL_CAUSES
        or failures >= job.max_failures
        or (cause in SECOND_IS_FINAL and cause in attempt_log.recent_causes(connection, job_id, job.failures))
    )
    attempt_log.end(connection, lease, ending, charged, ended_at)
    if connection.scalar(_recorded(job_id)) is not None:  # see settle
        status, values, failures = JobStatus.DONE, _ending(JobStatus.DONE), job.failures
    elif job.cancel_requested:
        status, values = JobStatus.CANCELLED, _ending(JobStatus.CANCELLED)
    elif final:
        status, values = JobStatus.FAILED, _ending(JobStatus.FAILED)
    else:
        wait = min(BACKOFF_SECONDS * 2 ** max(0, failures - 1), BACKOFF_LIMIT_SECONDS)
        status, values = JobStatus.QUEUED, {**_BACK_IN_QUEUE, "run_after": now() + wait}
    connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(failures=failures, **values))
    return status


# --- release: running → queued ----------------------------------------------------------------------------


def release(connection: sa.Connection, lease: Lease, message: str) -> None:
    """Give the job back unharmed (a signal, a time limit): nothing is charged, it may be claimed at once.

    Safe because the fence makes the change itself: a holder that has lost the job cannot queue it twice.

    Raises:
        LeaseLost: the job is another's.
    """
    fence(connection, lease, **_BACK_IN_QUEUE)
    attempt_log.end(connection, lease, Ending("preempted", message=message))


# --- cancel: queued or running → cancelled ----------------------------------------------------------------


def cancel_all(connection: sa.Connection, job_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Cancel those that are queued, ask for those that run; returns both, and passes over the rest.

    Safe beside a claim or a release of the same jobs: their rows are locked before the first of the two
    statements, so that none changes from one state to the other between them and escapes both.
    """
    cancelled = _change(connection, job_ids, (JobStatus.QUEUED,), "cancelled", **_ending(JobStatus.CANCELLED))
    requested = _change(connection, job_ids, (JobStatus.RUNNING,), "cancel requested", cancel_requested=1)
    return cancelled, requested


def end_cancelled(connection: sa.Connection, lease: Lease) -> None:
    """The worker's answer to a requested cancel: the job ends, and what it measured stays.

    Safe as a release is: the fence makes the change.

    Raises:
        LeaseLost: the job is another's.
    """
    fence(connection, lease, **_ending(JobStatus.CANCELLED))
    attempt_log.end(connection, lease, Ending("cancelled"))


# --- requeue_lost: running, and its worker gone, → queued or failed ---------------------------------------


def requeue_lost(connection: sa.Connection) -> list[int]:
    """Take back every running job whose lease has expired; returns their ids.

    Safe beside a stale holder: the next claim grows `attempt`, and until then the owner is gone from the row,
    so that the holder's fence matches nothing in either case. A row that is locked has a holder that writes,
    or another worker that takes it back: it is passed over.
    """
    expired = connection.execute(
        sa.select(jobs)
        .where(jobs.c.status == JobStatus.RUNNING, jobs.c.lease_expires_at < now())
        .order_by(jobs.c.id)
        .with_for_update(skip_locked=True)
    ).all()
    for job in expired:
        ending = Ending("lost", "lost", f"worker {job.owner} stopped renewing its lease")
        # Nobody worked after the last heartbeat: the hours until someone notices cost nothing.
        _fail_or_retry(connection, _held(connection, job), ending, job.heartbeat_at)
    return [job.id for job in expired]


# --- retry: failed or cancelled → queued ------------------------------------------------------------------


def retry_all(connection: sa.Connection, job_ids: Sequence[int]) -> list[int]:
    """Queue those that are failed or cancelled again; returns them, and passes over the rest.

    Safe because neither state has a holder. `attempt` stays, so that the next claim is a new number.
    """
    values = {**_BACK_IN_QUEUE, "failures": 0, "run_after": None}
    return _change(connection, job_ids, RETRIABLE, "retried", **values)


# --- its place in the queue -------------------------------------------------------------------------------


def hold(connection: sa.Connection, job_ids: Sequence[int]) -> list[int]:
    """Keep jobs from being claimed. A running one goes on, and is held if it comes back to the queue."""
    return _change(connection, job_ids, OPEN, "paused", held=1)


def unhold(connection: sa.Connection, job_ids: Sequence[int]) -> list[int]:
    """Let held jobs be claimed again."""
    return _change(connection, job_ids, OPEN, "resumed", held=0)


def prioritize(connection: sa.Connection, job_ids: Sequence[int], priority: int) -> list[int]:
    """Set a priority: higher goes first, equal ones by id."""
    return _change(connection, job_ids, OPEN, "prioritized", priority=priority)


# --- mended: what a broken device or an exchanged file did ------------------------------------------------


def uncharge(connection: sa.Connection, owner: str, job_ids: Sequence[int]) -> None:
    """Give back what a broken device cost these jobs: this owner's failures, as though not attempted.

    Another worker may have claimed or ended one meanwhile: that stands, and its failures are given back too.
    """
    ours = sa.and_(attempts.c.owner == owner, attempts.c.job_id.in_(job_ids))
    charged = sa.and_(ours, attempts.c.charged == 1)
    newest = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt)
    _lock(connection, job_ids)
    for job_id in connection.scalars(sa.select(attempts.c.job_id).where(charged)).all():
        this = jobs.c.id == job_id
        connection.execute(
            sa.update(jobs).where(this, jobs.c.failures > 0).values(failures=jobs.c.failures - 1)
        )
        waiting = jobs.c.status.in_((JobStatus.QUEUED, JobStatus.FAILED))
        connection.execute(
            sa.update(jobs)
            .where(this, waiting, sa.exists().where(newest, ours))
            .values(run_after=None, **_BACK_IN_QUEUE)
        )
    connection.execute(sa.update(attempts).where(charged).values(charged=0, cause="device"))
    for job_id in job_ids:
        attempt_log.note(
            connection, "uncharged", job_id, owner=owner, detail={"reason": "device failed its canary"}
        )


def settle(connection: sa.Connection) -> list[int]:
    """End as done every job that holds a result and is neither done nor running; returns them.

    `finish` commits both at once, but a file of the database may have been exchanged under its workers. What
    was recorded stands.
    """
    over_or_queued = (JobStatus.QUEUED, *RETRIABLE)
    return _change(connection, unsettled(connection), over_or_queued, "settled", **_ending(JobStatus.DONE))


def unsettled(connection: sa.Connection) -> list[int]:
    """Jobs that hold a result and are neither done nor running."""
    chosen = sa.select(jobs.c.id).join(results, results.c.job_id == jobs.c.id).order_by(jobs.c.id)
    return list(connection.scalars(chosen.where(jobs.c.status.not_in((JobStatus.DONE, JobStatus.RUNNING)))))


# --- what the transitions share ---------------------------------------------------------------------------

_CHUNK = 500
"""Jobs in one statement, below every database's limit of bound values."""
_UNOWNED: dict[str, Any] = {"owner": None, "lease_expires_at": None, "cancel_requested": 0}
_BACK_IN_QUEUE: dict[str, Any] = {"status": JobStatus.QUEUED, "finished_at": None, **_UNOWNED}


def _ending(status: str) -> dict[str, Any]:
    return {"status": status, "finished_at": now(), **_UNOWNED}


def _change(
    connection: sa.Connection, job_ids: Sequence[int], statuses: tuple[str, ...], kind: str, **values: Any
) -> list[int]:
    """Change those of the jobs that are in one of the states, and note it; returns them in order."""
    _lock(connection, job_ids)
    changed: list[int] = []
    for start in range(0, len(job_ids), _CHUNK):
        chosen = sa.and_(jobs.c.id.in_(job_ids[start : start + _CHUNK]), jobs.c.status.in_(statuses))
        updated = connection.execute(sa.update(jobs).where(chosen).values(**values).returning(jobs.c.id))
        changed += sorted(updated.scalars())
    attempt_log.note_all(connection, kind, changed)
    return changed


def _lock(connection: sa.Connection, job_ids: Sequence[int]) -> None:
    """Hold the rows of these jobs until the transaction ends, in the order of their ids."""
    ordered = sorted(job_ids)
    for start in range(0, len(ordered), _CHUNK):
        chosen = jobs.c.id.in_(ordered[start : start + _CHUNK])
        connection.execute(sa.select(jobs.c.id).where(chosen).order_by(jobs.c.id).with_for_update())
