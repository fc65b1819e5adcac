"""What `enqueue --dry-run` prints: the jobs, where each value comes from, and what it all costs.

A value that nobody set trains as well: `noise_std` left out is 0.1. So every key is told, by who set it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.design.catalogue import Cost
from runner.design.grid import Grid
from runner.design.levels import keys_set
from runner.view.console import ROWS, console, show, table
from runner.view.text import duration, label, plain


def queued_line(study: str, queued: int, there: int, linked: Mapping[str, int]) -> str:
    """What an enqueue did.

    Args:
        queued: runs that are to be trained and were not queued before.
        there: runs that were there before.
        linked: another study → runs that it gave, to new runs as to old ones.
    """
    told = [f"{study}: {queued} queued"]
    told += [f"{count} taken over from study {other}" for other, count in linked.items()]
    return ", ".join([*told, *([f"{there} already there"] if there else [])])


def plan_screen(name: str, grid: Grid, cost: Cost | None, summary: Sequence[str]) -> None:
    """The jobs that an enqueue would add; `summary` is what their program says of them."""
    out = console()
    made = table(f"{name}: {grid.size} jobs", "seed", "cell", "hash", folds="cell")
    for number, (cell, config) in enumerate(grid.runs()):
        if number == ROWS:
            break
        made.add_row(str(config.seed), label(cell), grid.program.digest(config)[:12])
    show(out, made, grid.size)
    told = table("Values that all of them share", "set by", "value", folds="value")
    for by, values in origins(grid).items():
        told.add_row(by, plain(", ".join(values)))
    out.print()
    out.print(told)
    out.print()
    for line in summary:
        out.print(plain(line))
    if cost is None:
        remedy = "`python cli.py work --jobs 1`, then look again"
        out.print(f"cost not known: no run of that size has finished on this machine; {remedy}")
    else:
        out.print(f"about {duration(cost.seconds)} on one {plain(cost.device)}, by what finished here")


def origins(grid: Grid) -> dict[str, list[str]]:
    """Who set what: the grid file, --scale, --set, nobody: `train.steps 120 (not 400)` if replaced."""
    # What has an option of its own is told in other lines.
    others = {*keys_set(grid.factors, grid.levels, grid.program), *grid.program.options, "protocol"}
    found: dict[str, list[str]] = {}
    for key in grid.program.keys:
        if key in others:
            continue
        value = grid.program.value(grid.base, key)
        by, before = grid.replaced.get(key, ("the grid" if key in grid.stated else "default", value))
        found.setdefault(by, []).append(f"{key} {value}" + (f" (not {before})" if before != value else ""))
    return dict(sorted(found.items(), key=lambda entry: entry[0] == "default"))
