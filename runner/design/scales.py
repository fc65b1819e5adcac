"""A grid at another size: how --scale, with the [scales] of the grid file, --set and --seeds change it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.config import ConfigError, RunConfig, full_key
from runner.design.grid import MAX_JOBS, Grid
from runner.design.hypotheses import Hypothesis
from runner.design.levels import Factors, Named, Swap, keys_set
from runner.design.looks import Looks, parse_looks

SHIPPED = Path(__file__).parent / "grids"
SCALES: dict[str, dict[str, Any]] = {
    "full": {},
    "small": {
        "model.d_model": 192,
        "model.n_layers": 4,
        "model.n_heads": 6,
        "model.d_ff": 512,
        "train.batch_size": 8,
        "train.seq_len": 256,
        "train.steps": 200,
        "train.eval_every": 100,
        "data.held_out_tokens": 32_768,
    },
    "smoke": {
        "model.d_model": 128,
        "model.n_layers": 2,
        "model.n_heads": 4,
        "model.d_ff": 256,
        "train.batch_size": 8,
        "train.seq_len": 128,
        "train.steps": 120,
        "train.eval_every": 40,
        "data.held_out_tokens": 16_384,
    },
}
"""Values that each scale sets; the grid's factors, its [scales] and --set override them."""
_OPTIONS = {
    "seed": "--seeds",
    "repeat": "the key repeats in the grid file",
    "data.corpus": "--corpus",
    "data.corpus_id": "--corpus",
    "data.tokenizer": "--tokenizer",
    "data.tokenizer_id": "--tokenizer",
    "model.vocab_size": "--tokenizer, whose vocabulary it follows",
}
"""Keys that have an option of their own, because more depends on them."""


def adjust(
    grid: Grid,
    scale: str = "full",
    assignments: Sequence[str] = (),
    seeds: str | None = None,
    looks: str | None = None,
) -> Grid:
    """The grid at another scale, with `--set key=value`, `--seeds 42..51` and `--looks 3,6,10` applied.

    Raises:
        ConfigError: an unknown scale, key or value; a `--set` on a factor.
    """
    if scale not in SCALES:
        raise ConfigError(f"--scale {scale}: choose one of {', '.join(SCALES)}")
    swap = grid.scales.get(scale, Swap())
    factors = _swapped_factors(grid.factors, swap.factors, f"scales.{scale}.factors")
    levels = _swapped_levels(grid.levels, swap.levels, f"scales.{scale}.levels")
    varied = set(keys_set(factors, levels))
    sizes = {key: value for key, value in SCALES[scale].items() if key not in varied}
    if grid.base.train.eval_every == 0:  # evaluation at the end only is the design, not a size
        sizes.pop("train.eval_every", None)
    swapped = {full_key(key): value for key, value in swap.base.items()}
    assigned = _assigned(assignments, varied)
    chosen = swapped | assigned
    base = grid.base.with_values(sizes | chosen)
    return replace(
        grid,
        base=base,
        scale=scale,
        factors=factors,
        levels=levels,
        # In baseline and claims each level gives way to the one at its place in the list.
        baseline=tuple(_moved(dict(grid.baseline), grid.factors, factors).items()),
        claims=tuple(_followed(claim, grid.factors, factors) for claim in grid.claims),
        **_seeded(grid, seeds, looks),
        replaced={
            key: (by, grid.base.value(key))
            for by, values in (
                (f"--scale {scale}", sizes),
                (f"[scales.{scale}.base]", swapped),
                ("--set", assigned),
            )
            for key in values
        },
        notice=_notice(grid, scale, [key for key in sizes if key not in chosen], base),
    )


def _seeded(grid: Grid, seeds: str | None, looks: str | None) -> dict[str, Any]:
    """The grid's seeds and looks: a list of seeds that is shorter than the last look goes on by itself."""
    chosen = parse_seeds(seeds) if seeds else grid.seeds
    design = grid.looks
    if looks:
        numbers = parse_looks(looks)
        design = replace(design, seeds=numbers) if design else Looks(seeds=numbers)
    return {"seeds": design.order(chosen) if design else chosen, "looks": design}


