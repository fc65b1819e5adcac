"""Which comparisons a factorial design asks for, in families: the correction stays within one.

Each condition against the baseline; levels of a factor averaged over the others; simple effects, level
against level within a condition of the others; interactions, differences of differences. Only weights are
made here: reports/statistics/contrasts.py computes them, reports/statistics/judgement.py uses them too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from reports.reading.frames import StudyData
from reports.reading.study import Cell, Study
from reports.statistics.blocks import Weights
from runner.queue.where import written

MAX_TESTS = 60
"""A family with more tests is not printed: its correction would leave nothing to be found."""
ALL_PAIRS = 4
"""Most levels of a factor of which every pair is compared; of more, each level with the baseline's."""
Levels = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One contrast: what it is called, and the weight of each condition in it."""

    label: str
    weights: Weights
    whole: Weights | None = None
    """The weights with the conditions that have no result, where those had to be left out of an average."""
    levels: tuple[Any, Any] | None = None
    """Of a factor: the level that is compared, and the one that it is against."""


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


def factor_families(study: Study, baseline: Cell, without: Set[Cell] = frozenset()) -> list[Family]:
    """The families that the grid's factors make, interactions of all orders; none for a study without
    factors.

    `without`: conditions that have no result; averages leave their levels out and the labels say so.
    """
    varied = [factor for factor, levels in study.factors.items() if len(levels) > 1]
    standard = study.values(baseline)
    pairs = {factor: pairs_of(study.factors[factor], standard[factor]) for factor in varied}
    found = [_levels(study, factor, pairs[factor], without) for factor in varied]
    if len(varied) < 2:
        return found
    sizes = {factor: len(levels) for factor, levels in study.factors.items()}
    wanted = sum(len(pairs[factor]) * math.prod(sizes.values()) // sizes[factor] for factor in varied)
    simple = (c for factor in varied for c in _simple(study, factor, pairs[factor]))
    found.append(_family("Simple effects: a factor within each condition of the others", wanted, simple))
    for order in range(2, len(varied) + 1):
        for factors in itertools.combinations(varied, order):
            name = f"Interaction of {_listed(factors)}: differences of differences"
            wanted = math.prod(len(pairs[factor]) for factor in factors)
            found.append(_family(name, wanted, _interactions(study, factors, pairs, without), factors))
    return found


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _family(
    name: str, wanted: int, comparisons: Iterator[Comparison], factors: tuple[str, ...] = ()
) -> Family:
    if wanted > MAX_TESTS:
        return Family(name, (), factors, skipped=wanted)
    return Family(name, tuple(comparisons), factors)


def difference(
    study: Study,
    compare: Levels,
    against: Levels,
    interaction: Mapping[str, Sequence[Any]] | None = None,
    without: Set[Cell] = frozenset(),
) -> dict[Cell, float]:
    """The weights of (compare - against), averaged over the factors that neither names.

    With `interaction` {factor: (first, second), …}: that difference at first minus that at second, for each
    factor. Conditions are the grid's; empty where a side has none of them.

    Args:
        without: conditions that have no result. What is averaged over leaves out, on both sides, the levels
            at which one of them would be needed; where nothing is left, the weights are those of all.
    """
    sides = [(1.0, {**compare}), (-1.0, {**against})]
    for factor, (first, second) in (interaction or {}).items():
        sides = [
            (sign * way, {**levels, factor: level})
            for sign, levels in sides
            for way, level in ((1.0, first), (-1.0, second))
        ]
    strata: dict[Cell, list[tuple[Cell, float]]] = {}
    for sign, levels in sides:
        for cell, values in study.conditions:
            if _has(values, levels):
                over = tuple(value for factor, value in values.items() if factor not in levels)
                strata.setdefault(over, []).append((cell, sign))
    whole = [stratum for stratum in strata.values() if len(stratum) == len(sides)]
    kept = [stratum for stratum in whole if not without & {cell for cell, _ in stratum}] or whole
    weights: dict[Cell, float] = {}
    for cell, sign in itertools.chain(*kept):
        weights[cell] = weights.get(cell, 0.0) + sign / len(kept)
    return {cell: weight for cell, weight in weights.items() if weight}


def left_out(study: Study, whole: Weights, kept: Weights) -> str:
    """` (without noise_std=0.5, …)`: the conditions that an average had to leave out; empty where none."""
    gone = [study.label(cell) for cell in whole if cell not in kept]
    more = f"; and {len(gone) - 3} more" if len(gone) > 3 else ""
    return f" (without {'; '.join(gone[:3])}{more})" if gone else ""


def _has(values: Levels, levels: Levels) -> bool:
    return all(factor in values and values[factor] == level for factor, level in levels.items())


def pairs_of(levels: Sequence[Any], standard: Any) -> list[tuple[Any, Any]]:
    """(level, earlier level) of a factor, in the grid's order."""
    if len(levels) <= ALL_PAIRS:
        return [(later, earlier) for earlier, later in itertools.combinations(levels, 2)]
    return [(level, standard) for level in levels if level != standard]


def _levels(study: Study, factor: str, pairs: list[tuple[Any, Any]], without: Set[Cell]) -> Family:
    others = [name for name, levels in study.factors.items() if name != factor and len(levels) > 1]
    averaged = f", averaged over {', '.join(others)}" if others else ""
    comparisons = tuple(
        replace(
            _comparison(
                study, f"{factor} {later} - {earlier}", {factor: later}, {factor: earlier}, None, without
            ),
            levels=(later, earlier),
        )
        for later, earlier in pairs
    )
    return Family(f"Levels of {factor}{averaged}", comparisons, (factor,))


def _simple(study: Study, factor: str, pairs: list[tuple[Any, Any]]) -> Iterator[Comparison]:
    others = {name: levels for name, levels in study.factors.items() if name != factor}
    for levels in itertools.product(*others.values()):
        within = dict(zip(others, levels, strict=True))
        for later, earlier in pairs:
            weights = difference(study, {**within, factor: later}, {**within, factor: earlier})
            yield Comparison(f"{factor} {later} - {earlier} at {written(within)}", weights)


def _interactions(
    study: Study,
    factors: tuple[str, ...],
    pairs: Mapping[str, list[tuple[Any, Any]]],
    without: Set[Cell],
) -> Iterator[Comparison]:
    first, *others = factors
    for (later, earlier), *places in itertools.product(*(pairs[factor] for factor in factors)):
        label = f"{first} {later} - {earlier}"
        for factor, (there, here) in zip(others, places, strict=True):
            label = f"({label}) at {factor} {there} - the same at {here}"
        crossed = dict(zip(others, places, strict=True))
        yield _comparison(study, label, {first: later}, {first: earlier}, crossed, without)


def _comparison(
    study: Study,
    label: str,
    compare: Levels,
    against: Levels,
    interaction: Mapping[str, Sequence[Any]] | None,
    without: Set[Cell],
) -> Comparison:
    whole = difference(study, compare, against, interaction)
    kept = difference(study, compare, against, interaction, without)
    return Comparison(label + left_out(study, whole, kept), kept, whole)
