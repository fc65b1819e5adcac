"""A grid at another size: how --scale, with the [scales] of the grid file, --set and --seeds change it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.fields import ConfigError
from runner.design.grid import MAX_JOBS, Grid
from runner.design.hypotheses import Hypothesis
from runner.design.levels import Factors, Named, Swap, keys_set
from runner.design.looks import Looks, parse_looks
from runner.design.program import Program

SHIPPED = Path(__file__).parent / "grids"


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
    program = grid.program
    if scale not in program.scales:
        raise ConfigError(f"--scale {scale}: choose one of {', '.join(program.scales)}")
    swap = grid.scales.get(scale, Swap())
    factors = _swapped_factors(grid.factors, swap.factors, f"scales.{scale}.factors")
    levels = _swapped_levels(grid.levels, swap.levels, f"scales.{scale}.levels")
    varied = set(keys_set(factors, levels, program))
    # What the base sets to 0 is switched off: that is the design, not a size.
    sizes = {
        key: value
        for name, value in program.scales[scale].items()
        if (key := program.full_key(name)) not in varied and program.value(grid.base, key) != 0
    }
    swapped = {program.full_key(key): value for key, value in swap.base.items()}
    assigned = _assigned(assignments, varied, program)
    chosen = swapped | assigned
    base = program.with_values(grid.base, sizes | chosen)
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
            key: (by, grid.program.value(grid.base, key))
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
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ConfigError(f"seed = {seed!r}: must be a whole number")
        if not 0 <= seed < 2**31:
            raise ConfigError(f"seed = {seed!r}: must lie between 0 and {2**31 - 1}")
        if seed in seen:
            raise ConfigError(f"seeds: {seed} is listed twice; remove one")
        seen.add(seed)
    return tuple(values)


def _assigned(assignments: Sequence[str], varied: set[str], program: Program) -> dict[str, Any]:
    """Dotted key → value of each `--set`."""
    values = {}
    for assignment in assignments:
        key, found, text = assignment.partition("=")
        if not found:
            known = [f"{each}={program.value(program.default, each)}" for each in program.keys]
            raise ConfigError(f"--set {assignment}: write key=value, as in {known[0]}")
        dotted = program.full_key(key)
        if dotted in varied:
            raise ConfigError(f"--set {key}: a factor of this grid; edit a copy of the file instead")
        if dotted in program.options:
            raise ConfigError(f"--set {assignment}: use {program.options[dotted]}")
        try:
            values[dotted] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[dotted] = text
    return values


def _notice(grid: Grid, scale: str, sizes: Sequence[str], base: Any) -> str:
    """Names the values of a user's [base] that the scale has replaced; empty if there are none."""
    changed = [
        f"{key} {before} → {after}"
        for key in grid.stated
        if key in sizes
        and (before := grid.program.value(grid.base, key)) != (after := grid.program.value(base, key))
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
