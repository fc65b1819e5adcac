"""Reading one job: its configuration, attempts, result, load and events. Shown by runner/view/job.py."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from runner.queue.jobs import UnknownJob
from runner.queue.schema import (
    attempts,
    checkpoints,
    events,
    expert_counts,
    jobs,
    measures,
    meta,
    results,
    studies,
)


def job_details(connection: sa.Connection, job_id: int) -> dict[str, Any]:
    """Everything about one job: configuration, attempts, their code, result, load, checkpoints, events.

    `load` is {layer: [tokens of each expert]} at the newest evaluation of the validation split.

    Raises:
        UnknownJob: there is none of that number.
    """
    job = connection.execute(
        sa.select(jobs, studies.c.name.label("study"), studies.c.program)
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(jobs.c.id == job_id)
    ).first()
    if job is None:
        raise UnknownJob(f"job {job_id}: not in this database; `python cli.py status` lists the studies")

    def rows(table: sa.Table, order: Any) -> list[dict[str, Any]]:
        found = connection.execute(sa.select(table).where(table.c.job_id == job_id).order_by(order))
        return [dict(row._mapping) for row in found]

    tried, own = rows(attempts, attempts.c.number), dict(job._mapping)
    program = json.loads(own.pop("program"))
    return {
        "job": {**own, "config": json.loads(job.config), "cell": json.loads(job.cell)},
        "attempts": tried,
        "sources": _sources(connection, tried),
        "result": _result(rows(results, results.c.job_id), rows(measures, measures.c.name), program),
        "load": _load(connection, job_id),
        "checkpoints": rows(checkpoints, checkpoints.c.step),
        "events": rows(events, events.c.id),
    }


def _result(
    found: list[dict[str, Any]], measured: list[dict[str, Any]], program: dict[str, Any]
) -> dict[str, Any] | None:
    """The result with its measures, in the program's order; NaN and the infinities by their names."""
    if not found:
        return None
    values = {row["name"]: row["nonfinite"] or row["value"] for row in measured}
    result = dict(found[0])
    for measure in program.get("measures", []):
        value = values.pop(measure["name"], None)
        if value is not None:
            whole = measure["decimals"] == 0 and isinstance(value, float) and value.is_integer()
            result[measure["name"]] = int(value) if whole else value
    return {**result, **values}


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
