"""What is done to a study as a whole: it waits, goes on, opens its sealed test, or is deleted with its jobs.

How one is made from a grid: runner/design/enqueue.py. What its attempts left on disk is removed after the
rows (runner/care/clean.py): a crash in between leaves files without rows, which `clean` and `doctor` find.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from model.config import ConfigError
from runner.queue import attempts as attempt_log
from runner.queue import jobs, schema
from runner.queue.dialects import now, spend_ids
from runner.queue.jobs import UnknownJob
from runner.queue.schema import JobStatus, studies
from runner.queue.schema import jobs as jobs_table
from runner.queue.where import counted

_CHUNK = 500
"""Jobs in one statement, below every database's limit of bound values."""


def named(connection: sa.Connection, name: str, lock: bool = False) -> sa.Row[Any]:
    """The row of a study, held for the rest of the transaction if `lock`.

    Raises:
        ConfigError: there is none of that name; five that are there are named.
    """
    statement = sa.select(studies).where(studies.c.name == name)
    row = connection.execute(statement.with_for_update() if lock else statement).first()
    if row is None:
        known = connection.scalars(sa.select(studies.c.name).order_by(studies.c.id.desc()).limit(5)).all()
        raise ConfigError(f"study {name!r}: not in this database; known: {', '.join(known) or 'none'}")
    return row


def sealed(connection: sa.Connection, study: str) -> str | None:
    """What to know before the test split is revealed; None if it is open already.

    Raises:
        ConfigError: no study of that name, or one whose results were not computed here.
    """
    row = _with_test_split(connection, study)
    if row.test_revealed_at is not None:
        return None
    own = sa.select(sa.func.count()).where(jobs_table.c.study_id == row.id)
    total = connection.scalar(own) or 0
    left = connection.scalar(own.where(jobs_table.c.status != "done")) or 0
    unfinished = f"{left} of its {total} jobs are not done; " if left else ""
    return (
        f"{study}: {unfinished}once its test scores are seen, what is chosen or added afterwards has seen "
        "them too, and the report says so from then on"
    )


def _with_test_split(connection: sa.Connection, study: str, lock: bool = False) -> sa.Row[Any]:
    row = named(connection, study, lock)
    if row.imported_from:
        raise ConfigError(f"study {study!r}: imported results; they have no test split")
    return row


def reveal_test(connection: sa.Connection, study: str, command: str = "cli.py test") -> bool:
    """Open a study's sealed test split for good; True the first time, False when it was open already.

    The event keeps when and by which command, so that a report can say that the scores have been seen.

    Raises:
        ConfigError: no study of that name, or one whose results were not computed here.
    """
    row = _with_test_split(connection, study, lock=True)
    if row.test_revealed_at is not None:
        return False
    connection.execute(sa.update(studies).where(studies.c.id == row.id).values(test_revealed_at=now()))
    attempt_log.note(connection, "test revealed", detail={"study_id": row.id, "command": command})
    return True


def hold(connection: sa.Connection, study: str, held: bool) -> None:
    """Pause a study (its queued jobs, and those that come later, wait), or let it and its jobs go on."""
    row = named(connection, study)
    connection.execute(sa.update(studies).where(studies.c.id == row.id).values(held=int(held)))
    attempt_log.note(connection, "study paused" if held else "study resumed", detail={"study_id": row.id})
    if not held:
        own = sa.select(jobs_table.c.id).where(jobs_table.c.study_id == row.id, jobs_table.c.held == 1)
        jobs.unhold(connection, connection.scalars(own).all())


def delete(connection: sa.Connection, job_ids: Sequence[int], study: str | None = None) -> list[str]:
    """Delete jobs with all their rows; returns the names of the studies that went with them.

    A study goes when its last job does, or when it is named and has none. One that keeps some loses the
    levels and seeds that no job has any more, unless its baseline or a claim names them.

    Raises:
        UnknownJob: some of the jobs are running; nothing is deleted.
    """
    jobs.requeue_lost(connection)  # a worker that died holds nothing
    of_study = _held(connection, sorted(job_ids))
    empty = set() if study is None else {named(connection, study).id}
    spend_ids(connection, jobs_table, of_study)
    for part in _parts(of_study):
        for table in reversed(schema.metadata.sorted_tables):  # a row goes before those that it refers to
            if "job_id" in table.c:
                connection.execute(sa.delete(table).where(table.c.job_id.in_(part)))
        connection.execute(sa.delete(jobs_table).where(jobs_table.c.id.in_(part)))
    gone = []
    for study_id in sorted({*of_study.values(), *empty}):
        row = connection.execute(sa.select(studies).where(studies.c.id == study_id)).one()
        count = sum(owner == study_id for owner in of_study.values())
        whole = not _shrink(connection, row)
        if whole:
            spend_ids(connection, studies, [study_id])
            connection.execute(sa.delete(schema.looks).where(schema.looks.c.study_id == study_id))
            connection.execute(sa.delete(studies).where(studies.c.id == study_id))
            gone.append(row.name)
        detail = {"study": row.name, "jobs": count, "whole": whole, "test_revealed_at": row.test_revealed_at}
        attempt_log.note(connection, "deleted", detail=detail)
    return gone


def _held(connection: sa.Connection, job_ids: Sequence[int]) -> dict[int, int]:
    """Job → study of those that are there, their rows held; none of them runs."""
    found: dict[int, int] = {}
    running: list[int] = []
    for part in _parts(job_ids):
        chosen = sa.select(jobs_table.c.id, jobs_table.c.study_id, jobs_table.c.status).where(
            jobs_table.c.id.in_(part)
        )
        for job in connection.execute(chosen.order_by(jobs_table.c.id).with_for_update()):
            found[job.id] = job.study_id
            running += [job.id] if job.status == JobStatus.RUNNING else []
    if running:
        names = " ".join(map(str, running[:5]))
        raise UnknownJob(
            f"still running: {counted(len(running), 'job')}, and nothing was deleted; "
            f"`python cli.py cancel {names}` asks them to stop, then delete again"
        )
    return found


def _shrink(connection: sa.Connection, study: sa.Row[Any]) -> bool:
    """Take what no job has any more out of the study's design; False when there is no job at all."""
    left = connection.execute(
        sa.select(jobs_table.c.cell, jobs_table.c.seed).where(jobs_table.c.study_id == study.id).distinct()
    ).all()
    grid = json.loads(study.grid)
    kept = [json.loads(row.cell) for row in left]
    kept += [grid.get("baseline") or {}, *_claimed(grid.get("claims") or [])]
    levels = {
        factor: [level for level in levels if level in there]
        for factor, levels in grid["factors"].items()
        for there in [{cell[factor] for cell in kept if factor in cell}]
    }
    sets = {
        factor: {level: values for level, values in told.items() if level in levels[factor]}
        for factor, told in grid.get("levels", {}).items()
    }
    seeds = {row.seed for row in left}
    grid |= {"factors": levels, "seeds": [seed for seed in grid["seeds"] if seed in seeds]}
    grid |= {"levels": sets} if sets else {}
    if left:
        connection.execute(sa.update(studies).where(studies.c.id == study.id).values(grid=json.dumps(grid)))
    return bool(left)


def _claimed(claims: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """What the claims name, as cells."""
    for claim in claims:
        yield claim["compare"]
        yield claim["against"]
        for factor, pair in claim["interaction"].items():
            yield from ({factor: level} for level in pair)


def _parts(job_ids: Iterable[int]) -> Iterator[list[int]]:
    ordered = sorted(job_ids)
    return (ordered[start : start + _CHUNK] for start in range(0, len(ordered), _CHUNK))
