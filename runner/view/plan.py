"""What `enqueue --dry-run` prints: the jobs, where each value comes from, and what it all costs.

A value that nobody set trains as well: `noise_std` left out is 0.1. So every key is told, by who set it.
"""

from __future__ import annotations

from collections.abc import Iterator

from model.config import all_keys, full_key
from runner.design.catalogue import Cost
from runner.design.grid import Grid
from runner.design.levels import keys_set
from runner.view.console import ROWS, console, show, table
from runner.view.text import duration, label, plain, varying

_TOLD_ELSEWHERE = ("seed", "repeat", "protocol", "model.vocab_size", "data.corpus", "data.tokenizer")
"""Keys, or their beginnings, that other lines have."""


def plan_screen(name: str, grid: Grid, cost: Cost | None, unique_tokens: int) -> None:
    """The jobs that an enqueue would add; `unique_tokens` is the training text."""
    out = console()
    made = table(f"{name}: {grid.size} jobs", "seed", "cell", "hash", folds="cell")
    for number, (cell, config) in enumerate(grid.runs()):
        if number == ROWS:
            break
        made.add_row(str(config.seed), label(cell), config.hash[:12])
    show(out, made, grid.size)
    told = table("Values that all of them share", "set by", "value", folds="value")
    for by, values in origins(grid).items():
        told.add_row(by, plain(", ".join(values)))
    out.print()
    out.print(told)
    out.print()
    for line in _size(grid, cost, unique_tokens):
        out.print(line)


def origins(grid: Grid) -> dict[str, list[str]]:
    """Who set what: the grid file, --scale, --set, nobody: `train.steps 120 (not 400)` if replaced."""
    varied = set(map(full_key, keys_set(grid.factors, grid.levels)))
    found: dict[str, list[str]] = {}
    for key in all_keys():
        if key in varied or key.startswith(_TOLD_ELSEWHERE):
            continue
        value = grid.base.value(key)
        by, before = grid.replaced.get(key, ("the grid" if key in grid.stated else "default", value))
        found.setdefault(by, []).append(f"{key} {value}" + (f" (not {before})" if before != value else ""))
    return dict(sorted(found.items(), key=lambda entry: entry[0] == "default"))


def _size(grid: Grid, cost: Cost | None, unique_tokens: int) -> Iterator[str]:
    configs = [config for _, config in grid.cells]
    trains = [config.train for config in configs]
    yield (
        f"{varying(c.total_parameters for c in configs)} parameters, "
        f"{varying(c.active_parameters for c in configs)} active a token; {varying(t.steps for t in trains)} "
        f"steps of {varying(t.tokens_per_step for t in trains)} tokens; "
        f"corpus {plain(grid.base.data.corpus)}, vocabulary {grid.base.model.vocab_size:,}; "
        f"protocol {grid.base.protocol}"
    )
    tokens = [config.tokens_seen for config in configs]
    epochs = [f"{seen / unique_tokens:.3g}" for seen in sorted({min(tokens), max(tokens)})]
    total = len(grid.seeds) * grid.repeats * sum(tokens)
    yield (
        f"{varying(tokens)} training tokens a run, {' to '.join(epochs)} epochs of {unique_tokens:,}; "
        f"{total:,} in all"
    )
    if cost is None:
        remedy = "`python cli.py work --jobs 1`, then look again"
        yield f"cost not known: no run of that size has finished on this machine; {remedy}"
    else:
        yield f"about {duration(cost.seconds)} on one {plain(cost.device)}, by what finished here"
