"""Which comparisons a factorial design asks for, in families: Holm's correction stays within one.

Each condition against the baseline; levels of a factor averaged over the others; simple effects, level
against level within a condition of the others; interactions, differences of differences. Only weights are
made here: reports/statistics/contrasts.py computes them, reports/statistics/judgement.py uses them too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.reading.frames import StudyData
from reports.reading.study import Cell, Study
from reports.statistics.blocks import Weights

MAX_TESTS = 60
"""A family with more tests is not printed: its correction would leave nothing to be found."""
ALL_PAIRS = 4
"""Up to so many levels every pair is compared; with more, each level with the baseline's."""
Levels = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One contrast: what it is called, and the weight of each condition in it."""

    label: str
    weights: Weights


@dataclass(frozen=True)
class Family:
    """Comparisons that are corrected together."""

    name: str
    comparisons: tuple[Comparison, ...]
    factors: tuple[str, ...] = ()
    """Those whose effect it is; empty for conditions against the baseline and simple effects."""
    skipped: int = 0
    """How many comparisons it would have, where they are too many to be made."""


def baseline_cell(data: StudyData) -> tuple[Cell, str]:
    """The condition that the grid names as baseline, else its first one with a remark that says so."""
    declared = dict(data.study.grid.get("baseline") or {})
    named = [cell for cell in data.cells if declared.items() <= data.study.values(cell).items()]
    if declared and len(named) == 1:
        return named[0], ""
    reason = "the one declared is not one condition" if declared else "none was declared"
    return data.cells[0], f" ({reason}: this is the first of the grid)"


def against_baseline(data: StudyData, baseline: Cell) -> Family:
    """Every other condition against the baseline."""
    return Family(
        "Each condition against the baseline",
        tuple(
            Comparison(data.study.label(cell), {cell: 1.0, baseline: -1.0})
            for cell in data.cells
            if cell != baseline
        ),
    )


def factor_families(study: Study, baseline: Cell) -> list[Family]:
    """The families that the grid's factors make; none for a study without factors."""
    varied = [factor for factor, levels in study.factors.items() if len(levels) > 1]
    standard = study.values(baseline)
    pairs = {factor: pairs_of(study.factors[factor], standard[factor]) for factor in varied}
    found = [_levels(study, factor, pairs[factor]) for factor in varied]
    if len(varied) < 2:
        # With one factor its levels are the conditions; a third level makes pairs beside the baseline's.
        return [family for family in found if len(family.comparisons) > 1]
    sizes = {factor: len(levels) for factor, levels in study.factors.items()}
    wanted = sum(len(pairs[factor]) * math.prod(sizes.values()) // sizes[factor] for factor in varied)
    simple = (c for factor in varied for c in _simple(study, factor, pairs[factor]))
    found.append(_family("Simple effects: a factor within each condition of the others", wanted, simple))
    for first, second in itertools.combinations(varied, 2):
        crossed = _interactions(study, first, second, pairs)
        name = f"Interaction of {first} and {second}: differences of differences"
        found.append(_family(name, len(pairs[first]) * len(pairs[second]), crossed, (first, second)))
    return found


def _family(
    name: str, wanted: int, comparisons: Iterator[Comparison], factors: tuple[str, ...] = ()
) -> Family:
    if wanted > MAX_TESTS:
        return Family(name, (), factors, skipped=wanted)
    return Family(name, tuple(comparisons), factors)


def difference(
    study: Study, compare: Levels, against: Levels, interaction: Mapping[str, Sequence[Any]] | None = None
) -> dict[Cell, float]:
    """The weights of (compare - against), averaged over the factors that neither names.

    With `interaction` {factor: (first, second)}: that difference at first minus that at second. Conditions
    are the grid's; empty where a side has none of them.
    """
    weights: dict[Cell, float] = {}
    sides = [(1.0, {**compare}), (-1.0, {**against})]
    for factor, (first, second) in (interaction or {}).items():
        sides = [
            (sign * way, {**levels, factor: level})
            for sign, levels in sides
            for way, level in ((1.0, first), (-1.0, second))
        ]
    for sign, levels in sides:
        chosen = [cell for cell, values in study.conditions if _has(values, levels)]
        if not chosen:
            return {}
        for cell in chosen:
            weights[cell] = weights.get(cell, 0.0) + sign / len(chosen)
    return {cell: weight for cell, weight in weights.items() if weight}


def _has(values: Levels, levels: Levels) -> bool:
    return all(factor in values and values[factor] == level for factor, level in levels.items())


def pairs_of(levels: Sequence[Any], standard: Any) -> list[tuple[Any, Any]]:
    """(level, earlier level) of a factor, in the grid's order."""
    if len(levels) <= ALL_PAIRS:
        return [(later, earlier) for earlier, later in itertools.combinations(levels, 2)]
    return [(level, standard) for level in levels if level != standard]


def _levels(study: Study, factor: str, pairs: list[tuple[Any, Any]]) -> Family:
    others = [name for name, levels in study.factors.items() if name != factor and len(levels) > 1]
    averaged = f", averaged over {', '.join(others)}" if others else ""
    comparisons = tuple(
        Comparison(f"{factor} {later} - {earlier}", difference(study, {factor: later}, {factor: earlier}))
        for later, earlier in pairs
    )
    return Family(f"Levels of {factor}{averaged}", comparisons, (factor,))


def _simple(study: Study, factor: str, pairs: list[tuple[Any, Any]]) -> Iterator[Comparison]:
    others = {name: levels for name, levels in study.factors.items() if name != factor}
    for levels in itertools.product(*others.values()):
        within = dict(zip(others, levels, strict=True))
        where = ", ".join(f"{name}={level}" for name, level in within.items())
        for later, earlier in pairs:
            weights = difference(study, {**within, factor: later}, {**within, factor: earlier})
            yield Comparison(f"{factor} {later} - {earlier} at {where}", weights)


def _interactions(
    study: Study, first: str, second: str, pairs: Mapping[str, list[tuple[Any, Any]]]
) -> Iterator[Comparison]:
    for (later, earlier), (there, here) in itertools.product(pairs[first], pairs[second]):
        label = f"({first} {later} - {earlier}) at {second} {there} - the same at {here}"
        weights = difference(study, {first: later}, {first: earlier}, {second: (there, here)})
        yield Comparison(label, weights)
