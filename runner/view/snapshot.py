"""What one frame of `watch` shows, read in one transaction. Drawn by runner/view/frame.py."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from runner.queue.backlog import is_dead
from runner.queue.schema import JobStatus, events, jobs, metrics, studies, workers
from runner.queue.store import now
from runner.queue.studies import named
from runner.view.gpus import Gpu
from runner.view.status import running_jobs, studies_overview
from runner.view.text import label

MOST_GLYPHS = 5_000
"""Jobs of a study up to which each is shown by a letter; a larger one is shown by counts."""
MOST_RUNNING = 8
"""Workers, and running jobs with their curve, that are read."""
EVENTS = 12


@dataclass(frozen=True)
class Snapshot:
    """What one frame shows."""

    at: float
    overview: list[dict[str, Any]]
    study: str | None
    cells: dict[str, list[tuple[int, str]]]
    """Cell → (seed, state) of each of its jobs; states are the five, and `paused`."""
    counts: dict[str, dict[str, int]]
    """Cell → jobs by state, for a study that is too large for one letter a job."""
    running: list[dict[str, Any]]
    workers: list[dict[str, Any]]
    events: list[dict[str, Any]]
    gpus: list[Gpu] = field(default_factory=list)


def snapshot(connection: sa.Connection, study: str | None, cards: list[Gpu]) -> Snapshot:
    """Read what a frame shows, in one transaction."""
    overview, running = studies_overview(connection), running_jobs(connection)
    if study is None:
        study = _interesting(overview, running)
    number = named(connection, study).id if study is not None else None
    size = next((each["jobs"] for each in overview if each["name"] == study), 0)
    small = size <= MOST_GLYPHS
    for job in running[:MOST_RUNNING]:
        job["curve"] = _curve(connection, job["id"], job["series"])
    return Snapshot(
        at=float(connection.scalar(sa.select(now())) or 0.0),
        overview=overview,
        study=study,
        cells=_cells(connection, number) if number is not None and small else {},
        counts=_counts(connection, number) if number is not None and not small else {},
        running=running,
        workers=_workers(connection),
        events=_events(connection),
        gpus=cards,
    )


def _interesting(overview: list[dict[str, Any]], running: list[dict[str, Any]]) -> str | None:
    """The study of the first running job, or the newest that is not over, or the newest."""
    if running:
        return str(running[0]["study"])
    waiting = [study for study in overview if study["queued"]]
    return str((waiting or overview)[-1]["name"]) if overview else None


def _state() -> Any:
    held = sa.and_(jobs.c.status == JobStatus.QUEUED, sa.or_(jobs.c.held == 1, studies.c.held == 1))
    return sa.case((held, "paused"), else_=jobs.c.status).label("state")


def _cells(connection: sa.Connection, number: int) -> dict[str, list[tuple[int, str]]]:
    rows = connection.execute(
        sa.select(jobs.c.cell, jobs.c.seed, _state())
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(jobs.c.study_id == number)
        .order_by(jobs.c.seed, jobs.c.id)
    )
    found: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        found.setdefault(row.cell, []).append((row.seed, row.state))
    return {label(json.loads(cell)): jobs_of_it for cell, jobs_of_it in found.items()}


def _counts(connection: sa.Connection, number: int) -> dict[str, dict[str, int]]:
    state = _state()
    rows = connection.execute(
        sa.select(jobs.c.cell, state, sa.func.count().label("jobs"))
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(jobs.c.study_id == number)
        .group_by(jobs.c.cell, state)
        .order_by(sa.func.min(jobs.c.id))
    )
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(label(json.loads(row.cell)), {})[row.state] = row.jobs
    return found


def _curve(connection: sa.Connection, job_id: int, series: str) -> list[float | None]:
    rows = connection.scalars(
        sa.select(metrics.c.value)
        .where(metrics.c.job_id == job_id, metrics.c.split == "train", metrics.c.name == series)
        .order_by(metrics.c.step)
    )
    return list(rows)


def _workers(connection: sa.Connection) -> list[dict[str, Any]]:
    """Workers that neither signed off nor are long dead, with the job in hand; the latest heard of first."""
    rows = connection.execute(
        sa.select(
            workers.c.host,
            workers.c.pid,
            workers.c.device,
            jobs.c.id.label("job_id"),
            (now() - workers.c.heartbeat_at).label("age_seconds"),
            (jobs.c.lease_expires_at < now()).label("stale"),
        )
        .outerjoin(jobs, sa.and_(jobs.c.owner == workers.c.id, jobs.c.status == JobStatus.RUNNING))
        .where(workers.c.stopped_at.is_(None), ~is_dead())
        .order_by(workers.c.heartbeat_at.desc())
        .limit(MOST_RUNNING)
    )
    return [dict(row._mapping) for row in rows]


def _events(connection: sa.Connection) -> list[dict[str, Any]]:
    rows = connection.execute(sa.select(events).order_by(events.c.id.desc()).limit(EVENTS))
    return [{**row._mapping, "detail": json.loads(row.detail or "{}")} for row in rows]
