"""Studies: making one from a grid, adding to it, and refusing what would mix two designs in one report.

A study holds one corpus, one protocol and one set of fixed values; only its factors and seeds vary.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from model.config import ConfigError, full_key
from runner import jobs
from runner.grids import Grid, flatten
from runner.schema import studies
from runner.store import now


def enqueue(
    connection: sa.Connection, name: str, grid: Grid, max_failures: int = 3, priority: int = 0
) -> int:
    """Queue the grid's runs that the study does not hold yet; returns how many were added.

    Raises:
        ConfigError: the study holds another design; nothing is written.
    """
    wanted = grid.describe()
    study = connection.execute(sa.select(studies).where(studies.c.name == name)).first()
    if study is None:
        study_id = _create(connection, name, grid, wanted)
    else:
        study_id = study.id
        held = json.loads(study.grid)
        if study.imported_from:
            raise ConfigError(f"study {name!r}: imported results; name another with --study")
        _refuse_clash(name, held, wanted)
        _extend(connection, study_id, held, wanted)
    return jobs.submit(connection, study_id, grid.runs(), max_failures, priority)


def _create(connection: sa.Connection, name: str, grid: Grid, wanted: dict[str, Any]) -> int:
    made = connection.execute(
        studies.insert()
        .values(
            name=name,
            grid=json.dumps(wanted),
            protocol=grid.base.protocol,
            corpus=grid.base.data.corpus,
            corpus_id=grid.base.data.corpus_id,
            created_at=now(),
        )
        .returning(studies.c.id)
    )
    return int(made.scalar_one())


def _extend(connection: sa.Connection, study_id: int, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    """New seeds and levels join the design; its question, margins and baseline stay as first declared."""
    merged = {
        **held,
        "seeds": list(dict.fromkeys(held["seeds"] + wanted["seeds"])),
        "factors": {
            name: list(dict.fromkeys(levels + wanted["factors"][name]))
            for name, levels in held["factors"].items()
        },
    }
    connection.execute(sa.update(studies).where(studies.c.id == study_id).values(grid=json.dumps(merged)))


def _refuse_clash(name: str, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    another = "start another study with --study NAME"
    if list(held["factors"]) != list(wanted["factors"]):
        ours, theirs = ", ".join(held["factors"]), ", ".join(wanted["factors"])
        raise ConfigError(f"study {name!r}: its factors are {ours}, not {theirs}; {another}")
    had, has = flatten(held["base"]), flatten(wanted["base"])
    free = {"seed", *(full_key(factor) for factor in held["factors"])}
    for key in sorted((had.keys() | has.keys()) - free):
        before, after = had.get(key, "unset"), has.get(key, "unset")
        if before != after:
            raise ConfigError(f"study {name!r}: holds runs with {key} = {before}, not {after}; {another}")
