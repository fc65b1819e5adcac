"""Paired contrasts in named families: what the differences are and what they carry.

Computed by reports/statistics/contrasts.py. A table is a family: its intervals hold together.
"""

from __future__ import annotations

import math

from reports.reading.study import Target
from reports.statistics.analysis import Analysis
from reports.statistics.contrasts import Tested, TestedFamily, told_once
from reports.statistics.failures import Failures
from reports.statistics.families import (
    MAX_TESTS,
    baseline_cell,
)
from reports.tables import DASH, Section, Table, interval, number, percent, probability, signed

HEADING = "Paired contrasts"
BASELINE_ROWS = 200
"""A longer family against the baseline is cut there, and says so."""


def contrasts(analysis: Analysis) -> Section:
    """A table a family, or a sentence on why there is none."""
    data, target, families = analysis.data, analysis.target, analysis.families
    if analysis.blocks is None:
        return Section(HEADING, (f"The metric {target.metric} is not among the recorded results.",))
    if not families:
        return Section(HEADING, ("One condition: there is nothing to compare.",))
    baseline, remark = baseline_cell(data)
    text = (
        f"Baseline: {data.study.label(baseline)}{remark}. "
        f"Difference: first - second in {analysis.metric.named}, paired by seed.",
    )
    shown = [family for family in told_once(families) if not family.family.skipped]
    hidden = [f"{f.family.name}: {f.family.skipped} tests" for f in families if f.family.skipped]
    notes = [f"Not shown, for more than {MAX_TESTS} tests: {'; '.join(hidden)}."] if hidden else []
    return Section(
        HEADING,
        text,
        tuple(_table(family, target) for family in shown),
        (*notes, *_notes(target), *_flat(families)),
    )


def _table(family: TestedFamily, target: Target) -> Table:
    share = ("% of PPL",) if target.measure.logarithmic else ()
    columns = (
        *("Contrast", "n", "Difference", *share, "sd of differences"),
        *("95 % interval, together", "p", "Equivalence p", "Diverged", "First is"),
    )
    rows = tuple(_row(tested, target) for tested in family.tested[:BASELINE_ROWS])
    cut = len(family.tested) - len(rows)
    heading = family.family.name + (f" (and {cut} more)" if cut else "")
    return Table(columns, rows, "l" + "r" * (len(columns) - 2) + "l", heading)


def _row(tested: Tested, target: Target) -> tuple[str, ...]:
    contrast, metric = tested.contrast, target.measure
    decimals = metric.decimals
    share = (percent(metric.percent(contrast.difference)),) if metric.logarithmic else ()
    return (
        tested.comparison.label,
        str(contrast.n),
        signed(contrast.difference, decimals),
        *share,
        number(contrast.sd, decimals),
        interval(contrast.low, contrast.high, decimals, target.margin),
        probability(contrast.p),
        probability(tested.equivalence_p),
        diverged(tested.failures),
        provisional(tested.word, tested.to_come),
    )


def diverged(failures: Failures) -> str:
    """`5/10 against 0/10`: the runs of either side that diverged, of those that ended; a dash for none."""
    if not failures.any:
        return DASH
    return f"{failures.first}/{failures.first_of} against {failures.second}/{failures.second_of}"


def provisional(word: str, to_come: int) -> str:
    """A word, marked where seeds are still to come."""
    return f"{word} (PROVISIONAL)" if to_come else word


def _notes(target: Target) -> tuple[str, ...]:
    within = (
        "No margin was declared, so there is no equivalence p."
        if target.margin is None
        else f"Equivalence p is for ±{target.margin:.4g}, {target.origin}: below .05 where the interval is "
        "inside it."
    )
    return (
        "n counts the seeds that have every condition in the contrast. sd is the sample standard deviation "
        "of the seeds' differences, the interval Student's t, whatever --std says. No bootstrap interval "
        "below n = 20, no Wilcoxon test: with few seeds neither can say more.",
        "The intervals of a table hold together: in 95 % of studies all of them do (Bonferroni: each has "
        "level 1 - .05 / tests, and p is multiplied by the tests). So an interval excludes 0 where p is "
        f"below .05. {within}",
        "First is: better or worse where the interval excludes 0; negligible where it lies inside the "
        "margin; both where both; unclear where neither, or with fewer than 3 seeds. A side that diverged "
        "more often is never called better or negligible.",
    )


def _flat(families: tuple[TestedFamily, ...]) -> list[str]:
    flat = [
        tested.comparison.label
        for family in families[:1]
        for tested in family.tested
        if tested.contrast.n >= 2 and math.isnan(tested.contrast.p)
    ]
    named = "; ".join(flat[:10]) + (f"; and {len(flat) - 10} more" if len(flat) > 10 else "")
    return [f"The same difference in every seed, so that no test is possible: {named}."] if flat else []
