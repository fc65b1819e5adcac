"""Attempts and events: what happened to a job, kept for ever, and which failures are charged to it.

A worker holds an attempt by its Lease. Its row is opened by a claim and closed once, with an outcome
and a cause; nothing is deleted. The functions take an open write transaction and are called by
runner/queue/jobs.py, which decides what becomes of the job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from runner.queue.schema import OPEN, attempts, checkpoints, events, jobs, results, studies
from runner.queue.store import now
from runner.queue.where import written

FINAL_CAUSES = frozenset({"bad_config", "diverged"})
"""Causes after which a job is failed at once: another try would end the same way."""
SECOND_IS_FINAL = frozenset({"bug", "oom"})
"""Causes after which a job is tried once more: it may have been the machine's mood."""


LINKED = "linked"
"""The event of results that were taken over from another study."""


class LeaseLost(Exception):
    """The job is another's now, or over: nothing of this attempt may be written any more."""


@dataclass(frozen=True)
class Worker:
    """Who claims: `owner` is a UUID a start, never a host or pid, which come back after a reboot."""

    owner: str
    host: str
    pid: int
    device: str
    lease_seconds: float = 60.0


@dataclass(frozen=True)
class Lease:
    """What a worker holds: a job, in one attempt, while `jobs.lease_expires_at` lies ahead or nobody took it.

    (job_id, attempt, owner) fences every write of the attempt.
    """

    job_id: int
    attempt: int
    owner: str
    study: str
    cell: dict[str, Any]
    seed: int
    total_steps: int
    config_json: str
    """As it was submitted; parsed by the trainer, where a bad one fails this job alone."""
    checkpoints: tuple[tuple[str, str, int, Mapping[str, Any]], ...]
    """(path, SHA-256, step, numeric environment of the attempt that wrote it), newest first."""
    program: Mapping[str, Any] = field(default_factory=dict)
    """`studies.program`: path, hash, measures."""

    @property
    def primary(self) -> str | None:
        """The name of the measure that a result must hold; None where the study names none."""
        measures = self.program.get("measures")
        return str(measures[0]["name"]) if measures else None

    def setting(self, key: str, default: Any) -> Any:
        """A dotted key of the configuration, or the default where it cannot be read."""
        found: Any = json.loads(self.config_json)
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return default if found is None else found

    @property
    def label(self) -> str:
        """How people name the job."""
        return f"job {self.job_id} ({written({**self.cell, 'seed': self.seed})})"


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, as far as the trainer, the watchdog or the queue know."""

    outcome: str
    """One of schema.OUTCOMES."""
    cause: str | None = None
    """One of schema.CAUSES, for an attempt that failed or was lost."""
    message: str | None = None
    traceback: str | None = None
    exit_code: int | None = None
    results: Mapping[str, Any] | None = None
    """Measure → value, for one that is done; None where there is no such value."""


def begin(connection: sa.Connection, lease: Lease, worker: Worker) -> None:
    """Open the row of an attempt that a claim has just started."""
    connection.execute(
        attempts.insert().values(
            job_id=lease.job_id,
            number=lease.attempt,
            owner=lease.owner,
            started_at=now(),
            host=worker.host,
            pid=worker.pid,
            device=worker.device,
        )
    )
    note(connection, "claimed", lease.job_id, lease.attempt, lease.owner)


def advanced(connection: sa.Connection, lease: Lease, cause: str) -> bool:
    """Whether the attempt left a newer checkpoint than it began from, though something outside ended it.

    Such an attempt is not charged: steps are finite, so it cannot repeat for ever, and ten crashes of the
    machine in one night must not fail a job that moves on between them.
    """
    if cause in FINAL_CAUSES | SECOND_IS_FINAL:
        return False
    began = sa.select(attempts.c.resumed_from_step).where(
        attempts.c.job_id == lease.job_id, attempts.c.number == lease.attempt
    )
    reached = sa.select(sa.func.max(checkpoints.c.step)).where(
        checkpoints.c.job_id == lease.job_id, checkpoints.c.attempt == lease.attempt
    )
    return (connection.scalar(reached) or 0) > (connection.scalar(began) or 0)


def wasted() -> sa.ColumnElement[bool]:
    """A column of `attempts`, beside `jobs`: whether the attempt's work came to nothing.

    It has ended without a result, the next attempt did not go on from it, and none can any more.
    """
    later, began = attempts.alias("later"), sa.func.coalesce(attempts.c.resumed_from_step, 0)
    gone_on = sa.exists().where(
        later.c.job_id == attempts.c.job_id,
        later.c.number == attempts.c.number + 1,
        sa.func.coalesce(later.c.resumed_from_step, 0) > began,
    )
    may_go_on = sa.exists().where(
        checkpoints.c.job_id == attempts.c.job_id,
        checkpoints.c.attempt == attempts.c.number,
        checkpoints.c.step > began,
        jobs.c.status.in_(OPEN),
    )
    return sa.and_(sa.func.coalesce(attempts.c.outcome, "done") != "done", ~gone_on, ~may_go_on)


def recent_causes(connection: sa.Connection, job_id: int, failures: int) -> set[str]:
    """Causes of the charged attempts since the count was last set to zero."""
    charged = (
        sa.select(attempts.c.cause)
        .where(attempts.c.job_id == job_id, attempts.c.charged == 1)
        .order_by(attempts.c.number.desc())
        .limit(failures)
    )
    return set(connection.scalars(charged))


def end(
    connection: sa.Connection,
    lease: Lease,
    ending: Ending,
    charged: bool = False,
    ended_at: float | None = None,
) -> None:
    """Close the attempt's row, as of now by default; an attempt that is closed stays as it is."""
    connection.execute(
        sa.update(attempts)
        .where(
            attempts.c.job_id == lease.job_id,
            attempts.c.number == lease.attempt,
            attempts.c.outcome.is_(None),
        )
        .values(
            outcome=ending.outcome,
            cause=ending.cause,
            message=_storable(ending.message),
            traceback=_storable(ending.traceback),
            exit_code=ending.exit_code,
            charged=int(charged),
            ended_at=now() if ended_at is None else ended_at,
        )
    )
    detail = {"cause": ending.cause, "message": ending.message, "charged": charged} if ending.cause else None
    note(connection, ending.outcome, lease.job_id, lease.attempt, detail=detail)


