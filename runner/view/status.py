"""Reading the queue: how the studies stand, and what runs. Shown by runner/view/console.py.

Each function takes a query-only connection (`Store.read`) and returns plain rows for the command line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from runner.queue.looks import standing
from runner.queue.schema import OPEN, STATUSES, JobStatus, jobs, metrics, studies, workers
from runner.queue.series import SPEED, chosen
from runner.queue.speed import Eta, Left, etas
from runner.queue.store import now
from runner.view.text import duration


def studies_overview(connection: sa.Connection) -> list[dict[str, Any]]:
    """A row a study, oldest first: name, facts, jobs by state, whether paused, and when done.

    `eta_seconds` is None for a study that is over, paused or not timed yet; `eta_assumed` says that nobody
    is at work, and that it is what one worker would take. `looks` is None where seeds are a fixed number.
    """
    states = _states(connection)
    known = connection.execute(sa.select(studies).order_by(studies.c.id)).all()
    lefts = [
        Left(study.id, states[study.id]["steps"], states[study.id]["order"])
        for study in known
        if study.id in states and not study.held
    ]
    when = etas(connection, lefts)
    looks = _looks(connection, known, lefts)
    overview = []
    for study in known:
        counts = states.get(study.id, {**dict.fromkeys(STATUSES, 0), "held": 0, "jobs": 0, "steps": 0})
        eta = when.get(study.id, Eta(None, False))
        overview.append(
            {
                "name": study.name,
                "facts": json.loads(study.facts),
                **{name: counts[name] for name in (*STATUSES, "jobs", "held")},
                "paused": bool(study.held),
                "steps_left": counts["steps"],
                "eta_seconds": eta.seconds,
                "eta_assumed": eta.assumed,
                "looks": looks.get(study.id),
            }
        )
    return overview


def _looks(
    connection: sa.Connection, known: Sequence[sa.Row[Any]], lefts: Sequence[Left]
) -> dict[int, dict[str, Any]]:
    """By study: how far its looks have come, in numbers and in words, and how long it takes at most."""
    found = {s.id: standing(connection, s.id, json.loads(s.looks)) for s in known if s.looks}
    if not found:
        return {}
    more = {study: standing.steps for study, standing in found.items()}
    most = etas(connection, [replace(left, steps=left.steps + more.get(left.study_id, 0)) for left in lefts])
    told = {}
    for study, standing_ in found.items():
        seconds = most[study].seconds if study in most else None
        further = "" if seconds is None else f", at most {duration(seconds)} to go"
        told[study] = {**asdict(standing_), "most_seconds": seconds, "told": standing_.told(further)}
    return told


def _states(connection: sa.Connection) -> dict[int, dict[str, Any]]:
    """By study: jobs in each state, those held, the steps left to the others, and whose turn it is."""
    count, held = sa.func.count(), jobs.c.held == 1
    left = sa.case((held, 0), else_=jobs.c.total_steps - jobs.c.progress_step)
    rows = connection.execute(
        sa.select(
            jobs.c.study_id,
            jobs.c.status,
            count.label("jobs"),
            count.filter(held).label("held"),
            sa.func.sum(left).label("steps"),
            sa.func.max(jobs.c.priority).label("priority"),
            sa.func.min(jobs.c.id).label("first"),
        ).group_by(jobs.c.study_id, jobs.c.status)
    )
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        empty = {**dict.fromkeys(STATUSES, 0), "jobs": 0, "held": 0, "steps": 0, "order": (0, 0)}
        study = found.setdefault(row.study_id, empty)
        study[row.status] = row.jobs
        study["jobs"] += row.jobs
        if row.status in OPEN:
            study["held"] += row.held
            study["steps"] += row.steps
        if row.status == JobStatus.QUEUED:
            study["order"] = (-row.priority, row.first)
    return found


def running_jobs(connection: sa.Connection) -> list[dict[str, Any]]:
    """A row a running job: where it stands, how fast, who holds it, how old its last event is, in seconds.

    `value` is the newest of its training `series`, the one that stands for it; None before it logs any.
    """
    rows = connection.execute(
        sa.select(
            jobs.c.id,
            studies.c.name.label("study"),
            studies.c.grid,
            studies.c.program,
            jobs.c.cell,
            jobs.c.seed,
            jobs.c.attempt,
            jobs.c.failures,
            jobs.c.progress_step,
            jobs.c.total_steps,
            jobs.c.cancel_requested,
            workers.c.host,
            workers.c.device,
            (now() - jobs.c.heartbeat_at).label("heartbeat_age_seconds"),
            (now() - sa.func.coalesce(jobs.c.progress_at, jobs.c.heartbeat_at)).label("event_age_seconds"),
            (jobs.c.lease_expires_at < now()).label("stale"),
        )
        .join(studies, studies.c.id == jobs.c.study_id)
        .outerjoin(workers, workers.c.id == jobs.c.owner)
        .where(jobs.c.status == JobStatus.RUNNING)
        .order_by(jobs.c.id)
    )
    return [_running(connection, dict(row._mapping)) for row in rows]


def _running(connection: sa.Connection, job: dict[str, Any]) -> dict[str, Any]:
    grid, program = json.loads(job.pop("grid")), json.loads(job.pop("program"))
    measures = [measure["name"] for measure in program.get("measures", [])]
    logged = _first_logged(connection, job["id"])
    series = chosen(logged, grid.get("primary") or next(iter(measures), ""))
    return {
        **job,
        "cell": json.loads(job["cell"]),
        "stale": bool(job["stale"]),
        "series": series,
        "value": _latest(connection, job["id"], series) if series else None,
        SPEED: _latest(connection, job["id"], SPEED) if SPEED in logged else None,
    }


def _first_logged(connection: sa.Connection, job_id: int) -> set[str]:
    """The series of a job's first training step: found in the index, however long the job has run."""
    own = (metrics.c.job_id == job_id, metrics.c.split == "train")
    first = sa.select(metrics.c.step).where(*own).order_by(metrics.c.step).limit(1).scalar_subquery()
    return set(connection.scalars(sa.select(metrics.c.name).where(*own, metrics.c.step == first)))


def _latest(connection: sa.Connection, job_id: int, name: str) -> float | None:
    """The newest training value of that name."""
    statement = (
        sa.select(metrics.c.value)
        .where(metrics.c.job_id == job_id, metrics.c.split == "train", metrics.c.name == name)
        .order_by(metrics.c.step.desc())
        .limit(1)
    )
    return connection.scalar(statement)
