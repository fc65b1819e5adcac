"""Factors and their levels: the values of one key, or names that each set several keys; what a scale swaps.

    [factors]
    steps = [400, 4000]                    # a key of the configuration, and its values
    balancing = ["none", "switch"]         # a name of the grid's own, whose levels say what they set

    [levels.balancing]
    none = { load_balancing_weight = 0.0 }
    switch = { load_balancing_weight = 0.01 }

    [scales.smoke.factors]                 # at that scale; as many levels, in the same order
    steps = [40, 400]

A cell, a claim and a table keep the name of a level. The types say what the file may hold:
runner/design/checking.py. Imports no torch. Who checks all together: runner/design/grid.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, Strict
from pydantic_core import PydanticCustomError

from model.fields import ConfigError, flatten
from runner.design.checking import CLOSED, told
from runner.design.program import Program
from runner.queue.where import columns

_LEVEL = re.compile(r"[^\s()=!<>,'\"|\\]{1,40}")
"""A level's name: 1 to 40 characters that need no quotes in `--where factor=level` and in a job's name."""


def _different(levels: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(levels)) < len(levels):
        raise PydanticCustomError("remedy", "a level is listed twice; remove one")
    return levels


_flat = BeforeValidator(lambda table: flatten(table) if isinstance(table, dict) else table)
# -0.0 is the number 0.0, but prints and hashes as another.
_unsigned_zero = AfterValidator(lambda value: value + 0.0 if isinstance(value, float) else value)
_A_TABLE_EACH = "must hold a table for each level, as in none = { noise_std = 0.0 }"

Level = Annotated[
    Annotated[bool, Strict()] | Annotated[int, Strict()] | Annotated[float, Strict()] | str,
    _unsigned_zero,
    told("must be a number, a text, true or false", within=1),
]
_Levels = Annotated[
    tuple[Level, ...], Field(min_length=1), told("must list at least one level"), AfterValidator(_different)
]
Factors = Annotated[dict[str, _Levels], _flat]
"""Factor → its levels, in the file's order."""
Values = Annotated[dict[str, Annotated[Any, _unsigned_zero]], _flat]
"""Dotted or short key of the configuration → value; the configuration checks it."""
Named = dict[str, Annotated[dict[str, Values], told(_A_TABLE_EACH, within=1)]]
"""Factor → level → key → value, for the factors whose levels are names."""


@dataclass(frozen=True)
class Swap:
    """[scales.NAME]: what a grid file changes at that scale."""

    __pydantic_config__ = CLOSED
    factors: Factors = field(default_factory=dict)
    levels: Named = field(default_factory=dict)
    base: Values = field(default_factory=dict)


def keys_set(
    factors: Iterable[str], named: Mapping[str, Mapping[str, Mapping[str, Any]]], program: Program
) -> list[str]:
    """Every dotted key that a factor sets, once per factor, so that a duplicate reveals a conflict.

    Raises:
        ConfigError: the configuration has no such key.
    """
    found: list[str] = []
    for factor in factors:
        inner = named.get(factor)
        keys = [factor] if inner is None else [key for values in inner.values() for key in values]
        found += dict.fromkeys(program.full_key(key) for key in keys)
    return found


def check_keys(factors: Factors, named: Named, program: Program) -> None:
    """Hold that every factor sets keys that may vary within a study, and no key is another factor's too.

    Raises:
        ConfigError: names the factor or key and the remedy.
    """
    for factor, told_of in named.items():
        _check_names(factor, factors.get(factor, ()), told_of, program)
    varied = []
    for factor in factors:
        for key in keys_set([factor], named, program):
            if program.is_shared(key):
                raise ConfigError(
                    f"factors.{factor}: {key} cannot vary within a study; make a study for each"
                )
            varied.append(key)
    if len(set(varied)) < len(varied):
        raise ConfigError(f"factors: {', '.join(factors)} name one key twice; keep one")


def check_level(where: str, factor: str, level: Any, factors: Mapping[str, Sequence[Any]]) -> None:
    """Hold that the grid has the factor, and the factor the level.

    Raises:
        ConfigError: it has not.
    """
    if factor not in factors:
        raise ConfigError(f"{where}: not a factor of this grid; factors: {', '.join(factors) or 'none'}")
    # True == 1, but they are two levels.
    if not any(level == one and isinstance(level, bool) == isinstance(one, bool) for one in factors[factor]):
        levels = ", ".join(map(str, factors[factor]))
        raise ConfigError(f"{where} = {level!r}: not one of the factor's levels, {levels}")


def _check_names(factor: str, levels: Sequence[Any], told_of: Mapping[str, Any], program: Program) -> None:
    where = f"levels.{factor}"
    if not re.fullmatch(r"[A-Za-z_][\w-]{0,39}", factor):
        raise ConfigError(f"levels.{factor!r}: name it with up to 40 letters, digits, '-' and '_'")
    if factor in {*columns(), *program.keys, *(key.rsplit(".", 1)[-1] for key in program.keys)}:
        raise ConfigError(f"{where}: a key of the configuration or of jobs has this name; take another")
    if factor in {measure.name for measure in program.measures}:
        raise ConfigError(f"{where}: a measure of the program has this name; take another")
    if not levels:
        raise ConfigError(f"{where}: not a factor of this grid; list its levels under [factors]")
    for level in levels:
        if not isinstance(level, str) or not _LEVEL.fullmatch(level):
            raise ConfigError(f"factors.{factor}: {level!r}: name a level in up to 40 letters without spaces")
        if level not in told_of:
            raise ConfigError(f"factors.{factor}: {level!r} sets nothing; say what under [{where}]")
    for level in told_of.keys() - set(levels):
        raise ConfigError(f"{where}.{level}: not one of the factor's levels, {', '.join(levels)}")