def of_source(sha256: str) -> sa.ColumnElement[bool]:
    """Whether an attempt ran the source of this SHA-256."""
    return attempts.c.provenance.contains(f'"source_sha256": "{sha256}"', autoescape=True)


def results_of_other_source(connection: sa.Connection, study: str, sha256: str) -> int:
    """How many results of a study other code than this made, or code that was not recorded."""
    known = sa.case((of_source(sha256), 1), else_=0)  # 0 also where nothing is recorded
    made = sa.and_(attempts.c.job_id == results.c.job_id, attempts.c.number == results.c.attempt)
    joined = results.join(attempts, made).join(jobs, jobs.c.id == results.c.job_id).join(studies)
    counted = sa.select(sa.func.count()).select_from(joined).where(studies.c.name == study, known == 0)
    return connection.scalar(counted) or 0


def _storable(text: str | None) -> str | None:
    """Text with what a database may refuse written out: NUL and halves of characters."""
    return text and text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def note(
    connection: sa.Connection,
    kind: str,
    job_id: int | None = None,
    attempt: int | None = None,
    owner: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append one line to the events: what happened, to which job, for the morning after."""
    connection.execute(
        events.insert().values(
            at=now(),
            kind=kind,
            job_id=job_id,
            attempt=attempt,
            owner=owner,
            detail=json.dumps(detail) if detail else None,
        )
    )


def note_all(connection: sa.Connection, kind: str, job_ids: Sequence[int]) -> None:
    """Append the same line to the events of many jobs."""
    if job_ids:
        rows = [{"job_id": job_id, "kind": kind} for job_id in job_ids]
        connection.execute(events.insert().values(at=now()), rows)
