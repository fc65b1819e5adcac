"""Findings: a sentence a claim, made only from verdicts, and the numbers behind each.

The claims come from the study's grid, where they stood before the first run; they are judged by
reports/statistics/judgement.py. Where none was declared, the sentences are of the factors' levels.
"""

from __future__ import annotations

import math

from reports.reading.measures import measure
from reports.statistics.analysis import Analysis
from reports.statistics.contrasts import TestedFamily
from reports.statistics.inference import Contrast
from reports.statistics.judgement import Judged
from reports.tables import Section, Table, interval, number, percent, probability, signed

HEADING = "Findings"
_SENTENCES = 12
_KINDS = {
    "less": "below 0",
    "greater": "above 0",
    "equivalent": "within the margin",
    "not_worse": "not worse by the margin",
}


def findings(analysis: Analysis) -> Section:
    """The sentences, and with declared claims the table behind them."""
    judged = analysis.judged
    if not judged:
        return Section(HEADING, _undeclared(analysis.families))
    columns = (
        *("Claim", "Metric", "Should be", "Margin", "n"),
        *("Estimate", "95 % interval", "p", "Holm p", "TOST p", "Verdict"),
    )
    table = Table(columns, tuple(_row(j) for j in judged), "lll" + "r" * 7 + "l")
    return Section(HEADING, tuple(_sentence(j) for j in judged), (table,), _notes(judged))


def _sentence(judged: Judged) -> str:
    text = f"{judged.verdict}: {judged.name}. {judged.what}: "
    same = (
        judged.equivalence_p if judged.verdict == "EQUIVALENT" and judged.kind != "equivalent" else math.nan
    )
    return text + _numbers(judged.metric, judged.contrast, judged.holm_p, same)


def _numbers(metric: str, contrast: Contrast, holm_p: float, same_p: float) -> str:
    if not contrast.n:
        return f"no seed has every condition of it with {metric}."
    known = measure(metric)
    unit = known.unit
    share = f", {percent(known.percent(contrast.difference))} % of the PPL" if known.logarithmic else ""
    estimate = f"{metric} {signed(contrast.difference, 4)}{f' {unit}' if unit else ''}{share}"
    if math.isnan(contrast.p):
        why = "one seed" if contrast.n == 1 else "the same difference in every seed"
        return f"{estimate} ({why}: no test is possible; n = {contrast.n})."
    between = f"95 % interval {interval(contrast.low, contrast.high, 4)}"
    same = "" if math.isnan(same_p) else f"; TOST p {probability(same_p)}"
    return f"{estimate} ({between}; Holm p {probability(holm_p)}{same}; n = {contrast.n} seeds)."


def _undeclared(families: tuple[TestedFamily, ...]) -> tuple[str, ...]:
    sentences = [
        f"{tested.verdict}: {tested.comparison.label}. "
        + _numbers(
            family.metric,
            tested.contrast,
            tested.holm_p,
            tested.equivalence_p if tested.verdict == "EQUIVALENT" else math.nan,
        )
        for family in [f for f in families if len(f.family.factors) == 1] or families[:1]
        for tested in family.tested
    ]
    if not sentences:
        return ("No claims were declared with this study, and it has no factors to compare.",)
    more = len(sentences) - _SENTENCES
    return (
        "No claims were declared with this study. These verdicts are on whether the levels of its factors "
        "differ, each factor a family of its own.",
        *sentences[:_SENTENCES],
        *([f"And {more} more, under paired contrasts."] if more > 0 else []),
    )


def _row(judged: Judged) -> tuple[str, ...]:
    contrast, decimals = judged.contrast, measure(judged.metric).decimals
    return (
        *(judged.name, judged.metric, _KINDS.get(judged.kind, judged.kind)),
        number(judged.margin, decimals),
        str(contrast.n),
        signed(contrast.difference, decimals),
        interval(contrast.low, contrast.high, decimals),
        probability(judged.p),
        probability(judged.holm_p),
        probability(judged.equivalence_p),
        judged.verdict,
    )


def _notes(judged: tuple[Judged, ...]) -> tuple[str, ...]:
    tests = sum(not math.isnan(j.holm_p) for j in judged)
    return (
        "The claims were declared in the grid, before the runs. Differences are paired by seed and averaged "
        "over the factors that a claim does not name; n counts the seeds that have every condition in it.",
        f"Holm p: corrected for the {tests} tests of this table, which is one family. p is two-sided for "
        "below and above 0, TOST for within the margin, one-sided against the margin for not worse. "
        "TOST p: for equivalence, not corrected.",
        "SUPPORTED: Holm p below .05 and, for below and above 0, the interval excludes 0. CONTRADICTED: the "
        "same for the opposite. EQUIVALENT: the difference is within the margin (TOST p below .05; Holm's "
        "where that is the claim). INCONCLUSIVE: neither; more seeds may tell. NOT TESTED: fewer than 2 "
        "seeds, or differences that do not vary.",
    )
