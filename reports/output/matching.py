"""Two studies against each other: the conditions that both have, and what each effect is in either.

They share no random draws that a test could pair: differences between them are of means, with Welch's
interval; differences within each stay paired by seed. Printed by reports/output/compare.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from reports.reading.frames import StudyData
from reports.reading.origin import flatten
from reports.reading.study import Cell
from reports.statistics.blocks import blocks
from reports.statistics.families import baseline_cell
from reports.statistics.inference import Array, Contrast, family, finite, unpaired, weighted_contrast
from reports.statistics.words import FEWEST, direction


@dataclass(frozen=True)
class Match:
    """A condition that both studies have: its factors' values, and its key in each."""

    label: str
    first: Cell
    second: Cell


@dataclass(frozen=True)
class Effect:
    """A matching condition against the common one: in each study by seed, and between the two."""

    label: str
    first: Contrast
    second: Contrast
    """Each corrected for all effects of its study."""
    apart: Contrast
    """The first study's effect minus the second's, by Welch's t, corrected for all effects."""

    @property
    def sign(self) -> int:
        """1 where both studies show the same sign, -1 where opposite ones, 0 where one shows none."""
        return sign_of(self.first) * sign_of(self.second)


def sign_of(contrast: Contrast) -> int:
    """1 above 0, -1 below it, 0 where the interval holds 0 or rests on fewer than three seeds."""
    return direction(contrast) if contrast.n >= FEWEST else 0


def matches(first: StudyData, second: StudyData) -> list[Match]:
    """Conditions that agree in all that either study varies (the last part of a name counts).

    What one study varies and the other does not has there the value that its runs were told.
    """
    keys = _varied(first) | _varied(second)
    there = {_key(second, cell, keys): cell for cell in second.cells}
    return [
        Match(first.study.label(cell), cell, there[key])
        for cell in first.cells
        if (key := _key(first, cell, keys)) in there
    ]


def levels(first: StudyData, second: StudyData, metric: str, found: list[Match]) -> list[Contrast]:
    """First minus second in each matching condition, not paired, corrected for all that can be tested."""
    matrices = [blocks(data, metric) for data in (first, second)]
    pairs = [(matrices[0].column(match.first), matrices[1].column(match.second)) for match in found]
    return _together(pairs)


def common(first: StudyData, found: list[Match]) -> Match:
    """What the effects are against: the first study's baseline, else the first condition that matches."""
    wanted = baseline_cell(first)[0]
    return next((match for match in found if match.first == wanted), found[0])


def effects(
    first: StudyData, second: StudyData, metric: str, found: list[Match], base: Match
) -> list[Effect]:
    """Every other matching condition against `base`, within each study."""
    one, two = blocks(first, metric), blocks(second, metric)
    others = [match for match in found if match is not base]
    pairs = [
        (
            finite(one.column(match.first) - one.column(base.first)),
            finite(two.column(match.second) - two.column(base.second)),
        )
        for match in others
    ]
    own, theirs = (
        family([weighted_contrast(pair[side][:, None], [1.0]) for pair in pairs]) for side in (0, 1)
    )
    return [
        Effect(match.label, *each) for match, *each in zip(others, own, theirs, _together(pairs), strict=True)
    ]


def repeated(first: StudyData, second: StudyData, metric: str, found: list[Match]) -> int:
    """Runs side by side that are the same run twice: of one seed, with one value to the last bit."""
    one, two = blocks(first, metric), blocks(second, metric)
    count = 0
    for match in found:
        values = dict(zip(two.seeds, two.column(match.second).tolist(), strict=True))
        mine = zip(one.seeds, one.column(match.first).tolist(), strict=True)
        count += sum(values.get(seed) == value for seed, value in mine)
    return count


def _together(pairs: list[tuple[Array, Array]]) -> list[Contrast]:
    tests = sum(not math.isnan(unpaired(*pair).p) for pair in pairs) or 1
    return [unpaired(*pair, tests) for pair in pairs]


def _varied(data: StudyData) -> set[str]:
    """What the study's conditions differ in: factors, and for named levels the keys that those set."""
    return {last(key) for key in data.study.varied - data.study.levels.keys()}


def last(name: str) -> str:
    """The last part of a dotted name."""
    return name.rsplit(".", 1)[-1]


def _key(data: StudyData, cell: Cell, keys: set[str]) -> frozenset[tuple[str, Any]]:
    """Each key with its value in the condition: its factors', its named level's, else its runs'."""
    runs = data.by_cell[cell]
    told = flatten(runs["config"].iloc[0]) if len(runs) else {}
    values: dict[str, Any] = {last(name): value for name, value in told.items()}
    for factor, level in data.study.values(cell).items():
        named = data.study.levels.get(factor, {}).get(level)
        values |= {last(k): v for k, v in named.items()} if named else {last(factor): level}
    return frozenset((key, _comparable(values.get(key))) for key in keys)


def _comparable(value: Any) -> Any:
    """0.10 and 0.1, 2 and 2.0, as a number or as text, are one value."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)