def parse_seeds(text: str) -> tuple[int, ...]:
    """`42..51`, `42,43,50` or a mixture.

    Raises:
        ConfigError: not such a list, a seed twice, or too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("..")
        if not re.fullmatch(r"\d{1,10}", first) or not re.fullmatch(r"\d{0,10}", last):
            raise ConfigError(f"--seeds {text}: write 42..51 or 42,43,44")
        span = range(int(first), int(last or first) + 1)
        if not span or len(span) > MAX_JOBS:
            raise ConfigError(f"--seeds {text}: {part} holds {len(span):,} seeds; write first..last")
        seeds += span
    return checked_seeds(seeds)


def checked_seeds(values: Any) -> tuple[int, ...]:
    """At least one seed, each once.

    Raises:
        ConfigError: it is not such a list.
    """
    if not isinstance(values, list) or not values:
        raise ConfigError(
            f"seeds = {values!r}: must list at least one seed, as in [42, 43]; a span is for --seeds 42..44"
        )
    seen: set[int] = set()
    for seed in values:
        RunConfig(seed=seed)
        if seed in seen:
            raise ConfigError(f"seeds: {seed} is listed twice; remove one")
        seen.add(seed)
    return tuple(values)


def _assigned(assignments: Sequence[str], varied: set[str]) -> dict[str, Any]:
    """Dotted key → value of each `--set`."""
    values = {}
    for assignment in assignments:
        key, found, text = assignment.partition("=")
        if not found:
            raise ConfigError(f"--set {assignment}: write key=value, as in train.steps=4000")
        dotted = full_key(key)
        if dotted in varied:
            raise ConfigError(f"--set {key}: a factor of this grid; edit a copy of the file instead")
        if dotted in _OPTIONS:
            raise ConfigError(f"--set {assignment}: use {_OPTIONS[dotted]}")
        try:
            values[dotted] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[dotted] = text
    return values


def _notice(grid: Grid, scale: str, sizes: Sequence[str], base: RunConfig) -> str:
    """Names the values of a user's [base] that the scale has replaced; empty if there are none."""
    changed = [
        f"{key} {grid.base.value(key)} → {base.value(key)}"
        for key in grid.stated
        if key in sizes and grid.base.value(key) != base.value(key)
    ]
    if not changed or (SHIPPED / f"{grid.source}.toml").exists():  # the shipped grids are made for it
        return ""
    return (
        f"--scale {scale} replaces what the grid's [base] sets: {', '.join(changed)}; [scales.{scale}.base] "
        "in the file, or --set, keeps a value"
    )


def _swapped_factors(factors: Factors, swapped: Factors, where: str) -> Factors:
    for name, levels in swapped.items():
        if len(factors.get(name, ())) != len(levels):
            raise ConfigError(
                f"{where}.{name} = {list(levels)!r}: the grid has {len(factors.get(name, ()))} levels of it; "
                "give as many, in the same order"
            )
    return factors | swapped


def _swapped_levels(named: Named, swapped: Named, where: str) -> Named:
    for factor, levels in swapped.items():
        for level in levels.keys() - named.get(factor, {}).keys():
            raise ConfigError(f"{where}.{factor}.{level}: the grid has no such level")
    return {
        factor: {level: values | swapped.get(factor, {}).get(level, {}) for level, values in levels.items()}
        for factor, levels in named.items()
    }


def _followed(claim: Hypothesis, before: Factors, after: Factors) -> Hypothesis:
    return replace(
        claim,
        compare=_moved(claim.compare, before, after),
        against=_moved(claim.against, before, after),
        interaction={
            factor: (
                after[factor][before[factor].index(first)],
                after[factor][before[factor].index(second)],
            )
            for factor, (first, second) in claim.interaction.items()
        },
    )


def _moved(levels: Mapping[str, Any], before: Factors, after: Factors) -> dict[str, Any]:
    """Factor → level, each level of `before` replaced by that of `after` at the same place in the list."""
    return {factor: after[factor][before[factor].index(level)] for factor, level in levels.items()}
