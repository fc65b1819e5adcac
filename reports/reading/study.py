"""A study as it was declared: question, factors, seeds, primary metric and margin, from its grid.

Pure data; reports/reading/frames.py reads it from the database.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from reports.reading.measures import Measure, measure, results
from runner.queue.where import written

Cell = tuple[Any, ...]
"""The factors' values of a condition, in the grid's order."""


@dataclass(frozen=True)
class Target:
    """What the comparisons are about: a metric, and the margin within which differences count as none."""

    measure: Measure
    margin: float | None
    """In the metric's unit; None where none was declared."""
    origin: str
    """Who set the margin: `declared with the study`, by default, or the command line."""

    @property
    def metric(self) -> str:
        return self.measure.column


@dataclass(frozen=True)
class Study:
    """A row of `studies`, its JSON parsed; what it does not say is empty."""

    id: int
    name: str
    grid: Mapping[str, Any]
    imported_from: str | None
    held: bool
    created_at: float
    test_revealed_at: float | None
    program: Mapping[str, Any]
    """path, hash, and the measures in order, the first of them primary."""
    facts: Mapping[str, str]
    """Label → text, as the program says."""
    looks: Mapping[str, Any] = field(default_factory=dict)
    """When it is looked at, as runner/design/looks.py writes it; empty where its seeds are a fixed number."""

    @property
    def has_text(self) -> bool:
        """Whether the runs were of a text: then the facts say of which, and by which protocol."""
        return "corpus" in self.facts

    @property
    def further_facts(self) -> tuple[tuple[str, str], ...]:
        """What else the program says of the study, label and text."""
        own = ("protocol", "corpus", "corpus_id")
        return tuple((label, str(text)) for label, text in self.facts.items() if label not in own)

    @property
    def protocol(self) -> str:
        return self.facts.get("protocol", "")

    @property
    def corpus(self) -> str:
        return self.facts.get("corpus", "")

    @property
    def corpus_id(self) -> str:
        return self.facts.get("corpus_id", "")

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """Name → measure, in the program's order."""
        found = map(measure, self.program.get("measures", []))
        return {each.column: each for each in found}

    def measure(self, name: str) -> Measure:
        """A measure by its name; one that the program does not declare has nothing but that."""
        return self.measures.get(name) or measure({"name": name})

    @cached_property
    def results(self) -> tuple[Measure, ...]:
        """The measures of the tables of results, the outcome among them."""
        return results(self.measures)

    @property
    def outcome(self) -> str:
        """The program's first measure, which every result has: a run without it has diverged."""
        return next(iter(self.measures), "")

    @property
    def factors(self) -> dict[str, list[Any]]:
        """Factor → its levels, in the grid's order."""
        return dict(self.grid.get("factors") or {})

    @property
    def levels(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Factor → level → key → value, for the factors whose levels are names."""
        return dict(self.grid.get("levels") or {})

    @property
    def varied(self) -> set[str]:
        """What differs between conditions on purpose: factors, and the keys that named levels set."""
        told = (values for levels in self.levels.values() for values in levels.values())
        return {*self.factors, *(key for values in told for key in values)}

    @property
    def primary(self) -> str:
        return str(self.grid.get("primary") or self.outcome)

    @property
    def claims(self) -> list[dict[str, Any]]:
        """What was expected, as the grid declared it before the first run."""
        return list(self.grid.get("claims") or [])

    def target(self, metric: str | None = None, margin: float | None = None) -> Target:
        """The primary metric with its declared margin, or what the command line put in their place."""
        known = self.measure(metric or self.primary)
        if margin is not None:
            return Target(known, margin, "given on the command line, not declared")
        declared = (self.grid.get("margins") or {}).get(known.column)
        if declared is not None:
            return Target(known, float(declared), "declared with the study")
        return Target(known, known.margin, known.margin_origin)

    @property
    def seeds(self) -> list[int]:
        return list(self.grid.get("seeds") or [])

    def cell(self, values: Mapping[str, Any]) -> Cell:
        """The values of a job's `cell` as a key that can be compared and looked up."""
        return tuple(_hashable(values.get(factor)) for factor in self.factors)

    def values(self, cell: Cell) -> dict[str, Any]:
        """Factor → value of a condition."""
        return dict(zip(self.factors, cell, strict=True))

    def cells(self) -> list[Cell]:
        """Every condition of the grid, the first factor outermost."""
        return [cell for cell, _ in self.conditions]

    @cached_property
    def conditions(self) -> list[tuple[Cell, dict[str, Any]]]:
        """Every condition of the grid with its factors' values."""
        levels = [[_hashable(level) for level in levels] for levels in self.factors.values()]
        return [(cell, self.values(cell)) for cell in itertools.product(*levels)]

    def label(self, cell: Cell) -> str:
        """`noise_std=0.0, load_balancing_weight=0.01`."""
        return written(self.values(cell)) or "all runs"


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
