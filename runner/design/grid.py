"""A grid: base values × factors × seeds, checked as a whole when it is made, and the runs that it comes to.

Read from a file: runner/design/grid_file.py; at another size: runner/design/scales.py; queued:
runner/design/enqueue.py. What a level may be: runner/design/levels.py. Imports no torch, touches no database.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from model.fields import ConfigError
from runner.design.hypotheses import Hypothesis
from runner.design.levels import Factors, Named, Swap, check_keys, check_level
from runner.design.looks import Looks
from runner.design.program import Program

MAX_JOBS = 200_000
"""Runs of one grid, and seeds of one --seeds; more is refused as a slip, before it fills the disk."""


@dataclass(frozen=True)
class Grid:
    """A design: everything that its runs share, what varies, and what is asked of it.

    Raises:
        ConfigError: a factor, level or combination is not valid, or two cells are the same run.
    """

    program: Program
    name: str
    question: str
    base: Any
    """A Config of the program, with what all runs share."""
    factors: Factors
    """By the name that the file uses, in its order."""
    seeds: tuple[int, ...]
    repeats: int = 1
    """Runs of each cell and seed: above 1 they measure what differs though nothing was changed."""
    primary: str = ""
    baseline: tuple[tuple[str, Any], ...] = ()
    margins: tuple[tuple[str, float], ...] = ()
    claims: tuple[Hypothesis, ...] = ()
    looks: Looks | None = None
    """Where it stops when it knows: `seeds` are then all that it may come to."""
    levels: Named = field(default_factory=dict)
    """The keys that each level of a named factor sets."""
    scales: Mapping[str, Swap] = field(default_factory=dict)
    scale: str = "full"
    stated: tuple[str, ...] = ()
    """Dotted keys that the file's [base] sets."""
    replaced: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    """Dotted key → who set it (`--scale smoke`, `[scales.smoke.base]` or `--set`), and the file's value."""
    source: str = ""
    """The value of --grid: a shipped grid's name or a file."""
    notice: str = ""
    """A line for the user: values of the file's [base] that the scale has replaced."""

    def __post_init__(self) -> None:
        check_keys(self.factors, self.levels, self.program)
        if self.looks and not self.claims:
            raise ConfigError("looks: a look decides [[claims]], and the grid declares none; add one")
        if self.looks and len(self.seeds) != self.looks.seeds[-1]:
            most = self.looks.seeds[-1]
            raise ConfigError(f"looks: {len(self.seeds)} seeds, and the last look is at {most}; give {most}")
        for factor, level in self.baseline:
            check_level(f"baseline.{factor}", factor, level, self.factors)
        if self.repeats > 1 and "repeat" not in self.program.keys:
            raise ConfigError(f"repeats = {self.repeats}: needs a field repeat: int in the program's Config")
        if self.size > MAX_JOBS:
            raise ConfigError(f"{self.name}: {self.size:,} runs, more than {MAX_JOBS:,}; take fewer levels")
        there: dict[str, dict[str, Any]] = {}
        for cell, config in self.cells:
            # Two named levels may set equal values, and a key need not be in the hash (train.engine); their
            # runs would then share a hash and become one job.
            if (first := there.setdefault(self.program.digest(config), cell)) is not cell:
                raise ConfigError(f"factors: {cell} is the same run as {first}; keep one")

    @property
    def size(self) -> int:
        """Runs, of all cells, seeds and repeats."""
        cells = math.prod(len(levels) for levels in self.factors.values())
        return cells * len(self.seeds) * self.repeats

    @property
    def study_name(self) -> str:
        """The default: the grid's name, with the scale if it is not full."""
        return self.name if self.scale == "full" else f"{self.name}-{self.scale}"

    @property
    def begun(self) -> Grid:
        """What is queued at once: all of it, or the seeds of the first look."""
        if self.looks is None:
            return self
        return replace(self, seeds=self.seeds[: self.looks.seeds[0]], looks=None)

    @cached_property
    def cells(self) -> tuple[tuple[dict[str, Any], Any], ...]:
        """(cell, config) of every condition, with the base's seed."""
        found = []
        for levels in itertools.product(*self.factors.values()):
            named = dict(zip(self.factors, levels, strict=True))
            values: dict[str, Any] = {}
            for factor, level in named.items():
                values |= self.levels[factor][str(level)] if factor in self.levels else {factor: level}
            config = self.program.with_values(self.base, values)
            # A number is kept as the configuration has it, so that 0 and 0.0 are one level.
            cell = {
                name: level if name in self.levels else self.program.value(config, name)
                for name, level in named.items()
            }
            found.append((cell, config))
        return tuple(found)

    def runs(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """(cell, config) of every run, whole blocks first: seed by seed, so that a part can be compared."""
        for seed, repeat in itertools.product(self.seeds, range(self.repeats)):
            for cell, config in self.cells:
                yield dict(cell), self.program.with_seed(config, seed, repeat)

    def describe(self) -> dict[str, Any]:
        """The grid as the study's row keeps it, for the report and to refuse another design."""
        levels = {name: list(dict.fromkeys(cell[name] for cell, _ in self.cells)) for name in self.factors}
        return {
            "name": self.name,
            "question": self.question,
            "factors": levels,
            **({"levels": self.levels} if self.levels else {}),
            "base": self.program.identity(self.base),
            "seeds": list(self.seeds),
            "repeats": self.repeats,
            "primary": self.primary,
            "baseline": dict(self.baseline),
            "margins": dict(self.margins),
            "claims": [asdict(claim) for claim in self.claims],
            "scale": self.scale,
            "source": self.source,
        }
