"""Reading the queue: how the studies stand, what runs, one job's history. Changes nothing.

Each function takes a query-only connection (`Store.read`) and returns plain rows for the command line.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from runner.queue.jobs import UnknownJob
from runner.queue.schema import (
    OPEN,
    STATUSES,
    JobStatus,
    attempts,
    checkpoints,
    events,
    expert_counts,
    jobs,
    meta,
    metrics,
    results,
    studies,
    workers,
)
from runner.queue.speed import Eta, Left, etas
from runner.queue.store import now


def studies_overview(connection: sa.Connection) -> list[dict[str, Any]]:
    """A row a study, oldest first: name, corpus, protocol, jobs by state, whether paused, and when done.

    `eta_seconds` is None for a study that is over, paused or not timed yet; `eta_assumed` says that nobody
    is at work, and that it is what one worker would take.
    """
    states = _states(connection)
    known = connection.execute(sa.select(studies).order_by(studies.c.id)).all()
    lefts = [
        Left(study.id, states[study.id]["steps"], states[study.id]["order"])
        for study in known
        if study.id in states and not study.held
    ]
    when = etas(connection, lefts)
    overview = []
    for study in known:
        counts = states.get(study.id, {**dict.fromkeys(STATUSES, 0), "held": 0, "jobs": 0, "steps": 0})
        eta = when.get(study.id, Eta(None, False))
        overview.append(
            {
                "name": study.name,
                "protocol": study.protocol,
                "corpus": study.corpus,
                **{name: counts[name] for name in (*STATUSES, "jobs", "held")},
                "paused": bool(study.held),
                "steps_left": counts["steps"],
                "eta_seconds": eta.seconds,
                "eta_assumed": eta.assumed,
            }
        )
    return overview


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
    """A row a running job: where it stands, how fast, who holds it, how old its last event is, in seconds."""
    rows = connection.execute(
        sa.select(
            jobs.c.id,
            studies.c.name.label("study"),
            jobs.c.cell,
            jobs.c.seed,
            jobs.c.attempt,
            jobs.c.failures,
            jobs.c.progress_step,
            jobs.c.total_steps,
            jobs.c.cancel_requested,
            _latest("loss").label("loss"),
            _latest("tokens_per_second").label("tokens_per_second"),
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
    return [{**row._mapping, "cell": json.loads(row.cell), "stale": bool(row.stale)} for row in rows]


def _latest(name: str) -> Any:
    """The newest training value of that name of the job in the outer query."""
    return (
        sa.select(metrics.c.value)
        .where(metrics.c.job_id == jobs.c.id, metrics.c.split == "train", metrics.c.name == name)
        .order_by(metrics.c.step.desc())
        .limit(1)
        .scalar_subquery()
    )


def job_details(connection: sa.Connection, job_id: int) -> dict[str, Any]:
    """Everything about one job: configuration, attempts, their code, result, load, checkpoints, events.

    `load` is {layer: [tokens of each expert]} at the newest evaluation of the validation split.

    Raises:
        UnknownJob: there is none of that number.
    """
    job = connection.execute(
        sa.select(jobs, studies.c.name.label("study"))
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(jobs.c.id == job_id)
    ).first()
    if job is None:
        raise UnknownJob(f"job {job_id}: not in this database; `python cli.py status` lists the studies")

    def rows(table: sa.Table, order: Any) -> list[dict[str, Any]]:
        found = connection.execute(sa.select(table).where(table.c.job_id == job_id).order_by(order))
        return [dict(row._mapping) for row in found]

    found, tried = rows(results, results.c.job_id), rows(attempts, attempts.c.number)
    return {
        "job": {**job._mapping, "config": json.loads(job.config), "cell": json.loads(job.cell)},
        "attempts": tried,
        "sources": _sources(connection, tried),
        "result": found[0] if found else None,
        "load": _load(connection, job_id),
        "checkpoints": rows(checkpoints, checkpoints.c.step),
        "events": rows(events, events.c.id),
    }


def _sources(connection: sa.Connection, tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each code that the attempts ran; `copy` is below the folder that --runs-dir names."""
    folder = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "database_id"))
    found: dict[str, dict[str, Any]] = {}
    for attempt in tried:
        known = json.loads(attempt["provenance"] or "{}")
        if sha256 := known.get("source_sha256"):
            told = {"sha256": sha256, "copy": f"{folder}/source/{sha256}", "attempts": []}
            told |= {name: known.get(name) for name in ("git_commit", "git_dirty")}
            found.setdefault(sha256, told)["attempts"].append(attempt["number"])
    return list(found.values())


def _load(connection: sa.Connection, job_id: int) -> dict[int, list[int]]:
    of_job = sa.and_(expert_counts.c.job_id == job_id, expert_counts.c.split == "val")
    newest = sa.select(sa.func.max(expert_counts.c.step)).where(of_job).scalar_subquery()
    rows = connection.execute(
        sa.select(expert_counts.c.layer, expert_counts.c.tokens)
        .where(of_job, expert_counts.c.step == newest)
        .order_by(expert_counts.c.layer, expert_counts.c.expert)
    )
    load: dict[int, list[int]] = {}
    for row in rows:
        load.setdefault(row.layer, []).append(row.tokens)
    return load
