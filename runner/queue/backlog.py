"""What is left to do, which a worker looks at before it waits, claims or leaves; and who is still at work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.queue.dialects import now
from runner.queue.schema import JobStatus, jobs, studies, workers

BEAT_SECONDS = 60.0
"""Interval of an idle worker's signs of life; one with a job gives them by renewing its lease."""
SILENT_SECONDS = 900.0
"""Longest silence of a worker without a good lease; after it the worker is taken for dead."""


@dataclass(frozen=True)
class Backlog:
    """What stands between now and a drained queue; held jobs do not count."""

    due: int
    """Claimable now: queued and due, or running with an expired lease."""
    later: int
    """Queued, but backing off after a failure."""
    running: int
    """Held by workers whose leases are good."""
    steps: int
    """Training steps left in all of them."""
    workers: int
    """Owners of running jobs, and at least one."""

    @property
    def jobs(self) -> int:
        return self.due + self.later + self.running

    @property
    def empty(self) -> bool:
        return self.jobs == 0


def backlog(connection: sa.Connection) -> Backlog:
    """Count what is left to do."""
    free = jobs.c.study_id.in_(sa.select(studies.c.id).where(studies.c.held == 0))
    queued = sa.and_(jobs.c.status == JobStatus.QUEUED, jobs.c.held == 0, free)
    on_time = sa.or_(jobs.c.run_after.is_(None), jobs.c.run_after <= now())
    running = jobs.c.status == JobStatus.RUNNING
    expired = jobs.c.lease_expires_at < now()
    count = sa.func.count
    row = connection.execute(
        sa.select(
            count().filter(sa.or_(sa.and_(queued, on_time), sa.and_(running, expired))),
            count().filter(sa.and_(queued, ~on_time)),
            count().filter(sa.and_(running, ~expired)),
            sa.func.coalesce(sa.func.sum(jobs.c.total_steps - jobs.c.progress_step), 0),
            count(sa.distinct(jobs.c.owner)),
        ).where(sa.or_(queued, running))
    ).one()
    return Backlog(row[0], row[1], row[2], row[3], max(1, row[4]))


def waiting_configs(connection: sa.Connection, most: int) -> list[tuple[dict[str, Any], str]]:
    """The programs of the jobs that are claimed next, up to `most`, and their configurations as JSON."""
    queued = sa.select(studies.c.program, jobs.c.config).join(studies, studies.c.id == jobs.c.study_id)
    queued = queued.where(jobs.c.status == JobStatus.QUEUED).order_by(jobs.c.priority.desc(), jobs.c.id)
    return [(json.loads(row.program), row.config) for row in connection.execute(queued.limit(most))]


def next_program(connection: sa.Connection) -> dict[str, Any]:
    """The program of the job that a claim would bring now; empty where there is none."""
    expired = sa.and_(jobs.c.status == JobStatus.RUNNING, jobs.c.lease_expires_at < now())
    on_time = sa.or_(jobs.c.run_after.is_(None), jobs.c.run_after <= now())
    queued = sa.and_(jobs.c.status == JobStatus.QUEUED, jobs.c.held == 0, studies.c.held == 0, on_time)
    found = connection.scalar(
        sa.select(studies.c.program)
        .join(jobs, jobs.c.study_id == studies.c.id)
        .where(sa.or_(queued, expired))
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(1)
    )
    return dict(json.loads(found or "{}"))


def beat(connection: sa.Connection, owners: Sequence[str]) -> None:
    """Note a sign of life of those owners that have a row in `workers`."""
    alive = sa.and_(workers.c.id.in_(owners), workers.c.stopped_at.is_(None))
    connection.execute(sa.update(workers).where(alive).values(heartbeat_at=now()))


def is_dead() -> sa.ColumnElement[bool]:
    """A column of `workers`: killed, as far as one can tell, since it never signed off."""
    held = jobs.alias("held")  # whoever asks may have joined jobs too
    leases = sa.exists().where(
        held.c.owner == workers.c.id, held.c.status == JobStatus.RUNNING, held.c.lease_expires_at >= now()
    )
    return sa.and_(workers.c.stopped_at.is_(None), workers.c.heartbeat_at < now() - SILENT_SECONDS, ~leases)


def sign_off_dead(connection: sa.Connection) -> None:
    """Sign off for the dead, at their last sign of life; they left no exit code."""
    connection.execute(sa.update(workers).where(is_dead()).values(stopped_at=workers.c.heartbeat_at))
