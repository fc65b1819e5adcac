"""The grids that ship, as a reader chooses among them: what each asks, how many runs, what it costs here.

A cost is measured: the seconds a step of the finished runs of the same size, on this machine, in the database
that is given. Sizes that were never run have none. Reads only. Who prints it: runner/view/designs.py.
"""

from __future__ import annotations

import json
import math
import platform
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from model.config import RunConfig
from runner.design.grid import Grid
from runner.design.grid_file import load_grid
from runner.design.scales import SCALES, SHIPPED, adjust
from runner.queue.schema import attempts, jobs, results
from runner.queue.store import StoreUnreachable, open_store

LATEST = 2_000
"""The newest finished runs, from which costs are measured."""
_SIZE = (
    *("model.d_model", "model.n_layers", "model.n_heads", "model.d_ff", "model.n_experts", "model.top_k"),
    *("train.batch_size", "train.seq_len"),
)
"""Keys that make two runs the same size; the vocabulary follows the corpus and is left out."""
Size = tuple[Any, ...]
Paces = Mapping[str, Mapping[Size, float]]
"""Device → size → seconds a step, with compiling, evaluating and waiting included."""


@dataclass(frozen=True)
class Cost:
    """How long one worker on `device` takes for all of a grid."""

    seconds: float
    device: str


def shipped() -> list[str]:
    """The names of the grids that ship, by name."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def paces(connection: sa.Connection, host: str | None = None) -> Paces:
    """Seconds a step by device and size, over the newest finished runs of a machine, this one by default."""
    clocks = ("training_seconds", "evaluation_seconds", "compile_seconds", "waiting_seconds")
    seconds = sum((sa.func.coalesce(results.c[name], 0.0) for name in clocks), sa.literal(0.0))
    rows = connection.execute(
        sa.select(attempts.c.device, jobs.c.config, jobs.c.total_steps, seconds.label("seconds"))
        .select_from(results)
        .join(jobs, jobs.c.id == results.c.job_id)
        .join(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.number == results.c.attempt))
        .where(attempts.c.host == (host or platform.node()))
        .order_by(results.c.job_id.desc())
        .limit(LATEST)
    )
    steps: dict[str, dict[Size, int]] = defaultdict(lambda: defaultdict(int))
    spent: dict[str, dict[Size, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        size = _size_of(json.loads(row.config))
        steps[row.device][size] += row.total_steps
        spent[row.device][size] += row.seconds
    return {
        device: {size: spent[device][size] / count for size, count in sizes.items() if count}
        for device, sizes in steps.items()
    }


def measured(db: str) -> Paces:
    """The paces in a database; a database that is not there has measured nothing."""
    try:
        store = open_store(db)
    except StoreUnreachable:
        return {}
    with closing(store), store.read() as connection:
        return paces(connection)


def cost(grid: Grid, measured: Paces) -> Cost | None:
    """The cost on the fastest device that has run every size of the grid; None if none has."""
    found = [
        Cost(seconds, device)
        for device, by_size in measured.items()
        if not math.isnan(seconds := _seconds(grid, by_size))
    ]
    return min(found, key=lambda each: each.seconds, default=None)


def describe(name: str, scale: str, measured: Paces) -> dict[str, Any]:
    """A grid in a line: question, runs, steps, tokens, cost."""
    grid = adjust(load_grid(name), scale)
    configs, each = [config for _, config in grid.cells], len(grid.seeds) * grid.repeats
    known = cost(grid, measured)
    return {
        "name": name,
        "scale": scale,
        "question": grid.question,
        "runs": grid.size,
        "steps": each * sum(config.train.steps for config in configs),
        "training_tokens": each * sum(config.tokens_seen for config in configs),
        "cost_seconds": known.seconds if known else None,
        "cost_device": known.device if known else None,
    }


def design(name: str, scale: str, measured: Paces) -> dict[str, Any]:
    """Everything that a grid declares at a scale, its cells there, and its size and cost at each scale."""
    grid = adjust(load_grid(name), scale)
    told = grid.describe()
    return {
        "name": grid.name,
        "scale": scale,
        "comment": comment(name),
        **{key: told[key] for key in ("question", "factors", "seeds", "repeats", "primary", "baseline")},
        "levels": grid.levels,
        "margins": told["margins"],
        "claims": told["claims"],
        "cells": [_cell(cell, config) for cell, config in grid.cells],
        "scales": [describe(name, scale, measured) for scale in SCALES],
    }


def comment(name: str) -> str:
    """The lines at the head of a shipped grid's file, as one paragraph; empty for a file of one's own."""
    path = SHIPPED / f"{name}.toml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    head: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.lstrip("# "))
    return " ".join(head)


def _cell(cell: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    return {
        "cell": dict(cell),
        "steps": config.train.steps,
        "parameters_total": config.total_parameters,
        "parameters_active": config.active_parameters,
    }


def _seconds(grid: Grid, by_size: Mapping[Size, float]) -> float:
    runs = len(grid.seeds) * grid.repeats
    each = (
        by_size.get(_size_of(config.to_dict()), math.nan) * config.train.steps for _, config in grid.cells
    )
    return runs * sum(each)


def _size_of(config: Mapping[str, Any]) -> Size:
    parts = (key.split(".") for key in _SIZE)
    return tuple(config.get(part, {}).get(name) for part, name in parts)
