"""Never trained twice: a run that another study of the database has, whole and made alike, is taken over.

Made alike is: the same configuration with its seed (its hash), the same engine and program, the same code,
and the same host, processor and packages, which is what decides the bits (docs/method.md). Where results of
several numeric environments fit, those of the study's own last run are taken, or where it has none those of
the newest, so that what is taken over is one thing. The rows are copied, the other study stays as it is; a
copied attempt took no time here and names where it comes from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from runner.queue import attempts as attempt_log
from runner.queue import jobs as transitions
from runner.queue.attempts import LINKED
from runner.queue.dialects import new_ids
from runner.queue.schema import attempts, expert_counts, jobs, measures, metrics, results, studies
from runner.queue.studies import named

SAME = ("source_sha256", "host", "processor", "python", "packages")
"""Of an attempt's provenance: what must be as it is here and now."""
FRESH = "fresh"
"""Key of `studies.grid`: true where the study takes nothing over."""


def link(
    connection: sa.Connection, study: str, here: Mapping[str, Any], fresh: bool = False
) -> dict[str, int]:
    """Give the study's untried jobs the results that other studies have; returns how many of which study.

    Args:
        here: the provenance that a run on this machine would have now.
        fresh: take nothing over, and keep with the study that it never does, at its looks either.
    """
    row = named(connection, study)
    study_id, grid = row.id, json.loads(row.grid)
    if fresh:
        kept = json.dumps(grid | {FRESH: True})
        connection.execute(sa.update(studies).where(studies.c.id == study_id).values(grid=kept))
    if fresh or grid.get(FRESH):
        return {}
    candidates = _candidates(connection, study, here)
    found = _of_one_environment(connection, study_id, candidates) if candidates else {}
    if not found:
        return {}
    for job_id, theirs in found.items():
        _copy(connection, job_id, theirs)
    transitions.settle(connection)
    counts = Counter(theirs.study for theirs in found.values())
    for name, count in counts.items():
        attempt_log.note(connection, LINKED, detail={"study_id": study_id, "from": name, "jobs": count})
    return dict(counts)


def waiting(connection: sa.Connection, study: str, newest: int) -> int:
    """How many of the study's `newest` jobs are queued: what `link` took over of them is done."""
    last = (
        sa.select(jobs.c.status)
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(studies.c.name == study)
        .order_by(jobs.c.id.desc())
        .limit(newest)
        .subquery()
    )
    count = sa.select(sa.func.count()).select_from(last).where(last.c.status == "queued")
    return int(connection.scalar(count) or 0)


def _candidates(connection: sa.Connection, study: str, here: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """(job of ours, finished run of another study that is the same), the newest last."""
    mine, ours = jobs.alias("mine"), studies.alias("ours")
    rows = connection.execute(
        sa.select(
            mine.c.id.label("mine"),
            jobs.c.id,
            studies.c.name.label("study"),
            results.c.attempt,
            attempts.c.provenance,
            ours.c.program,
            mine.c.config.label("asked"),
            jobs.c.config,
        )
        .select_from(mine)
        .join(ours, ours.c.id == mine.c.study_id)
        .join(studies, sa.and_(studies.c.id != ours.c.id, studies.c.program == ours.c.program))
        .join(jobs, sa.and_(jobs.c.study_id == studies.c.id, jobs.c.config_hash == mine.c.config_hash))
        .join(results, sa.and_(results.c.job_id == jobs.c.id, results.c.exact == 1))
        .join(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.number == results.c.attempt))
        .where(ours.c.name == study, mine.c.status == "queued", mine.c.attempt == 0)
        .where(jobs.c.status == "done", studies.c.imported_from.is_(None))
        .order_by(jobs.c.id)
    )
    return [(row.mine, row) for row in rows if _alike(row, here)]


def _alike(row: Any, here: Mapping[str, Any]) -> bool:
    theirs = json.loads(row.provenance or "{}")
    same = all(theirs.get(name) is not None and theirs[name] == here.get(name) for name in SAME)
    own = json.loads(row.program).get("hash", "")  # of a user's own program: a study may have changed it
    engine = bool(own) or _engine(row.asked) == _engine(row.config)
    return same and engine and theirs.get("program_sha256", "") == own


def _engine(config_json: str) -> Any:
    """Which the hash of the project's own model leaves out, and which decides the bits."""
    return json.loads(config_json).get("train", {}).get("engine", "auto")


def _of_one_environment(
    connection: sa.Connection, study_id: int, candidates: list[tuple[int, Any]]
) -> dict[int, Any]:
    """Those that were made in the numeric environment of the study's last run, or of the last of them."""
    own = connection.scalar(
        sa.select(attempts.c.provenance)
        .join(results, sa.and_(results.c.job_id == attempts.c.job_id, results.c.attempt == attempts.c.number))
        .join(jobs, jobs.c.id == results.c.job_id)
        .where(jobs.c.study_id == study_id)
        .order_by(jobs.c.id.desc())
        .limit(1)
    )

    def environment(provenance: str | None) -> Any:
        return json.loads(provenance or "{}").get("numeric_environment")

    wanted = environment(own) or environment(candidates[-1][1].provenance)
    return {mine: row for mine, row in candidates if wanted and environment(row.provenance) == wanted}


def _copy(connection: sa.Connection, job_id: int, theirs: Any) -> None:
    """Everything that was recorded of a run, under another job; the attempt as its first."""
    for table in (results, measures, metrics, expert_counts):
        columns = [column for column in table.c if column.name not in ("job_id", "attempt")]
        own = [sa.literal(job_id).label("job_id")]
        own += [sa.literal(1).label("attempt")] if "attempt" in table.c else []
        rows = sa.select(*own, *columns).where(table.c.job_id == theirs.id)
        connection.execute(table.insert().from_select([c.name for c in rows.selected_columns], rows))
    tried = connection.execute(
        sa.select(attempts).where(attempts.c.job_id == theirs.id, attempts.c.number == theirs.attempt)
    ).one()
    copied = {
        **{name: value for name, value in tried._mapping.items() if name != "id"},
        **new_ids(connection, attempts, 1)[0],
        "job_id": job_id,
        "number": 1,
        "started_at": tried.ended_at,
        "resumed_from_step": None,
        "log_path": None,
        "message": f"taken over from job {theirs.id} of study {theirs.study}",
    }
    connection.execute(attempts.insert().values(**copied))
