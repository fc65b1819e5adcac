"""From grid to queue: making a study, adding to it, and refusing what would mix two designs in a report.

A study holds one corpus, one protocol and one set of fixed values; only its factors and seeds vary.
"""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from model.fields import ConfigError, as_dict, canonical_json, flatten
from runner.design.grid import Grid
from runner.design.levels import keys_set
from runner.design.program import Program
from runner.queue import jobs
from runner.queue.dialects import new_ids, now, one_at_a_time
from runner.queue.schema import OPEN, studies
from runner.queue.schema import jobs as jobs_table
from runner.queue.where import counted, written


def enqueue(
    connection: sa.Connection,
    name: str,
    grid: Grid,
    max_failures: int = 3,
    priority: int = 0,
    text: Mapping[str, Any] | None = None,
) -> int:
    """Queue the grid's runs that the study does not hold yet; returns how many were added.

    Args:
        text: facts about the corpus for the report, from `build` in model/text/tokens.py.

    Raises:
        ConfigError: the study holds another design; nothing is written.
    """
    one_at_a_time(connection, jobs.SUBMISSION)  # two of the same name at once make one study
    begun = grid.begun
    wanted = begun.describe() | ({"text": dict(text)} if text else {})
    study = connection.execute(sa.select(studies).where(studies.c.name == name)).first()
    if study is None:
        study_id = _create(connection, name, grid, wanted)
    else:
        study_id = study.id
        held = json.loads(study.grid)
        if study.imported_from:
            raise ConfigError(f"study {name!r}: imported results; name another with --study")
        before, record = json.loads(study.program), grid.program.record()
        if any(before.get(key) != record[key] for key in ("path", "measures")):
            raise ConfigError(
                f"study {name!r}: its runs are of {before.get('path')}, which measures something else; "
                "start another study with --study NAME"
            )
        _refuse_clash(name, held, wanted, grid.program)
        _refuse_other_looks(study, grid, held, wanted)
        merged = json.dumps(held if study.looks else _extended(held, wanted))
        changed = {"grid": merged, "program": json.dumps(record)}
        connection.execute(sa.update(studies).where(studies.c.id == study_id).values(**changed))
    return jobs.submit(connection, study_id, _rows(begun), max_failures, priority)


def prepared(
    grid: Grid, given: tuple[str, str | None, bool, bool], cache: Path, say: Callable[[str], None]
) -> tuple[Grid, Mapping[str, Any] | None, list[str]]:
    """The grid with what is settled at enqueue, once its data is prepared.

    Returns with it what a study keeps of that data, and lines on what the runs come to.

    Args:
        given: the options --corpus, --tokenizer and --lossy-tokenizer, and whether it is a trial; for a
            program that has `settle` (docs/programs.md).

    Raises:
        ConfigError: an option that the program does not have, or what the program refuses.
    """
    module = grid.program.module
    settle, prepare = getattr(module, "settle", None), getattr(module, "prepare", None)
    if settle is not None:
        grid = replace(grid, base=settle(grid.base, given, cache, say))
    elif given[:3] != ("auto", None, False):
        raise ConfigError(f"--corpus, --tokenizer: {grid.program.path.name} takes none; leave them out")
    found = prepare(next(grid.runs())[1], cache) if prepare else None
    configs = [config for _, config in grid.cells]
    told, summary = getattr(module, "told", None), getattr(module, "summary", None)
    facts = told(found, configs, given, say) if told else None
    return grid, facts, summary(found, configs, len(grid.seeds) * grid.repeats) if summary else []


def not_done(
    connection: sa.Connection,
    name: str,
    grid: Grid,
    max_failures: int | None = None,
    priority: int | None = None,
) -> list[str]:
    """A line for each thing that queueing the grid will not change, with the command that does. Reads only.

    `max_failures` and `priority` are the values of the options, None if not given.
    """
    wanted = json.loads(json.dumps(grid.begun.describe()))
    study = connection.execute(sa.select(studies).where(studies.c.name == name)).first()
    if study is None:
        return _close(name, wanted["factors"])
    held = json.loads(study.grid)
    here = f"study {name!r}"
    lines = _close(name, _extended(held, wanted)["factors"])
    before, after = (told.get("hash", "")[:12] for told in (json.loads(study.program), grid.program.record()))
    if before != after:
        lines.append(
            f"{here}: its program has changed ({before} → {after}); later runs use the new code, and the "
            "report says that the study mixes both; for the new code alone, --study NAME"
        )
    for key in ("question", "primary", "baseline", "margins", "claims"):
        if held.get(key) != wanted[key]:
            before, after = (_short(told.get(key)) for told in (held, wanted))
            said = f" ({before}, not {after})" if before and after else ""
            lines.append(f"{here} keeps its {key}{said}; another needs a study of its own, --study NAME")
    for factor, levels in held["factors"].items():
        for level in levels:
            if level not in wanted["factors"].get(factor, levels):
                remedy = f"python cli.py delete --study {name} --where {shlex.quote(f'{factor}={level}')}"
                lines.append(f"{here}: {factor}={level} is no longer in the grid; `{remedy}` removes it")
    own = jobs_table.c.study_id == study.id
    count = sa.select(sa.func.count()).where(own)
    for status in jobs.RETRIABLE:
        if found := connection.scalar(count.where(jobs_table.c.status == status)):
            remedy = f'python cli.py retry --study {name} --where "status={status}"'
            lines.append(f"{here}: still {status}: {counted(found, 'job')}; `{remedy}` queues again")
    waiting = count.where(jobs_table.c.status.in_(OPEN))
    # An option that was not given is None, and differs from nothing.
    if found := connection.scalar(waiting.where(jobs_table.c.priority != sa.bindparam("p", priority))):
        remedy = f"python cli.py prioritize --study {name} --priority {priority}"
        lines.append(f"{here}: of another priority: {counted(found, 'job')}; `{remedy}` changes it")
    if found := connection.scalar(
        waiting.where(jobs_table.c.max_failures != sa.bindparam("m", max_failures))
    ):
        now_queued = f"{max_failures} is for those queued now"
        lines.append(f"{here}: of another --max-failures: {counted(found, 'job')}; {now_queued}")
    return lines


