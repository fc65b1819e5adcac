"""Which jobs are meant: one by its id, its hash or its cell; many by study or condition. Reads only.

7                              its id
3f9c                           the beginning of its configuration's hash, where only one begins so
noise_std=0.1,top_k=2,seed=43  its cell: every factor and the seed; study=NAME may be added
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from model.config import ConfigError
from runner.queue.jobs import UnknownJob
from runner.queue.schema import jobs, studies
from runner.queue.studies import named
from runner.queue.where import condition

FEWEST_HEX = 4
"""Fewest characters of a hash that name a job; fewer are more likely a slip."""
MOST_LISTED = 1_000
"""Jobs that are looked at to say in what those that a name could mean differ."""


@dataclass(frozen=True)
class Meant:
    """A job as a list of jobs shows it."""

    id: int
    study: str
    cell: dict[str, Any]
    seed: int
    status: str
    held: bool
    priority: int


def find_job(connection: sa.Connection, name: str) -> int:
    """The id of the one job that is named.

    Raises:
        UnknownJob: none is, or several are; the message says how to name one.
        WhereError: a cell that cannot be read.
    """
    name = name.strip()
    if re.fullmatch(r"[0-9]{1,18}", name):
        found = connection.scalar(sa.select(jobs.c.id).where(jobs.c.id == int(name)))
        if found is not None:
            return int(found)
    if "=" in name:
        parts = " and ".join(part for part in name.split(",") if part.strip())
        matching = condition(parts, *known_names(connection))
    elif re.fullmatch(rf"[0-9a-f]{{{FEWEST_HEX},64}}", name):
        matching = sa.and_(jobs.c.config_hash >= name, jobs.c.config_hash < name + "g")
    elif not name.isdigit():
        hint = "an id, the first letters of a hash, or a cell as in noise_std=0.1,top_k=2,seed=43"
        raise UnknownJob(f"job {name}: not in this database; name it by {hint}")
    else:
        raise UnknownJob(f"job {name}: not in this database; `python cli.py status` lists the studies")
    found = _select(connection, matching, MOST_LISTED)
    if len(found) == 1:
        return found[0].id
    if not found:
        raise UnknownJob(f"job {name}: not in this database; `python cli.py status` lists the studies")
    some = ", ".join(str(job.id) for job in found[:5]) + (", …" if len(found) > 5 else "")
    raise UnknownJob(f"job {name}: several jobs match ({some}); give an id{_what_decides(name, found)}")


def _what_decides(name: str, found: Sequence[Meant]) -> str:
    """`, or add load_balancing_weight= (0.01 or 0.0)`: each thing in which the jobs differ."""
    if "=" not in name:
        return " or more of the hash"
    told = [{"study": job.study, **job.cell, "seed": job.seed} for job in found]
    said = []
    for key in dict.fromkeys(key for values in told for key in values):
        values = list(dict.fromkeys(str(values[key]) for values in told if key in values))
        if len(values) > 1:
            some = ", ".join(values[:4]) + (", …" if len(values) > 4 else "")
            said.append(f"{key}= ({some})")
    return f", or add {' and '.join(said)}" if said else ""


def jobs_meant(
    connection: sa.Connection,
    names: Sequence[str],
    study: str | None,
    where: str | None,
    statuses: Sequence[str],
) -> list[Meant]:
    """The jobs in one of these states that are named, or that study and condition select, by id.

    Raises:
        ConfigError: nothing is selected by, or the study is not there.
        UnknownJob: a name that does not name one job, or one that is in another state.
    """
    if names and (study or where):
        raise ConfigError("name jobs, or select them with --study and --where; not both")
    if names:
        return _named(connection, names, statuses)
    conditions: list[sa.ColumnElement[bool]] = [jobs.c.status.in_(statuses)]
    if study is not None:
        conditions.append(jobs.c.study_id == named(connection, study).id)
    if where is not None:
        conditions.append(condition(where, *known_names(connection)))
    if len(conditions) == 1:
        raise ConfigError("which jobs? Name one, or select them with --study NAME or --where CONDITION")
    return _select(connection, sa.and_(*conditions))


def known_names(connection: sa.Connection) -> tuple[list[str], list[dict[str, str]]]:
    """The factors of the studies here whose levels are names, not values of a key; each program's keys."""
    grids = connection.scalars(sa.select(studies.c.grid))
    factors = sorted({factor for text in grids for factor in json.loads(text).get("levels", {})})
    programs = connection.scalars(sa.select(studies.c.program).distinct())
    return factors, [json.loads(text).get("keys", {}) for text in programs]


def _named(connection: sa.Connection, names: Sequence[str], statuses: Sequence[str]) -> list[Meant]:
    meant = _select(connection, jobs.c.id.in_([find_job(connection, name) for name in names]))
    for job in meant:
        if job.status not in statuses:
            raise UnknownJob(f"job {job.id}: {job.status}; this is for {' and '.join(statuses)} jobs")
    return meant


def _select(
    connection: sa.Connection, matching: sa.ColumnElement[bool], most: int | None = None
) -> list[Meant]:
    columns = [jobs.c[name] for name in ("id", "cell", "seed", "status", "held", "priority")]
    rows = connection.execute(
        sa.select(studies.c.name.label("study"), *columns)
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(matching)
        .order_by(jobs.c.id)
        .limit(most)
    )
    return [
        Meant(row.id, row.study, json.loads(row.cell), row.seed, row.status, bool(row.held), row.priority)
        for row in rows
    ]
