"""The levels of a factor against its best one: marginal means within seeds, and what is surely better.

Which level is best is read off the data, so the intervals hold together over all pairs of levels: whichever
level comes out best, its differences to the others are among them. Printed by reports/sections/levels.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.reading.study import Cell, Study
from reports.statistics.blocks import Blocks, Flags
from reports.statistics.inference import ROUNDING, Array, Contrast, family, weighted_contrast
from reports.statistics.words import FEWEST, direction

MOST_LEVELS = 30
"""Of more levels no pairs are made: 435 of them, whose correction leaves little to be found."""


@dataclass(frozen=True)
class Levels:
    """L levels of a factor over S complete seeds, averaged over the other factors within each seed."""

    factor: str
    levels: tuple[Any, ...]
    """The levels that are compared, in the grid's order."""
    values: Array
    """Shape: (S, L)."""
    best: int
    """Index of the best mean."""
    differences: dict[tuple[int, int], Contrast]
    """(i, j), both ways: level i - level j, intervals that hold together over all pairs."""
    higher_is_better: bool
    diverged: dict[Any, tuple[int, int]]
    """Levels set aside, for more of their runs diverged than another's: diverged runs, and ended ones."""
    strata: tuple[int, int]
    """Combinations of the other factors that are averaged over, and all that there are."""
    to_come: int
    """Seeds that are still to run."""

    @property
    def means(self) -> Array:
        """Shape: (L,)."""
        return np.asarray(self.values.mean(axis=0))

    def beaten(self, i: int) -> list[Any]:
        """The levels that level i is surely better than: the interval of their difference excludes 0."""
        better = 1 if self.higher_is_better else -1
        return [
            self.levels[j]
            for j in range(len(self.levels))
            if j != i and len(self.values) >= FEWEST and direction(self.differences[i, j]) == better
        ]


def rank(study: Study, matrix: Blocks, factor: str, higher_is_better: bool) -> Levels | str:
    """The levels of a factor and their differences, or the reason why there are none.

    Compared are the levels that diverged least often: the means of the others would be of the runs that
    survived. Averages leave out a combination of the other factors at which one of the levels has no result.
    """
    at = _cells(study, matrix, factor)
    counts = {level: _diverged(matrix, list(cells.values())) for level, cells in at.items()}
    shares = {level: lost / max(ended, 1) for level, (lost, ended) in counts.items()}
    kept = [level for level in at if shares[level] <= min(shares.values())]
    if not 2 <= len(kept) <= MOST_LEVELS:
        few = "all levels but one diverged more often than it"
        return few if len(kept) < 2 else f"{len(kept)} levels, more than {MOST_LEVELS}"
    empty = matrix.empty()
    others = list(dict.fromkeys(other for cells in at.values() for other in cells))
    whole = [o for o in others if all(o in at[level] and at[level][o] not in empty for level in kept)]
    if not whole:
        return "no combination of the other factors has a result at every level"
    cells = [at[level][other] for level in kept for other in whole]
    seeds, found = matrix.complete(cells)
    if not seeds:
        return "no seed has every level finished yet"
    values = found.reshape(len(seeds), len(kept), len(whole)).mean(axis=2)
    means = values.mean(axis=0)
    return Levels(
        factor,
        tuple(kept),
        values,
        int(means.argmax() if higher_is_better else means.argmin()),
        _differences(values, None if matrix.spread_of is None else matrix.spread_of[_rows(matrix, seeds)]),
        higher_is_better,
        {level: counts[level] for level in at if level not in kept},
        (len(whole), len(others)),
        matrix.to_come(dict.fromkeys(cells, 1.0)),
    )


@dataclass(frozen=True)
class Best:
    """The condition with the best mean, by the seeds that conditions share with one of them."""

    cell: Cell
    equal: list[Cell]
    """Others with the same mean, but for rounding."""
    compared: int
    """How many conditions, this one included."""
    against: Cell
    """Whose seeds decide: the baseline, or the first condition with a result where that one has none."""
    alike: bool
    """Every condition has the same seeds."""
    diverged: tuple[int, int]
    """Runs of the best condition that diverged, of those that ended."""


def best_condition(matrix: Blocks, baseline: Cell, higher_is_better: bool) -> Best | None:
    """Which condition's mean is best; None where no two share a seed.

    A condition that lacks the hard seeds would have the best mean of all, so each is compared with `baseline`
    over the seeds that both have. Where all have the same seeds that is the order of the means.
    """
    there = [cell for cell in matrix.cells if np.isfinite(matrix.column(cell)).any()]
    if not there:
        return None
    against = baseline if baseline in there else there[0]
    apart = {cell: matrix.column(cell) - matrix.column(against) for cell in there}
    gaps = {cell: float(np.nanmean(each)) for cell, each in apart.items() if np.isfinite(each).any()}
    if len(gaps) < 2:
        return None
    cells = list(gaps)
    wanted = max(gaps.values()) if higher_is_better else min(gaps.values())
    rounding = ROUNDING * float(np.nanmax(np.abs(matrix.values)))
    equal = [cell for cell in cells if abs(gaps[cell] - wanted) <= rounding]
    best = baseline if baseline in equal else equal[0]
    seeds = np.isfinite(matrix.values[:, [matrix.columns[cell] for cell in there]])
    return Best(
        best,
        [cell for cell in equal if cell != best],
        len(gaps),
        against,
        bool((seeds == seeds[:, :1]).all()),
        _diverged(matrix, [best]),
    )


def _differences(values: Array, spread_of: Flags | None) -> dict[tuple[int, int], Contrast]:
    """Every pair both ways, corrected for the pairs (one way: the other is the same test). Shape: (S, L)."""
    pairs = list(itertools.combinations(range(values.shape[1]), 2))
    there = family([weighted_contrast(values[:, pair], [1.0, -1.0], spread_of) for pair in pairs])
    back = family([weighted_contrast(values[:, pair], [-1.0, 1.0], spread_of) for pair in pairs])
    return {
        **dict(zip(pairs, there, strict=True)),
        **{(j, i): each for (i, j), each in zip(pairs, back, strict=True)},
    }


def _cells(study: Study, matrix: Blocks, factor: str) -> dict[Any, dict[Cell, Cell]]:
    """Level → the values of the other factors → the condition; those that have a column."""
    found: dict[Any, dict[Cell, Cell]] = {level: {} for level in study.factors[factor]}
    for cell, values in study.conditions:
        other = tuple(value for name, value in values.items() if name != factor)
        if cell in matrix.columns:
            found[values[factor]][other] = cell
    return {level: cells for level, cells in found.items() if cells}


def _diverged(matrix: Blocks, cells: list[Cell]) -> tuple[int, int]:
    columns = [matrix.columns[cell] for cell in cells]
    lost = matrix.diverged[:, columns]
    return int(lost.sum()), int((lost | np.isfinite(matrix.values[:, columns])).sum())


def _rows(matrix: Blocks, seeds: tuple[int, ...]) -> Flags:
    return np.asarray(np.isin(matrix.seeds, seeds))
