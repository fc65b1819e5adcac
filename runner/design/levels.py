"""Factors and their levels: the values of one key, or names that each set several keys; what a scale swaps.

    [factors]
    steps = [400, 4000]                    # a key of the configuration, and its values
    balancing = ["none", "switch"]         # a name of the grid's own, whose levels say what they set

    [levels.balancing]
    none = { load_balancing_weight = 0.0 }
    switch = { load_balancing_weight = 0.01 }

    [scales.smoke.factors]                 # at that scale; as many levels, in the same order
    steps = [40, 400]

A cell, a claim and a table keep the name of a level. Imports no torch. Who reads it: runner/design/grids.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from model.config import ConfigError, all_keys, full_key
from runner.design.hypotheses import Hypothesis
from runner.queue.where import columns

Factors = dict[str, tuple[Any, ...]]
"""Factor → its levels, in the file's order."""
Named = dict[str, dict[str, dict[str, Any]]]
"""Factor → level → key → value, for the factors whose levels are names."""
_LEVEL = re.compile(r"[^\s()=!<>,'\"|\\]{1,40}")
"""A level's name: 1 to 40 characters that need no quotes in `--where factor=level` and in a job's name."""
_WITHIN_A_SCALE = ("factors", "levels", "base")


def parse_factors(table: Mapping[str, Any], named: Named) -> Factors:
    """The factors of a grid file, each level a number or a text.

    Raises:
        ConfigError: names the factor and the remedy.
    """
    factors: Factors = {}
    for name, levels in flatten(table).items():
        if not isinstance(levels, list) or not levels:
            raise ConfigError(f"factors.{name} = {levels!r}: must list at least one level")
        if name not in named:
            _check_key(f"factors.{name}", name)
        if not all(isinstance(level, (int, float, str)) for level in levels):
            raise ConfigError(f"factors.{name}: levels must be numbers or texts")
        if len(set(levels)) < len(levels):
            raise ConfigError(f"factors.{name} = {levels!r}: a level stands there twice; remove one")
        factors[name] = tuple(levels)
    for name in named:
        _check_names(name, factors.get(name, ()), named[name])
    return factors


def parse_named(table: Mapping[str, Any]) -> Named:
    """The `[levels]` of a grid file: for each factor, what each of its levels sets.

    Raises:
        ConfigError: not such tables, a factor that is a key itself, or a key that cannot vary.
    """
    named: Named = {}
    for factor, levels in table.items():
        where = f"levels.{factor}"
        if not re.fullmatch(r"[A-Za-z_][\w-]{0,39}", factor):
            raise ConfigError(f"{where}: name it with up to 40 letters, digits, '-' and '_'")
        if factor in {*columns(), *all_keys(), *(key.rsplit(".", 1)[-1] for key in all_keys())}:
            raise ConfigError(f"{where}: a key of the configuration or of jobs has this name; take another")
        if not isinstance(levels, dict) or not all(isinstance(level, dict) for level in levels.values()):
            raise ConfigError(f"{where}: must hold a table a level, as in none = {{ noise_std = 0.0 }}")
        named[factor] = {level: _settings(f"{where}.{level}", table) for level, table in levels.items()}
    return named


def parse_scales(table: Mapping[str, Any], known: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The `[scales]` of a grid file, by scale: factors, levels and base values that it swaps.

    Raises:
        ConfigError: no such scale, or a table that a scale does not have.
    """
    for scale, swapped in table.items():
        if scale not in known:
            raise ConfigError(f"scales.{scale}: no such scale; choose one of {', '.join(known)}")
        if not isinstance(swapped, dict) or not all(isinstance(inner, dict) for inner in swapped.values()):
            raise ConfigError(f"scales.{scale}: must hold tables: {', '.join(_WITHIN_A_SCALE)}")
        for key in swapped.keys() - set(_WITHIN_A_SCALE):
            raise ConfigError(f"scales.{scale}.{key}: a scale swaps only {', '.join(_WITHIN_A_SCALE)}")
    return {scale: dict(swapped) for scale, swapped in table.items()}


def keys_set(factors: Iterable[str], named: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Every dotted key that a factor sets, once per factor, so that a duplicate reveals a conflict."""
    found: list[str] = []
    for factor in factors:
        inner = named.get(factor)
        keys = [factor] if inner is None else [key for values in inner.values() for key in values]
        found += dict.fromkeys(full_key(key) for key in keys)
    return found


def settings(cell: Mapping[str, Any], named: Named) -> dict[str, Any]:
    """What a cell sets: key → value."""
    found: dict[str, Any] = {}
    for factor, level in cell.items():
        found |= named[factor][level] if factor in named else {factor: level}
    return found


def swap_factors(factors: Factors, table: Mapping[str, Any], where: str) -> Factors:
    """The factors with other levels of some, as many as before.

    Raises:
        ConfigError: a factor that the grid lacks, or more or fewer levels.
    """
    swapped = parse_factors(table, {})
    for name, levels in swapped.items():
        if len(factors.get(name, ())) != len(levels):
            raise ConfigError(
                f"{where}.{name} = {list(levels)!r}: the grid has {len(factors.get(name, ()))} levels of it; "
                "give as many, in the same order"
            )
    return {name: swapped.get(name, levels) for name, levels in factors.items()}


def swap_named(named: Named, table: Mapping[str, Any], where: str) -> Named:
    """The named levels with some of their values replaced, key by key.

    Raises:
        ConfigError: a factor or level that the grid does not name.
    """
    swapped = parse_named(table)
    for factor, levels in swapped.items():
        for level in levels.keys() - named.get(factor, {}).keys():
            raise ConfigError(f"{where}.{factor}.{level}: the grid has no such level")
    return {
        factor: {level: values | swapped.get(factor, {}).get(level, {}) for level, values in levels.items()}
        for factor, levels in named.items()
    }


def follow(claim: Hypothesis, before: Factors, after: Factors) -> Hypothesis:
    """The hypothesis at another scale: each level gives way to the one that took its place in the list."""
    return replace(
        claim,
        compare=moved(claim.compare, before, after),
        against=moved(claim.against, before, after),
        interaction={
            factor: (moved({factor: one}, before, after)[factor], moved({factor: two}, before, after)[factor])
            for factor, (one, two) in claim.interaction.items()
        },
    )


def moved(levels: Mapping[str, Any], before: Factors, after: Factors) -> dict[str, Any]:
    """Factor → level, each level of `before` replaced by that of `after` at the same place in the list."""
    return {factor: after[factor][before[factor].index(level)] for factor, level in levels.items()}


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _settings(where: str, table: Mapping[str, Any]) -> dict[str, Any]:
    values = flatten(table)
    for key in values:
        _check_key(f"{where}.{key}", key)
    return values


def _check_key(where: str, key: str) -> None:
    if full_key(key) in ("seed", "repeat", "protocol") or full_key(key).startswith("data."):
        raise ConfigError(f"{where}: cannot vary within a study; make a study for each")


def _check_names(factor: str, levels: tuple[Any, ...], told: Mapping[str, Any]) -> None:
    if not levels:
        raise ConfigError(f"levels.{factor}: not a factor of this grid; list its levels under [factors]")
    for level in levels:
        if not isinstance(level, str) or not _LEVEL.fullmatch(level):
            raise ConfigError(f"factors.{factor}: {level!r}: name a level in up to 40 letters without spaces")
        if level not in told:
            raise ConfigError(f"factors.{factor}: {level!r} sets nothing; say what under [levels.{factor}]")
    for level in told.keys() - set(levels):
        raise ConfigError(f"levels.{factor}.{level}: not one of the factor's levels, {', '.join(levels)}")
