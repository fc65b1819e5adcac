"""From grid to queue: making a study, adding to it, and refusing what would mix two designs in a report.

A study holds one corpus, one protocol and one set of fixed values; only its factors and seeds vary.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import sqlalchemy as sa

from model.config import ConfigError
from runner.design.grids import Grid, adjust, load_grid
from runner.design.levels import flatten, keys_set
from runner.queue import jobs
from runner.queue.dialects import now, one_at_a_time
from runner.queue.schema import jobs as jobs_table
from runner.queue.schema import studies


def enqueue(
    connection: sa.Connection, name: str, grid: Grid, max_failures: int = 3, priority: int = 0
) -> int:
    """Queue the grid's runs that the study does not hold yet; returns how many were added.

    Raises:
        ConfigError: the study holds another design; nothing is written.
    """
    one_at_a_time(connection, jobs.SUBMISSION)  # two of the same name at once make one study
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


def enqueue_command(connection: sa.Connection, study: str, seeds: str) -> str | None:
    """The command that adds `seeds` to every condition of a study; None where its grid is not to be had.

    What was changed with --set is found by holding the study's base values against its grid's.

    Raises:
        ConfigError: no study of that name.
    """
    row = connection.execute(sa.select(studies).where(studies.c.name == study)).first()
    if row is None:
        raise ConfigError(f"study {study!r}: not in this database; `python cli.py status` lists the studies")
    held = json.loads(row.grid)
    source, scale = held.get("source") or held["name"], held.get("scale", "full")
    try:
        grid = adjust(load_grid(source), scale)
    except ConfigError:
        return None
    words = ["enqueue", "--grid", source, "--scale", scale, "--study", study, "--seeds", seeds]
    config = connection.scalar(sa.select(jobs_table.c.config).where(jobs_table.c.study_id == row.id).limit(1))
    data = json.loads(config or "{}").get("data", {})
    words += ["--corpus", row.corpus]
    if row.corpus not in ("bundled", "smollm") and data.get("tokenizer"):
        words += ["--tokenizer", data["tokenizer"]]
    had, has = flatten(held["base"]), flatten(grid.base.identity())
    own = {"seed", "model.vocab_size", *keys_set(held["factors"], held.get("levels", {}))}
    for key in sorted(had.keys() - own):
        if not key.startswith(("data.corpus", "data.tokenizer")) and had[key] != has.get(key):
            words += ["--set", f"{key}={had[key]}"]
    return f"python cli.py {shlex.join(words)}"


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
        "repeats": max(held.get("repeats", 1), wanted["repeats"]),
        "factors": {
            name: list(dict.fromkeys(levels + wanted["factors"][name]))
            for name, levels in held["factors"].items()
        },
        **({"levels": _merged(held, wanted)} if "levels" in held else {}),
    }
    connection.execute(sa.update(studies).where(studies.c.id == study_id).values(grid=json.dumps(merged)))


def _merged(held: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    return {factor: {**levels, **wanted["levels"][factor]} for factor, levels in held["levels"].items()}


def _refuse_clash(name: str, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    another = "start another study with --study NAME"
    if list(held["factors"]) != list(wanted["factors"]):
        ours, theirs = ", ".join(held["factors"]), ", ".join(wanted["factors"])
        raise ConfigError(f"study {name!r}: its factors are {ours}, not {theirs}; {another}")
    named, again = held.get("levels", {}), wanted.get("levels", {})
    if named.keys() != again.keys():
        raise ConfigError(f"study {name!r}: the names of its levels are not this grid's; {another}")
    for factor, levels in named.items():
        for level in levels.keys() & again[factor].keys():
            if levels[level] != again[factor][level]:
                raise ConfigError(f"study {name!r}: its {factor} = {level} sets something else; {another}")
    had, has = flatten(held["base"]), flatten(wanted["base"])
    free = {"seed", *keys_set(held["factors"], named)}
    for key in sorted((had.keys() | has.keys()) - free):
        before, after = had.get(key, "unset"), has.get(key, "unset")
        if before != after:
            raise ConfigError(f"study {name!r}: holds runs with {key} = {before}, not {after}; {another}")
