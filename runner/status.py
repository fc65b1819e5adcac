"""Reading the queue: what is left, how the studies stand, one job's history. Changes nothing.

Each function takes a query-only connection (`Store.read`) and returns plain rows for the command line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from runner.jobs import UnknownJob
from runner.schema import STATUSES, attempts, checkpoints, events, jobs, metrics, results, studies, workers
from runner.store import now


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


def studies_overview(connection: sa.Connection) -> list[dict[str, Any]]:
    """A row a study, oldest first: its name, corpus, protocol and how many jobs are in each state."""
    by_state = [sa.func.count().filter(jobs.c.status == status).label(status) for status in STATUSES]
    rows = connection.execute(
        sa.select(
            studies.c.name, studies.c.protocol, studies.c.corpus, *by_state, sa.func.count().label("jobs")
        )
        .join(jobs, jobs.c.study_id == studies.c.id)
        .group_by(studies.c.id)
        .order_by(studies.c.id)
    )
    return [dict(row._mapping) for row in rows]


def running_jobs(connection: sa.Connection) -> list[dict[str, Any]]:
    """A row a running job: where it stands, who holds it, how old its last heartbeat is, in seconds."""
    latest = (
        sa.select(metrics.c.value)
        .where(metrics.c.job_id == jobs.c.id, metrics.c.split == "train", metrics.c.name == "loss")
        .order_by(metrics.c.step.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows = connection.execute(
        sa.select(
            jobs.c.id,
            studies.c.name.label("study"),
            jobs.c.cell,
            jobs.c.seed,
            jobs.c.attempt,
            jobs.c.progress_step,
            jobs.c.total_steps,
            latest.label("loss"),
            workers.c.host,
            workers.c.device,
            (now() - jobs.c.heartbeat_at).label("heartbeat_age_seconds"),
            (jobs.c.lease_expires_at < now()).label("stale"),
        )
        .join(studies, studies.c.id == jobs.c.study_id)
        .outerjoin(workers, workers.c.id == jobs.c.owner)
        .where(jobs.c.status == "running")
        .order_by(jobs.c.id)
    )
    return [{**row._mapping, "cell": json.loads(row.cell)} for row in rows]


def job_details(connection: sa.Connection, job_id: int) -> dict[str, Any]:
    """Everything about one job: configuration, attempts, result, checkpoints, events.

    Raises:
        UnknownJob: there is none of that number.
    """
    job = connection.execute(
        sa.select(jobs, studies.c.name.label("study"), studies.c.test_revealed_at)
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(jobs.c.id == job_id)
    ).first()
    if job is None:
        raise UnknownJob(f"job {job_id}: not in this database; `python cli.py status` lists the studies")

    def rows(table: sa.Table, order: Any) -> list[dict[str, Any]]:
        found = connection.execute(sa.select(table).where(table.c.job_id == job_id).order_by(order))
        return [dict(row._mapping) for row in found]

    found = rows(results, results.c.job_id)
    return {
        "job": {**job._mapping, "config": json.loads(job.config), "cell": json.loads(job.cell)},
        "attempts": rows(attempts, attempts.c.number),
        "result": found[0] if found else None,
        "checkpoints": rows(checkpoints, checkpoints.c.step),
        "events": rows(events, events.c.id),
    }
