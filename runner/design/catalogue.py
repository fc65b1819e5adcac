"""The grids that ship, as a reader chooses among them: what each asks, how many runs, what it costs here.

A cost is measured by the finished runs of the same size, on this machine, in the database that is given.
Sizes that were never run have none. Reads only. Who prints it: runner/view/designs.py, runner/view/plan.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from model.fields import as_dict
from runner.design.grid import Grid
from runner.design.grid_file import load_grid
from runner.design.scales import SHIPPED, adjust
from runner.queue.speed import Pace, Paces, Size, paces, size_of
from runner.queue.store import StoreUnreachable, open_store


@dataclass(frozen=True)
class Cost:
    """How long one worker on `device` takes for all of a grid."""

    seconds: float
    device: str


def shipped() -> list[str]:
    """The names of the grids that ship, by name."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


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
    """A grid in a line: question, runs, steps, tokens (None where Config has no such number), cost."""
    grid = adjust(load_grid(name), scale)
    configs, each = [config for _, config in grid.cells], len(grid.seeds) * grid.repeats
    known = cost(grid, measured)
    tokens: list[Any] = [getattr(config, "tokens_seen", None) for config in configs]
    return {
        "name": name,
        "scale": scale,
        "question": grid.question,
        "runs": grid.size,
        "steps": each * sum(map(grid.program.steps, configs)),
        "training_tokens": None if None in tokens else each * sum(tokens),
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
        "cells": [_cell(grid, cell, config) for cell, config in grid.cells],
        "scales": [describe(name, scale, measured) for scale in grid.program.scales],
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


def _cell(grid: Grid, cell: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """A condition; how many parameters it has, and with which vocabulary, where the configuration says so."""
    return {
        "cell": dict(cell),
        "steps": grid.program.steps(config),
        "parameters_total": getattr(config, "total_parameters", None),
        "parameters_active": getattr(config, "active_parameters", None),
        "vocabulary": getattr(config, "vocabulary", None),
    }


def _seconds(grid: Grid, by_size: Mapping[Size, Pace]) -> float:
    runs = len(grid.seeds) * grid.repeats
    unknown, program = Pace(math.nan), grid.program.record()
    each = (
        by_size.get(size_of(program, told := as_dict(config)), unknown).run_seconds(
            program, told, grid.program.steps(config)
        )
        for _, config in grid.cells
    )
    return runs * sum(each)