def _create(connection: sa.Connection, name: str, grid: Grid, wanted: dict[str, Any]) -> int:
    made = connection.execute(
        studies.insert()
        .values(
            **new_ids(connection, studies, 1)[0],
            name=name,
            grid=json.dumps(wanted),
            program=json.dumps(grid.program.record()),
            facts=json.dumps(grid.program.facts(grid.base)),
            created_at=now(),
            looks=_plan(grid),
        )
        .returning(studies.c.id)
    )
    return int(made.scalar_one())


def _plan(grid: Grid) -> str | None:
    """The looks as the study's row keeps them; None for a study whose seeds are a fixed number."""
    return json.dumps(grid.looks.plan(grid.seeds)) if grid.looks else None


def _rows(grid: Grid) -> list[dict[str, Any]]:
    """For each run, the columns of its job's row that the grid decides."""
    return [
        {
            "config_hash": grid.program.digest(config),
            "config": canonical_json(as_dict(config)),
            "cell": json.dumps(cell),
            "seed": config.seed,
            "total_steps": grid.program.steps(config),
        }
        for cell, config in grid.runs()
    ]


def _extended(held: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """New seeds and levels join the design; its question, margins and baseline stay as first declared."""
    return {
        **held,
        "seeds": list(dict.fromkeys(held["seeds"] + wanted["seeds"])),
        "repeats": max(held.get("repeats", 1), wanted["repeats"]),
        "factors": {
            name: list(dict.fromkeys(levels + wanted["factors"].get(name, [])))
            for name, levels in held["factors"].items()
        },
        **({"levels": _merged(held, wanted)} if "levels" in held else {}),
    }


def _close(name: str, factors: dict[str, list[Any]]) -> list[str]:
    """Warnings of levels that differ by rounding alone, as 0.3 and 0.1 + 0.2 do."""
    lines = []
    for factor, levels in factors.items():
        numbers = sorted(level for level in levels if not isinstance(level, str))
        for one, two in itertools.pairwise(numbers):
            if math.isclose(one, two, rel_tol=1e-9):
                remedy = f'`python cli.py delete --study {name} --where "{factor}={two}"`'
                lines.append(f"warning: {factor} = {one} and {two} are two levels; if you want one: {remedy}")
    return lines


def _short(value: Any) -> str:
    """A declaration in up to 40 characters; empty if it is longer, or a list of claims."""
    text = written(value, ",") or "none" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 40 and not isinstance(value, list) else ""


def _merged(held: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    new = wanted.get("levels", {})
    return {factor: {**levels, **new.get(factor, {})} for factor, levels in held["levels"].items()}


def _refuse_other_looks(study: sa.Row[Any], grid: Grid, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    """When a study is looked at, and what it holds then, cannot change after its first run."""
    another = "start another study with --study NAME"
    if study.looks != _plan(grid):
        fixed = ",".join(map(str, json.loads(study.looks or "{}").get("seeds", ())))
        has = f"looks at {fixed} seeds, in an order that was" if fixed else "no looks, which was"
        raise ConfigError(f"study {study.name!r}: has {has} fixed when it was made; {another}")
    if study.looks and _extended(held, wanted) != _extended(held, held):
        raise ConfigError(f"study {study.name!r}: it has looks, and its design is fixed; {another}")


def _refuse_clash(name: str, held: dict[str, Any], wanted: dict[str, Any], program: Program) -> None:
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
    free = {"seed", *keys_set(held["factors"], named, program)}
    differing = [
        f"{key} = {before}, not {after}"
        for key in sorted((had.keys() | has.keys()) - free)
        if (before := had.get(key, "unset")) != (after := has.get(key, "unset"))
    ]
    if differing:
        more = f"more seeds of what it holds: enqueue --study {name} --seeds"
        raise ConfigError(f"study {name!r}: holds runs with {'; '.join(differing)}; {another} ({more})")
