"""Results that were made elsewhere become a study, so that one report serves both.

Every run of the file becomes a job without attempts, in a study that is marked as imported. How the file is
read: runner/design/foreign.py.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import sqlalchemy as sa

from model.config import ConfigError, canonical_json
from runner.design.foreign import Run, parsed, read_results
from runner.design.program import DEFAULT, load
from runner.queue import attempts as attempt_log
from runner.queue.dialects import new_ids, now, one_at_a_time
from runner.queue.jobs import SUBMISSION, record_result
from runner.queue.schema import JobStatus, jobs, studies

UNKNOWN = "unknown"
PROTOCOLS = (UNKNOWN, "sound", "published")


def import_results(
    connection: sa.Connection,
    path: Path,
    study: str,
    protocol: str | None = None,
    columns: str = "",
    program: Path = DEFAULT,
) -> int:
    """Make a study of the file's rows, whose columns are a program's; returns how many rows there are.

    Raises:
        ConfigError: the file is refused, says another protocol, or a study of that name exists.
    """
    theirs = load(program)
    imported = read_results(path, columns, theirs)
    shared, of_text = imported.shared, "protocol" in theirs.keys
    if protocol and not of_text:
        raise ConfigError(f"--protocol {protocol}: {program} has none; leave the option out")
    said = shared.get("protocol") or protocol or UNKNOWN
    if said not in PROTOCOLS:
        raise ConfigError(f"{path}: protocol {said!r}; it must be one of {', '.join(PROTOCOLS)}")
    if protocol not in (None, said):
        raise ConfigError(f"--protocol {protocol}: {path} says {said}; leave the option out")
    one_at_a_time(connection, SUBMISSION)
    if connection.scalar(sa.select(studies.c.id).where(studies.c.name == study)) is not None:
        raise ConfigError(f"study {study!r}: exists already; name another with --study")
    rows = imported.rows
    grid = {
        "name": study,
        "question": "",
        "factors": {name: list(dict.fromkeys(row.cell[name] for row in rows)) for name in imported.factors},
        "seeds": list(dict.fromkeys(row.seed for row in rows)),
        "primary": theirs.measures[0].name,
        "baseline": {},
        "margins": {},
        "scale": UNKNOWN,
        "base": {},
        **(parsed(path, "grid", shared["grid"]) if shared.get("grid") else {}),
    }
    study_id = connection.execute(
        studies.insert()
        .values(
            **new_ids(connection, studies, 1)[0],
            name=study,
            grid=json.dumps(grid),
            program=json.dumps(theirs.record()),
            facts=json.dumps(_facts(said, shared) if of_text else {}),
            imported_from=f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}",
            created_at=now(),
        )
        .returning(studies.c.id)
    ).scalar_one()
    for row in rows:
        _insert(connection, study_id, row)
    attempt_log.note(connection, "imported", detail={"study_id": study_id, "jobs": len(rows)})
    return len(rows)


def _facts(protocol: str, shared: dict[str, str]) -> dict[str, str]:
    return {
        "protocol": protocol,
        "corpus": shared.get("corpus") or UNKNOWN,
        "corpus_id": shared.get("corpus_id") or "",
    }


def _insert(connection: sa.Connection, study_id: int, row: Run) -> None:
    job_id = connection.execute(
        jobs.insert()
        .values(
            **new_ids(connection, jobs, 1)[0],
            study_id=study_id,
            config_hash=row.config_hash,
            config=canonical_json(row.config),
            cell=json.dumps(row.cell),
            seed=row.seed,
            status=JobStatus.DONE if row.results else JobStatus.FAILED,
            total_steps=0,
            created_at=now(),
            finished_at=now(),
        )
        .returning(jobs.c.id)
    ).scalar_one()
    if row.results:
        record_result(connection, job_id, 0, row.exact, row.results)
