"""Reading another program's results into a study, so that one report serves both.

The file is a CSV with the columns of the published study. Every row becomes a finished job without attempts,
in a study that is marked as imported.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from model.config import ConfigError, RunConfig, canonical_json
from runner.queue import attempts as attempt_log
from runner.queue.dialects import new_ids, now, one_at_a_time
from runner.queue.jobs import SUBMISSION
from runner.queue.schema import jobs, results, studies

COLUMNS = {
    "val_loss": "val_loss",
    "val_accuracy": "val_accuracy",
    "val_perplexity": "val_perplexity",
    "best_val_perplexity": "best_val_perplexity",
    "expert_usage_cv": "expert_usage_cv",
}
"""CSV column → column of `results`, where the unit is the same."""
REQUIRED = ("seed", "val_loss", "val_perplexity")
FACTORS = ("noise_std", "load_balancing_weight")


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rows of the file, checked: {"cell", "seed", "config_hash", "results"} each.

    Raises:
        ConfigError: no such file, a column that is missing, or a value that is not a number; names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {error}") from error
    missing = [name for name in (*REQUIRED, *FACTORS) if name not in columns]
    if missing:
        raise ConfigError(f"{path}: no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    if not rows:
        raise ConfigError(f"{path}: no rows under its header")
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, start=2):
        parsed = _row(f"{path} line {number}", row)
        if parsed["config_hash"] in found:
            raise ConfigError(f"{path} line {number}: seed {parsed['seed']} of this cell stands there twice")
        found[parsed["config_hash"]] = parsed
    return list(found.values())


def _row(where: str, row: dict[str, Any]) -> dict[str, Any]:
    def number(column: str) -> float | None:
        text = (row.get(column) or "").strip()
        if not text and column not in REQUIRED and column not in FACTORS:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {column} = {text!r}: must be a finite number")
        return value

    values = {ours: number(theirs) for theirs, ours in COLUMNS.items()}
    minutes, gigabytes = number("training_time_minutes"), number("peak_memory_gb")
    values["training_seconds"] = None if minutes is None else minutes * 60.0
    values["peak_memory_bytes"] = None if gigabytes is None else round(gigabytes * 1e9)
    seed = number("seed")
    if seed is None or seed != int(seed):
        raise ConfigError(f"{where}: seed = {row['seed']!r}: must be a whole number")
    cell = {name: number(name) for name in FACTORS}
    try:
        config = RunConfig().with_values({**cell, "seed": int(seed)})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return {"cell": cell, "seed": config.seed, "config_hash": config.hash, "results": values}


def import_results(connection: sa.Connection, path: Path, study: str) -> int:
    """Make a study of the file's rows; returns how many there are.

    Raises:
        ConfigError: the file is refused, or a study of that name exists.
    """
    rows = read_results(path)
    one_at_a_time(connection, SUBMISSION)
    if connection.scalar(sa.select(studies.c.id).where(studies.c.name == study)) is not None:
        raise ConfigError(f"study {study!r}: exists already; name another with --study")
    grid = {
        "name": study,
        "question": "",
        "factors": {name: list(dict.fromkeys(row["cell"][name] for row in rows)) for name in FACTORS},
        "seeds": list(dict.fromkeys(row["seed"] for row in rows)),
        "primary": "val_loss",
        "baseline": {},
        "margins": {},
        "scale": "unknown",
        "base": {},
    }
    study_id = connection.execute(
        studies.insert()
        .values(
            **new_ids(connection, studies, 1)[0],
            name=study,
            grid=json.dumps(grid),
            protocol="published",
            corpus="unknown",
            corpus_id="",
            imported_from=f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}",
            created_at=now(),
        )
        .returning(studies.c.id)
    ).scalar_one()
    for row in rows:
        _insert(connection, study_id, row)
    attempt_log.note(connection, "imported", detail={"study_id": study_id, "jobs": len(rows)})
    return len(rows)


def _insert(connection: sa.Connection, study_id: int, row: dict[str, Any]) -> None:
    job_id = connection.execute(
        jobs.insert()
        .values(
            **new_ids(connection, jobs, 1)[0],
            study_id=study_id,
            config_hash=row["config_hash"],
            config=canonical_json({"routing": row["cell"], "seed": row["seed"]}),
            cell=json.dumps(row["cell"]),
            seed=row["seed"],
            status="done",
            total_steps=0,
            created_at=now(),
            finished_at=now(),
        )
        .returning(jobs.c.id)
    ).scalar_one()
    connection.execute(
        results.insert().values(job_id=job_id, attempt=0, recorded_at=now(), exact=0, **row["results"])
    )
