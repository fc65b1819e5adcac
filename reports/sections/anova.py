"""Analysis of variance of the complete blocks, and where it disagrees with the paired tests.

It is the sensitivity check of the paired contrasts: it assumes one residual variance for all conditions, they
do not. Computed by reports/statistics/anova.py.
"""

from __future__ import annotations

import math

from reports.statistics.analysis import Analysis
from reports.statistics.anova import Effect, Variance
from reports.statistics.contrasts import TestedFamily
from reports.statistics.inference import ALPHA
from reports.tables import DASH, Section, Table, number, probability

HEADING = "Analysis of variance"


def variance(analysis: Analysis) -> Section:
    """The table, the variance components, and every disagreement with the paired tests."""
    found = analysis.variance
    if isinstance(found, str):
        return Section(HEADING, (f"Not possible: {found}.",))
    rows = [_row(" × ".join(e.factors), e) for e in found.effects]
    rows += [_row("seed (block)", found.block)]
    rest = number(found.residual_sum, 6), str(found.residual_df), _small(found.residual)
    rows.append(("residual", *rest, DASH, DASH))
    columns = ("Source", "Sum of squares", "df", "Mean square", "F", "p")
    components = Table(
        ("Component", "Variance", "sd", "Share of both"),
        tuple(_component(n, v, found) for n, v in (("seed", found.seed), ("residual", found.residual))),
        "lrrr",
        "Variance components",
    )
    return Section(
        HEADING,
        (
            f"Of {analysis.target.metric}, over the {found.seeds} seeds that have all {found.conditions} "
            "conditions.",
        ),
        (Table(columns, tuple(rows), "lrrrrr"), components),
        (*_disagreements(found, analysis.families), *_notes(found)),
    )


def _row(source: str, effect: Effect) -> tuple[str, ...]:
    square = effect.sum_squares / effect.df
    return (
        *(source, number(effect.sum_squares, 6), str(effect.df), _small(square)),
        *(number(effect.f, 2), probability(effect.p)),
    )


def _small(value: float) -> str:
    return f"{value:.3g}"


def _component(name: str, value: float, found: Variance) -> tuple[str, ...]:
    total = found.seed + found.residual
    share = number(100 * value / total, 1) + " %" if total > 0 else DASH
    return name, _small(value), _small(math.sqrt(value)), share


def _disagreements(found: Variance, families: tuple[TestedFamily, ...]) -> list[str]:
    """Where one of the two finds an effect at .05 and the other does not, effect by effect."""
    lines = []
    for effect in found.effects:
        tested = [t for f in families if f.family.factors == effect.factors for t in f.tested]
        # A study of one factor has its levels in the family against the baseline.
        if not tested and len(found.effects) == 1 and families:
            tested = list(families[0].tested)
        p = min((t.holm_p for t in tested if not math.isnan(t.holm_p)), default=math.nan)
        if math.isnan(p) or math.isnan(effect.p) or (p < ALPHA) == (effect.p < ALPHA):
            continue
        source = " × ".join(effect.factors)
        lines.append(
            f"Disagreement on {source}: the analysis of variance has p {probability(effect.p)}, the paired "
            f"contrasts of that family have a smallest Holm p of {probability(p)}. The findings follow the "
            "paired contrasts; read this effect with care."
        )
    return lines or ["The paired contrasts and this analysis agree on which effects are below .05."]


def _notes(found: Variance) -> tuple[str, ...]:
    floor = " A seed variance below 0 is shown as 0." if found.seed == 0 else ""
    return (
        "Randomised complete blocks, type II sums of squares: the factors, their two-way interactions, the "
        "seed as block; higher interactions are in the residual. It assumes one residual variance for all "
        "conditions.",
        "The seed component is (mean square of the blocks - residual) / conditions, the residual component "
        f"the residual mean square.{floor}",
    )
