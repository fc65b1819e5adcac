"""Grid files: TOML that a person writes → a checked Grid. README.md explains the keys.

The files in runner/design/grids/ ship with the project. What each key may hold is declared here, in levels.py
and in hypotheses.py, and held by pydantic; what lies between keys is checked when the Grid is made.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from model.fields import ConfigError
from runner.design.checking import CLOSED, checked, told
from runner.design.grid import Grid
from runner.design.hypotheses import Hypothesis, Margin, check_metric, completed
from runner.design.levels import Factors, Level, Named, Swap, Values
from runner.design.looks import Looks
from runner.design.program import DEFAULT, load
from runner.design.scales import SHIPPED, checked_seeds

MAX_FILE_BYTES = 1_000_000
MAX_REPEATS = 1_000


def checked_name(value: Any) -> str:
    """A name that is safe in a file name, a table and a terminal.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, str) or not re.fullmatch(r"(?!-|\.{1,2}$)[\w.-]{1,80}", value):
        raise ConfigError(
            f"name = {value!r}: use up to 80 letters, digits, '-', '_' and '.', not '-' at the start"
        )
    return value


@dataclass(frozen=True)
class _File:
    """Every key of a grid file."""

    __pydantic_config__ = CLOSED
    name: Annotated[Any, AfterValidator(checked_name)]
    program: str = ""
    question: str = ""
    protocol: Any = None
    primary: str = ""
    base: Values = field(default_factory=dict)
    factors: Factors = field(default_factory=dict)
    levels: Named = field(default_factory=dict)
    seeds: Annotated[Any, AfterValidator(checked_seeds)] = ()
    repeats: Annotated[
        int,
        Field(strict=True, ge=1, le=MAX_REPEATS),
        told(f"must be a whole number between 1 and {MAX_REPEATS:,}"),
    ] = 1
    baseline: dict[str, Level] = field(default_factory=dict)
    margins: dict[str, Margin] = field(default_factory=dict)
    claims: Annotated[list[Hypothesis], told("must be a list of tables, [[claims]]", within=1)] = field(
        default_factory=list
    )
    scales: dict[str, Swap] = field(default_factory=dict)
    looks: Looks | None = None


def load_grid(name_or_path: str) -> Grid:
    """Read a shipped grid by its name, or any grid file by its path.

    Raises:
        ConfigError: no such grid, not TOML, or a key, value or combination that is refused.
    """
    path = SHIPPED / f"{name_or_path}.toml"
    if not re.fullmatch(r"[\w-]+", name_or_path) or not path.exists():
        path = Path(name_or_path)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
        raise ConfigError(f"--grid {name_or_path}: no such grid or file; shipped grids: {shipped}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; a grid lists levels, not runs")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    try:
        return parse_grid(content, path.stem, name_or_path, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_grid(
    content: Mapping[str, Any], default_name: str = "grid", source: str = "", folder: Path = Path()
) -> Grid:
    """Build a grid from the file's content; the path of its program begins at `folder`.

    Raises:
        ConfigError: names the key, the value and the remedy.
    """
    file = checked(
        _File, {"name": default_name, **content}, {"claims": Hypothesis, "scales": Swap, "looks": Looks}
    )
    program = load(folder / file.program if file.program else DEFAULT)
    primary = file.primary or program.measures[0].name
    check_metric(f"primary = {primary!r}", primary, program)
    for metric in file.margins:
        check_metric(f"margins: {metric!r}", metric, program)
    for scale in file.scales.keys() - program.scales.keys():
        raise ConfigError(f"scales.{scale}: no such scale; choose one of {', '.join(program.scales)}")
    looks, seeds = file.looks, file.seeds
    protocol = {} if file.protocol is None else {"protocol": file.protocol}
    base = program.with_values(program.default, {**file.base, **protocol})
    return Grid(
        program=program,
        name=file.name,
        question=file.question,
        base=base,
        factors=file.factors,
        seeds=looks.order(seeds or (base.seed,)) if looks else seeds or (base.seed,),
        repeats=file.repeats,
        primary=primary,
        baseline=tuple(file.baseline.items()),
        margins=tuple(file.margins.items()),
        claims=completed(file.claims, file.factors, file.baseline, file.margins, primary, program),
        looks=looks,
        levels=file.levels,
        scales=file.scales,
        stated=tuple(map(program.full_key, file.base)),
        source=source,
    )
