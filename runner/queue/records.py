"""What a running attempt writes: measured rows, expert counts, checkpoints, where it resumed, who it is.

Every function first passes `jobs.fence` in the caller's transaction, so that an attempt which lost its lease
writes nothing. Moving the job itself is in runner/queue/jobs.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from model.events import Checkpointed, Measured, NotSaved, Resumed, Waiting
from runner.queue import attempts as attempt_log
from runner.queue.dialects import insert_new, now, storable
from runner.queue.jobs import Lease, fence
from runner.queue.schema import attempts, checkpoints, expert_counts, metrics

CHECKPOINTS_KEPT = 2
"""Checkpoints of a job that are kept: if the newest turns out damaged, the one before serves."""


def describe(
    connection: sa.Connection, lease: Lease, provenance: Mapping[str, Any], log_path: str, pid: int
) -> None:
    """Write what ran this attempt (git, packages, device, numeric environment) and where its log is."""
    fence(connection, lease)
    _update_attempt(connection, lease, provenance=json.dumps(provenance), log_path=log_path, pid=pid)


def rewind(connection: sa.Connection, lease: Lease, event: Resumed) -> None:
    """Delete the rows past the step that the attempt starts from, before its first: none is there twice."""
    fence(connection, lease, progress_step=event.step)
    for table in (metrics, expert_counts):
        past = sa.and_(table.c.job_id == lease.job_id, table.c.step > event.step)
        connection.execute(sa.delete(table).where(past))
    provenance = json.loads(connection.scalar(_attempt(lease, attempts.c.provenance)) or "{}")
    provenance["numeric_environment"] = event.environment
    _update_attempt(
        connection,
        lease,
        resumed_from_step=event.step,
        exact=int(event.exact),
        provenance=json.dumps(provenance),
    )
    detail = {"step": event.step, "exact": event.exact}
    attempt_log.note(connection, "started", lease.job_id, lease.attempt, lease.owner, detail)
    notes = [("checkpoint refused", {"reason": reason}) for reason in event.refused]
    notes += [("not exact", {"changed": text}) for text in event.changed]
    notes += [("device", {"remark": text}) for text in event.remarks]
    for kind, why in notes:
        attempt_log.note(connection, kind, lease.job_id, lease.attempt, lease.owner, why)


def record(connection: sa.Connection, lease: Lease, *measured: Measured) -> None:
    """Insert the values and counts of some steps and splits; what is there already is passed over.

    It is there when the connection broke during COMMIT: the events are sent again, and are the same events.
    """
    fence(connection, lease, progress_step=measured[-1].step)
    rows: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
    for event in measured:
        where = {"job_id": lease.job_id, "step": event.step, "split": event.split}
        rows += [{**where, "name": name, **storable(value)} for name, value in event.values.items()]
        counts += [
            {**where, "layer": layer, "expert": expert, "tokens": tokens}
            for layer, experts in enumerate(event.expert_counts or [])
            for expert, tokens in enumerate(experts)
        ]
    if rows:
        insert_new(connection, metrics, rows)
    if counts:
        insert_new(connection, expert_counts, counts)


def checkpointed(connection: sa.Connection, lease: Lease, event: Checkpointed, path: str) -> list[str]:
    """Point at a checkpoint that is on the disk; returns the paths that it makes superfluous.

    The caller deletes those files after the commit: a crash in between leaves a file too many, never one
    too few. `path` is relative to the run folder.
    """
    fence(connection, lease, progress_step=event.step)
    file = {
        "job_id": lease.job_id,
        "attempt": lease.attempt,
        "step": event.step,
        "path": path,
        "sha256": event.sha256,
        "size_bytes": event.size_bytes,
        "seconds": event.seconds,
        "created_at": connection.scalar(sa.select(now())),
    }
    insert_new(connection, checkpoints, [file])
    return _forget(connection, lease.job_id, keep=CHECKPOINTS_KEPT)


def not_saved(connection: sa.Connection, lease: Lease, event: NotSaved) -> None:
    """Note that a checkpoint could not be written; the job goes on, and is not blamed."""
    fence(connection, lease, progress_step=event.step)
    detail = {"step": event.step, "reason": event.reason}
    attempt_log.note(connection, "checkpoint not saved", lease.job_id, lease.attempt, lease.owner, detail)


def waits(connection: sa.Connection, lease: Lease, event: Waiting) -> None:
    """Note that the attempt cannot start yet, and why; nothing is charged for that."""
    fence(connection, lease)
    detail = {"reason": event.reason}
    attempt_log.note(connection, "waiting", lease.job_id, lease.attempt, lease.owner, detail)


def forget_checkpoints(connection: sa.Connection, job_id: int) -> list[str]:
    """Drop all pointers of a finished job; returns the paths for the caller to delete after the commit."""
    return _forget(connection, job_id, keep=0)


def _forget(connection: sa.Connection, job_id: int, keep: int) -> list[str]:
    files = connection.execute(
        sa.select(checkpoints.c.id, checkpoints.c.path)
        .where(checkpoints.c.job_id == job_id)
        .order_by(checkpoints.c.step.desc(), checkpoints.c.id.desc())
    ).all()
    superfluous = files[keep:]
    connection.execute(sa.delete(checkpoints).where(checkpoints.c.id.in_([file.id for file in superfluous])))
    return [file.path for file in superfluous]


def _attempt(lease: Lease, column: sa.Column[Any]) -> sa.Select[Any]:
    return sa.select(column).where(attempts.c.job_id == lease.job_id, attempts.c.number == lease.attempt)


def _update_attempt(connection: sa.Connection, lease: Lease, **values: Any) -> None:
    connection.execute(
        sa.update(attempts)
        .where(attempts.c.job_id == lease.job_id, attempts.c.number == lease.attempt)
        .values(**values)
    )
