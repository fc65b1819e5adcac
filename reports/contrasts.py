"""Each condition against the baseline, paired by seed: what the differences are and what they carry.

One family: all conditions against one baseline on the primary metric; Holm's correction is within it.
The mathematics: reports/statistics.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from reports.aggregate import condition
from reports.frames import StudyData
from reports.statistics import Contrast, Verdict, equivalence, holm, paired_contrast, verdict
from reports.study import Cell
from reports.tables import DASH, Section, Table, interval, number, probability

HEADING = "Paired contrasts against the baseline"
_DECIMALS = 4


@dataclass(frozen=True)
class Comparison:
    """One condition against the baseline: the contrast, its p within the family, and the word for it."""

    cell: Cell
    contrast: Contrast
    holm_p: float
    equivalence_p: float
    verdict: Verdict


def baseline_cell(data: StudyData) -> tuple[Cell, str]:
    """The condition that the grid names as baseline, else its first one with a remark that says so."""
    declared = dict(data.study.grid.get("baseline") or {})
    named = [cell for cell in data.cells if declared.items() <= data.study.values(cell).items()]
    if declared and len(named) == 1:
        return named[0], ""
    reason = "the one declared is not one condition" if declared else "none was declared"
    return data.cells[0], f" ({reason}: this is the first of the grid)"


def compare(data: StudyData, baseline: Cell) -> list[Comparison]:
    """Every other condition against the baseline on the primary metric, as one family."""
    cells = [cell for cell in data.cells if cell != baseline]
    pairs = [_paired(data, cell, baseline) for cell in cells]
    contrasts = [paired_contrast(pair["treated"], pair["baseline"]) for pair in pairs]
    margin = data.study.margin or math.nan
    same = [equivalence(pair["treated"], pair["baseline"], margin) for pair in pairs]
    adjusted = holm([contrast.p for contrast in contrasts])
    return [
        Comparison(cell, contrast, float(p), q, verdict("differs", contrast, float(p), q))
        for cell, contrast, p, q in zip(cells, contrasts, adjusted, same, strict=True)
    ]


def contrasts(data: StudyData) -> Section:
    """The family's table, or a sentence on why there is none."""
    primary = data.study.primary
    if primary not in data.runs or not pd.api.types.is_float_dtype(data.runs[primary]):
        return Section(HEADING, (f"The primary metric {primary} is not among the recorded results.",))
    if len(data.cells) < 2:
        return Section(HEADING, ("One condition: there is nothing to compare.",))
    baseline, remark = baseline_cell(data)
    comparisons = compare(data, baseline)
    columns = (
        *data.study.factors,
        *("n", "Difference", "sd of differences", "95 % interval", "t p", "Holm p", "TOST p", "Differs?"),
    )
    return Section(
        HEADING,
        (f"Baseline: {data.study.label(baseline)}{remark}. Difference: condition - baseline in {primary}.",),
        (Table(columns, tuple(_row(comparison) for comparison in comparisons)),),
        _notes(data, comparisons),
    )


def _paired(data: StudyData, cell: Cell, baseline: Cell) -> pd.DataFrame:
    """Primary metric of both conditions by seed: columns treated, baseline; lone seeds drop out."""
    treated, other = (_by_seed(data, c) for c in (cell, baseline))
    return pd.concat({"treated": treated, "baseline": other}, axis=1, join="inner").astype(float)


def _by_seed(data: StudyData, cell: Cell) -> pd.Series:
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"].set_index("seed")
    # Two runs of one seed in one condition (another configuration) make no pair: which one would it be?
    return done.loc[~done.index.duplicated(keep=False), data.study.primary].sort_index()


def _row(comparison: Comparison) -> tuple[str, ...]:
    contrast = comparison.contrast
    return (
        *condition(comparison.cell),
        str(contrast.n),
        _signed(contrast.difference),
        number(contrast.sd, _DECIMALS),
        interval(contrast.low, contrast.high, _DECIMALS),
        probability(contrast.p),
        probability(comparison.holm_p),
        probability(comparison.equivalence_p),
        comparison.verdict,
    )


def _signed(value: float) -> str:
    text = number(value, _DECIMALS)
    return text if text == DASH or text.startswith("-") else f"+{text}"


def _notes(data: StudyData, comparisons: list[Comparison]) -> tuple[str, ...]:
    tested = sum(not math.isnan(comparison.contrast.p) for comparison in comparisons)
    margin = data.study.margin
    within = "no margin was declared" if margin is None else f"within ±{margin:.4g}"
    notes = [
        "Differences are paired by seed; n counts the seeds that both conditions have finished. sd is the "
        "sample standard deviation of the differences, the interval Student's t, whatever --std says.",
        f"Holm p: corrected for the {tested} tests of this table. TOST p: two one-sided tests for "
        f"equivalence ({within}), not corrected.",
        "Differs? is SUPPORTED (Holm p below .05 and the interval excludes 0), EQUIVALENT (TOST p below "
        ".05), INCONCLUSIVE (neither), or NOT TESTED (fewer than 2 pairs, or differences that do not vary).",
    ]
    flat = [c for c in comparisons if c.contrast.n >= 2 and math.isnan(c.contrast.p)]
    if flat:
        named = "; ".join(data.study.label(c.cell) for c in flat)
        notes.append(f"The same difference in every seed, so that no test is possible: {named}.")
    return tuple(notes)
