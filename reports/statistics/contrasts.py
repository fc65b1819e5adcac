"""Every family of a study on one metric: paired t tests, corrected within the family, a word for each.

Which comparisons there are: reports/statistics/families.py. The mathematics:
reports/statistics/inference.py. Printed by reports/sections/contrasts.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.reading.frames import StudyData
from reports.reading.measures import Measure
from reports.reading.study import Cell, Target
from reports.statistics.anova import Effect, Variance, analyse
from reports.statistics.blocks import Blocks, Weights, blocks, usable
from reports.statistics.failures import Failures
from reports.statistics.families import (
    Comparison,
    Family,
    against_baseline,
    baseline_cell,
    factor_families,
)
from reports.statistics.inference import Contrast, equivalence
from reports.statistics.inference import family as corrected
from reports.statistics.words import Word, word


@dataclass(frozen=True)
class Tested:
    """One comparison: its contrast, corrected within the family, and the word for it."""

    comparison: Comparison
    contrast: Contrast
    equivalence_p: float
    """Below .05 where the interval is inside the margin."""
    failures: Failures
    word: Word
    to_come: int
    """Seeds that are still to run: until then the word is provisional."""


@dataclass(frozen=True)
class TestedFamily:
    """A family with its results, in the family's order."""

    family: Family
    tested: tuple[Tested, ...]
    measure: Measure
    depends_on: tuple[Effect, ...] = ()
    """Interactions that qualify the family's factor, whose effect is averaged over the others."""


def judge_families(data: StudyData, target: Target) -> list[TestedFamily]:
    """Every family of the study on one metric; empty where there is nothing to compare."""
    if not usable(data, target.metric) or len(data.cells) < 2:
        return []
    matrix = blocks(data, target.metric)
    baseline, _ = baseline_cell(data)
    analysis = analyse(data.study, matrix)
    families = [against_baseline(data, baseline), *factor_families(data.study, baseline, matrix.empty())]
    return [
        TestedFamily(
            family, judge_family(family, matrix, target), target.measure, _qualifiers(family, analysis)
        )
        for family in families
    ]


def judge_family(family: Family, matrix: Blocks, target: Target) -> tuple[Tested, ...]:
    """Compute a family: paired t tests, intervals that hold together, TOST against ±margin, failures."""
    bound = target.margin or math.nan
    found = corrected([matrix.contrast(comparison.weights) for comparison in family.comparisons])
    tested = []
    for comparison, contrast in zip(family.comparisons, found, strict=True):
        whole = comparison.whole or comparison.weights
        failed = matrix.failures(whole)
        said = word(contrast, bound, target.measure.better, failed)
        same = equivalence(contrast, bound)
        tested.append(Tested(comparison, contrast, same, failed, said, matrix.to_come(whole)))
    return tuple(tested)


def told_once(families: Sequence[TestedFamily]) -> list[TestedFamily]:
    """The families without those whose every comparison another one has: one factor's levels, for one.

    Which side of a comparison is first makes no other one of it.
    """
    asked = [{_either_way(t.comparison.weights) for t in family.tested} for family in families]
    return [
        family
        for i, family in enumerate(families)
        if not any(asked[i] < other or (asked[i] == other and j < i) for j, other in enumerate(asked))
        or family.family.skipped
    ]


def _either_way(weights: Weights) -> frozenset[frozenset[tuple[Cell, float]]]:
    """The same for first - second and second - first."""
    return frozenset(frozenset((cell, sign * w) for cell, w in weights.items()) for sign in (1, -1))


def _qualifiers(family: Family, analysis: Variance | str) -> tuple[Effect, ...]:
    if isinstance(analysis, str) or len(family.factors) != 1:
        return ()
    return analysis.qualifiers(set(family.factors), set(), set(family.factors))
