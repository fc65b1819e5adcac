"""Every family of a study on one metric: paired t tests, Holm within the family, a word for each.

Which comparisons there are: reports/statistics/families.py. The mathematics:
reports/statistics/inference.py. Printed by reports/sections/contrasts.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.reading.frames import StudyData
from reports.reading.study import Target
from reports.statistics.blocks import Blocks, blocks, usable
from reports.statistics.families import (
    Comparison,
    Family,
    against_baseline,
    baseline_cell,
    factor_families,
)
from reports.statistics.inference import Contrast, Verdict, equivalence, holm, verdict


@dataclass(frozen=True)
class Tested:
    """One comparison: its contrast, its p within the family, and the word for it."""

    comparison: Comparison
    contrast: Contrast
    holm_p: float
    equivalence_p: float
    verdict: Verdict


@dataclass(frozen=True)
class TestedFamily:
    """A family with its results, in the family's order."""

    family: Family
    tested: tuple[Tested, ...]
    metric: str


def judge_families(data: StudyData, target: Target) -> list[TestedFamily]:
    """Every family of the study on one metric; empty where there is nothing to compare."""
    if not usable(data, target.metric) or len(data.cells) < 2:
        return []
    matrix = blocks(data, target.metric)
    baseline, _ = baseline_cell(data)
    families = [against_baseline(data, baseline), *factor_families(data.study, baseline)]
    return [
        TestedFamily(family, judge_family(family, matrix, target.margin), target.metric)
        for family in families
    ]


def judge_family(family: Family, matrix: Blocks, margin: float | None) -> tuple[Tested, ...]:
    """Compute a family: paired t tests, Holm within it, and the TOST of each against ±margin."""
    found = [matrix.contrast(comparison.weights) for comparison in family.comparisons]
    adjusted = holm([contrast.p for contrast in found])
    same = [equivalence(contrast, margin or math.nan) for contrast in found]
    return tuple(
        Tested(comparison, contrast, float(p), q, verdict("differs", contrast, float(p), q))
        for comparison, contrast, p, q in zip(family.comparisons, found, adjusted, same, strict=True)
    )
