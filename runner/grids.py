"""From a grid file to validated runs: base values × factors × seeds, checked before anything is queued.

A grid is TOML that a person can write; runner/grids/*.toml ship with the project and README.md explains
the keys. Imports no torch and touches no database; runner/studies.py queues what comes out of here.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.config import ConfigError, DataConfig, RunConfig, full_key
from runner.claims import Claim, parse_claims
from runner.seeds import MAX_JOBS, checked_repeats, checked_seeds, parse_seeds

SHIPPED = Path(__file__).parent / "grids"
MAX_FILE_BYTES = 1_000_000

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
"""What each scale sets, unless the grid's factors or --set say otherwise."""

_OPTIONS = {
    "seed": "--seeds",
    "repeat": "the key repeats in the grid file",
    "data.corpus": "--corpus",
    "data.corpus_id": "--corpus",
    "data.tokenizer": "--tokenizer",
    "data.tokenizer_id": "--tokenizer",
    "model.vocab_size": "--tokenizer, whose vocabulary it follows",
}
"""Keys that have an option of their own, because more hangs on them."""

_DESIGN = {"primary", "baseline", "margins", "claims", "base", "factors", "seeds"}
_KEYS = {"name", "question", "protocol", "repeats", *_DESIGN}


@dataclass(frozen=True)
class Grid:
    """A design: everything that its runs share, what varies, and what is asked of it."""

    name: str
    question: str
    base: RunConfig
    factors: dict[str, tuple[Any, ...]]
    """By the name that the file uses, in its order."""
    seeds: tuple[int, ...]
    repeats: int = 1
    """Runs of each cell and seed: above 1 they measure what differs though nothing was changed."""
    primary: str = "val_loss"
    baseline: tuple[tuple[str, Any], ...] = ()
    margins: tuple[tuple[str, float], ...] = ()
    claims: tuple[Claim, ...] = ()
    scale: str = "full"
    source: str = ""
    """What --grid named: a shipped grid or a file."""

    @property
    def size(self) -> int:
        cells = math.prod(len(levels) for levels in self.factors.values())
        return cells * len(self.seeds) * self.repeats

    @property
    def study_name(self) -> str:
        """The default: the grid's name, with the scale where it is not full."""
        return self.name if self.scale == "full" else f"{self.name}-{self.scale}"

    def runs(self) -> Iterator[tuple[dict[str, Any], RunConfig]]:
        """(cell, config) of every run, whole blocks first: seed by seed, so that a part can be compared.

        Raises:
            ConfigError: a combination is not valid.
        """
        cells = []
        for levels in itertools.product(*self.factors.values()):
            config = self.base.with_values(dict(zip(self.factors, levels, strict=True)))
            cells.append(({name: config.value(name) for name in self.factors}, config))
        for seed, repeat in itertools.product(self.seeds, range(self.repeats)):
            for cell, config in cells:
                yield dict(cell), replace(config, seed=seed, repeat=repeat)

    def with_data(self, data: DataConfig, vocab_size: int) -> Grid:
        """The grid on a resolved corpus; the model's vocabulary follows the tokenizer."""
        model = replace(self.base.model, vocab_size=vocab_size)
        return replace(self, base=replace(self.base, data=data, model=model))

    def describe(self) -> dict[str, Any]:
        """What the study's row keeps of the grid, for the report and against a clash."""
        cells = [cell for cell, _ in replace(self, seeds=self.seeds[:1], repeats=1).runs()]
        levels = {name: list(dict.fromkeys(cell[name] for cell in cells)) for name in self.factors}
        return {
            "name": self.name,
            "question": self.question,
            "factors": levels,
            "base": self.base.identity(),
            "seeds": list(self.seeds),
            "repeats": self.repeats,
            "primary": self.primary,
            "baseline": dict(self.baseline),
            "margins": dict(self.margins),
            "claims": [claim.describe() for claim in self.claims],
            "scale": self.scale,
            "source": self.source,
        }


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
        return replace(parse_grid(content, default_name=path.stem), source=name_or_path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_grid(content: Mapping[str, Any], default_name: str = "grid") -> Grid:
    """Build a grid from the file's content.

    Raises:
        ConfigError: names the key, the value and the remedy.
    """
    for key in content.keys() - _KEYS:
        raise ConfigError(f"{key!r}: no such key in a grid; keys: {', '.join(sorted(_KEYS))}")
    base = RunConfig().with_values(flatten(_table(content, "base")))
    if "protocol" in content:
        base = base.with_values({"protocol": content["protocol"]})
    factors, baseline = _factors(_table(content, "factors")), _table(content, "baseline")
    for name, level in baseline.items():
        if level not in factors.get(name, ()):
            raise ConfigError(f"baseline.{name} = {level!r}: not one of the factor's levels")
    margins, primary = _margins(_table(content, "margins")), str(content.get("primary", "val_loss"))
    grid = Grid(
        name=checked_name(content.get("name", default_name)),
        question=str(content.get("question", "")),
        base=base,
        factors=factors,
        seeds=checked_seeds(content.get("seeds", [base.seed])),
        repeats=checked_repeats(content.get("repeats", 1)),
        primary=primary,
        baseline=tuple(baseline.items()),
        margins=tuple(margins.items()),
        claims=parse_claims(content.get("claims", []), factors, baseline, margins, primary),
    )
    return _checked(grid)


def adjust(
    grid: Grid, scale: str = "full", assignments: Sequence[str] = (), seeds: str | None = None
) -> Grid:
    """The grid at another scale, with `--set key=value` and `--seeds 42..51` applied.

    Raises:
        ConfigError: an unknown scale, key or value; a `--set` on a factor.
    """
    if scale not in SCALES:
        raise ConfigError(f"--scale {scale}: choose one of {', '.join(SCALES)}")
    changes = {key: value for key, value in SCALES[scale].items() if key not in _full_names(grid.factors)}
    if grid.base.train.eval_every == 0:  # evaluation at the end only is the design, not a size
        changes.pop("train.eval_every", None)
    for assignment in assignments:
        key, found, text = assignment.partition("=")
        if not found:
            raise ConfigError(f"--set {assignment}: write key=value, as in train.steps=4000")
        if full_key(key) in _full_names(grid.factors):
            raise ConfigError(f"--set {key}: a factor of this grid; edit a copy of the file instead")
        if full_key(key) in _OPTIONS:
            raise ConfigError(f"--set {assignment}: use {_OPTIONS[full_key(key)]}")
        changes[full_key(key)] = _literal(text)
    return _checked(
        replace(
            grid,
            base=grid.base.with_values(changes),
            scale=scale,
            seeds=parse_seeds(seeds) if seeds else grid.seeds,
        )
    )


def _checked(grid: Grid) -> Grid:
    """Hold the whole design to the configuration's rules: every run is built once, none is kept."""
    if grid.size > MAX_JOBS:
        raise ConfigError(f"{grid.name}: {grid.size:,} runs, more than {MAX_JOBS:,}; take fewer levels")
    clashing = _full_names(grid.factors)
    if len(clashing) < len(grid.factors):
        raise ConfigError(f"factors: {', '.join(grid.factors)} name one key twice; keep one")
    for _ in replace(grid, seeds=grid.seeds[:1], repeats=1).runs():
        pass
    return grid


def _full_names(factors: Mapping[str, Any]) -> set[str]:
    return {full_key(name) for name in factors}


def _table(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{key} = {value!r}: must be a table, [{key}]")
    return value


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _factors(table: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    factors: dict[str, tuple[Any, ...]] = {}
    for name, levels in flatten(table).items():
        if not isinstance(levels, list) or not levels:
            raise ConfigError(f"factors.{name} = {levels!r}: must list at least one level")
        if full_key(name) in ("seed", "repeat", "protocol") or full_key(name).startswith("data."):
            raise ConfigError(f"factors.{name}: cannot vary within a study; make a study for each")
        if not all(isinstance(level, (int, float, str)) for level in levels):
            raise ConfigError(f"factors.{name}: levels must be numbers or texts")
        if len(set(levels)) < len(levels):
            raise ConfigError(f"factors.{name} = {levels!r}: a level stands there twice; remove one")
        factors[name] = tuple(levels)
    return factors


def _margins(table: Mapping[str, Any]) -> dict[str, float]:
    for metric, value in table.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ConfigError(f"margins.{metric} = {value!r}: must be a number above 0, in the metric's unit")
    return {metric: float(value) for metric, value in table.items()}


def checked_name(value: Any) -> str:
    """A name that is safe in a file name, a table and a terminal.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, str) or not re.fullmatch(r"[\w.-]{1,80}", value):
        raise ConfigError(f"name = {value!r}: use up to 80 letters, digits, '-', '_' and '.'")
    return value


def _literal(text: str) -> Any:
    """A value as TOML would read it, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
