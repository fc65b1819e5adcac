"""More seeds of a study that is there, by what is stored of it: no grid file, no --set again.

Each new run is a copy of a run that the study holds, with another seed: text, protocol and every value stay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from model.fields import ConfigError
from runner.design.program import Program, load_copy, reseeding
from runner.queue import jobs as transitions
from runner.queue.dialects import one_at_a_time
from runner.queue.looks import again
from runner.queue.schema import jobs, studies
from runner.queue.selection import known_names
from runner.queue.studies import named
from runner.queue.where import condition


def program_of(connection: sa.Connection, study: str, runs: Path) -> Program:
    """The study's program as it was queued; `runs` is the database's run folder.

    Raises:
        ConfigError: no study of that name, or its program cannot be imported.
        CopyDamaged: the copy below the run folder is not what was queued.
    """
    return load_copy(json.loads(named(connection, study).program), runs)


def first_config(connection: sa.Connection, study: str, program: Program) -> Any:
    """The configuration of one of the study's runs.

    Raises:
        ConfigError: no study of that name, or one that was imported or has looks.
    """
    return program.from_json(_conditions(connection, study, None)[0].config)


def more_seeds(
    connection: sa.Connection,
    study: str,
    seeds: Sequence[int],
    runs: Path,
    where: str | None = None,
    max_failures: int = 3,
    priority: int = 0,
) -> tuple[int, int]:
    """Queue these seeds of each condition, or of those `where` selects; returns (added, meant).

    `runs` is the database's run folder.

    Raises:
        ConfigError: no study of that name, one that was imported, or a condition that selects none of it.
    """
    one_at_a_time(connection, transitions.SUBMISSION)
    row = named(connection, study)
    reseed = reseeding(runs)
    of_program = json.loads(row.program)
    rows = [
        again(found, seed, of_program, reseed)
        for seed in seeds
        for found in _conditions(connection, study, where)
    ]
    grid = json.loads(row.grid)
    grid["seeds"] = list(dict.fromkeys([*grid["seeds"], *seeds]))
    connection.execute(sa.update(studies).where(studies.c.id == row.id).values(grid=json.dumps(grid)))
    return transitions.submit(connection, row.id, rows, max_failures, priority), len(rows)


def _conditions(connection: sa.Connection, study: str, where: str | None) -> list[Any]:
    """A run of each condition, and of each repeat of it, in the order in which they were queued."""
    row = named(connection, study)
    if row.imported_from:
        raise ConfigError(f"study {study!r}: imported results; there is no program here that made them")
    if row.looks:
        raise ConfigError(
            f"study {study!r}: its looks say which seeds it gets; start another with --study NAME"
        )
    chosen = sa.select(jobs.c.config, jobs.c.cell, jobs.c.total_steps).where(jobs.c.study_id == row.id)
    if where is not None:
        chosen = chosen.where(condition(where, *known_names(connection)))
    found: dict[tuple[str, int], Any] = {}
    for run in connection.execute(chosen.order_by(jobs.c.id)):
        found.setdefault((run.cell, json.loads(run.config).get("repeat", 0)), run)
    if not found:
        said = f"no run of it matches --where {where!r}" if where else "it has no runs"
        raise ConfigError(f"study {study!r}: {said}")
    return list(found.values())
