"""What is left to do: what a worker looks at before it waits, claims or leaves. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from runner.queue.dialects import now
from runner.queue.schema import jobs, studies


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
    queued = sa.and_(jobs.c.status == "queued", jobs.c.held == 0, free)
    on_time = sa.or_(jobs.c.run_after.is_(None), jobs.c.run_after <= now())
    running = jobs.c.status == "running"
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
