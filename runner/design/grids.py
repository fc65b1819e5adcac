"""From a grid file to validated runs: base values × factors × seeds, checked before anything is queued.

A grid is TOML that a person can write; runner/design/grids/*.toml ship with the project and README.md
explains the keys. What a level may be: runner/design/levels.py. Imports no torch and touches no database;
runner/design/enqueue.py queues what comes out of here.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.config import ConfigError, DataConfig, RunConfig, full_key
from runner.design.hypotheses import Hypothesis, parse_claims, parse_margins
from runner.design.levels import (
    Factors,
    Named,
    flatten,
    follow,
    keys_set,
    moved,
    parse_factors,
    parse_named,
    parse_scales,
    settings,
    swap_factors,
    swap_named,
)
from runner.design.seeds import MAX_JOBS, checked_repeats, checked_seeds, parse_seeds

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
"""What each scale sets, unless the grid's factors, its [scales], or --set say otherwise."""

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
_KEYS = {"name", "question", "protocol", "repeats", "levels", "scales", *_DESIGN}


@dataclass(frozen=True)
class Grid:
    """A design: everything that its runs share, what varies, and what is asked of it."""

    name: str
    question: str
    base: RunConfig
    factors: Factors
    """By the name that the file uses, in its order."""
    seeds: tuple[int, ...]
    repeats: int = 1
    """Runs of each cell and seed: above 1 they measure what differs though nothing was changed."""
    primary: str = "val_loss"
    baseline: tuple[tuple[str, Any], ...] = ()
    margins: tuple[tuple[str, float], ...] = ()
    claims: tuple[Hypothesis, ...] = ()
    levels: Named = field(default_factory=dict)
    """What the levels of the factors that are no key set."""
    scales: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the file swaps at a scale, as it stands there."""
    scale: str = "full"
    stated: tuple[str, ...] = ()
    """Dotted keys that the file's [base] sets."""
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

    def cells(self) -> list[tuple[dict[str, Any], RunConfig]]:
        """(cell, config) of every condition, with the base's seed.

        Raises:
            ConfigError: a combination is not valid.
        """
        cells = []
        for levels in itertools.product(*self.factors.values()):
            named = dict(zip(self.factors, levels, strict=True))
            config = self.base.with_values(settings(named, self.levels))
            # A number is kept as the configuration has it, so that 0 and 0.0 are one level.
            cell = {name: named[name] if name in self.levels else config.value(name) for name in named}
            cells.append((cell, config))
        return cells

    def runs(self) -> Iterator[tuple[dict[str, Any], RunConfig]]:
        """(cell, config) of every run, whole blocks first: seed by seed, so that a part can be compared.

        Raises:
            ConfigError: a combination is not valid.
        """
        cells = self.cells()
        for seed, repeat in itertools.product(self.seeds, range(self.repeats)):
            for cell, config in cells:
                yield dict(cell), replace(config, seed=seed, repeat=repeat)

    def with_data(self, data: DataConfig, vocab_size: int) -> Grid:
        """The grid on a resolved corpus; the model's vocabulary follows the tokenizer."""
        model = replace(self.base.model, vocab_size=vocab_size)
        return replace(self, base=replace(self.base, data=data, model=model))

    def describe(self) -> dict[str, Any]:
        """What the study's row keeps of the grid, for the report and against a clash."""
        cells = self.cells()
        levels = {name: list(dict.fromkeys(cell[name] for cell, _ in cells)) for name in self.factors}
        return {
            "name": self.name,
            "question": self.question,
            "factors": levels,
            **({"levels": self.levels} if self.levels else {}),
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
    content = _unsigned_zeros(content)
    for key in content.keys() - _KEYS:
        raise ConfigError(f"{key!r}: no such key in a grid; keys: {', '.join(sorted(_KEYS))}")
    stated = flatten(_table(content, "base"))
    base = RunConfig().with_values(stated)
    if "protocol" in content:
        base = base.with_values({"protocol": content["protocol"]})
    named = parse_named(_table(content, "levels"))
    factors, baseline = parse_factors(_table(content, "factors"), named), _table(content, "baseline")
    for name, level in baseline.items():
        if level not in factors.get(name, ()):
            raise ConfigError(f"baseline.{name} = {level!r}: not one of the factor's levels")
    margins, primary = parse_margins(_table(content, "margins")), str(content.get("primary", "val_loss"))
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
        levels=named,
        scales=parse_scales(_table(content, "scales"), SCALES),
        stated=tuple(map(full_key, stated)),
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
    grid = _swapped(grid, scale)
    varied = set(keys_set(grid.factors, grid.levels))
    changes = {key: value for key, value in SCALES[scale].items() if key not in varied}
    if grid.base.train.eval_every == 0:  # evaluation at the end only is the design, not a size
        changes.pop("train.eval_every", None)
    for key, value in flatten(grid.scales.get(scale, {}).get("base", {})).items():
        changes[full_key(key)] = value
    for assignment in assignments:
        key, found, text = assignment.partition("=")
        if not found:
            raise ConfigError(f"--set {assignment}: write key=value, as in train.steps=4000")
        if full_key(key) in varied:
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


def replaced(grid: Grid, adjusted: Grid, assignments: Sequence[str] = ()) -> str:
    """A line that names the values of a user's [base] in whose place the scale has put others, or nothing."""
    scale = adjusted.scale
    own = {full_key(key) for key in flatten(grid.scales.get(scale, {}).get("base", {}))}
    own |= {full_key(assignment.partition("=")[0]) for assignment in assignments}
    changed = [
        f"{key} {grid.base.value(key)} → {adjusted.base.value(key)}"
        for key in grid.stated
        if key in SCALES[scale] and key not in own and grid.base.value(key) != adjusted.base.value(key)
    ]
    if not changed or (SHIPPED / f"{grid.source}.toml").exists():  # those that ship are made for it
        return ""
    return (
        f"--scale {scale} replaces what the grid's [base] sets: {', '.join(changed)}; [scales.{scale}.base] "
        "in the file, or --set, keeps a value"
    )


def _checked(grid: Grid) -> Grid:
    """Hold the whole design to the configuration's rules: every run is built once, none is kept."""
    if grid.size > MAX_JOBS:
        raise ConfigError(f"{grid.name}: {grid.size:,} runs, more than {MAX_JOBS:,}; take fewer levels")
    varied = keys_set(grid.factors, grid.levels)
    if len(set(varied)) < len(varied):
        raise ConfigError(f"factors: {', '.join(grid.factors)} name one key twice; keep one")
    there: dict[str, dict[str, Any]] = {}
    for cell, config in grid.cells():
        # Two named levels may set equal values, and a key need not be in the hash (train.engine); their
        # runs would then share a hash and become one job.
        if there.setdefault(config.hash, cell) is not cell:
            raise ConfigError(f"factors: {cell} is the same run as {there[config.hash]}; keep one")
    return grid


def _swapped(grid: Grid, scale: str) -> Grid:
    """The grid at a scale of its file; in baseline and claims each level gives way to that at its place."""
    own, where = grid.scales.get(scale, {}), f"scales.{scale}"
    factors = swap_factors(grid.factors, own.get("factors", {}), f"{where}.factors")
    return replace(
        grid,
        factors=factors,
        levels=swap_named(grid.levels, own.get("levels", {}), f"{where}.levels"),
        baseline=tuple(moved(dict(grid.baseline), grid.factors, factors).items()),
        claims=tuple(follow(claim, grid.factors, factors) for claim in grid.claims),
    )


def _unsigned_zeros(value: Any) -> Any:
    """The content with 0.0 for -0.0, which is the same number, and prints and hashes as another."""
    if isinstance(value, Mapping):
        return {key: _unsigned_zeros(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unsigned_zeros(inner) for inner in value]
    return value + 0.0 if isinstance(value, float) else value


def _table(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{key} = {value!r}: must be a table, [{key}]")
    return value


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


def _literal(text: str) -> Any:
    """A value as TOML would read it, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
