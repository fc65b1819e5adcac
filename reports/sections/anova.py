"""Analysis of variance of the complete blocks, and where it disagrees with the paired tests.

Computed by reports/statistics/anova.py: each effect against its own error over seeds.
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
    rows = tuple(_row(effect) for effect in found.effects)
    columns = ("Source", "Sum of squares", "df", "Error: seed × source", "error df", "ε", "F", "p")
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
        (Table(columns, rows, "l" + "r" * 7), components),
        (*_disagreements(found, analysis.families), *_notes(found)),
    )


def _row(effect: Effect) -> tuple[str, ...]:
    return (
        *(" × ".join(effect.factors), number(effect.sum_squares, 6), str(effect.df)),
        *(number(effect.error_sum, 6), str(effect.error_df), number(effect.epsilon, 3)),
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
        p = min((t.contrast.p for t in tested if not math.isnan(t.contrast.p)), default=math.nan)
        if math.isnan(p) or math.isnan(effect.p) or (p < ALPHA) == (effect.p < ALPHA):
            continue
        source = " × ".join(effect.factors)
        lines.append(
            f"Disagreement on {source}: the analysis of variance has p {probability(effect.p)}, the paired "
            f"contrasts of that family have a smallest corrected p of {probability(p)}. The findings follow "
            "the paired contrasts: one asks whether the levels differ at all, the other which."
        )
    return lines or ["The paired contrasts and this analysis agree on which effects are below .05."]


def _notes(found: Variance) -> tuple[str, ...]:
    floor = " A seed variance below 0 is shown as 0." if found.seed == 0 else ""
    return (
        "Repeated measures: every seed has every condition, and each factor and interaction, of all orders, "
        "is held against how much it differs from seed to seed. ε is Greenhouse and Geisser's: p uses "
        "ε × df and ε × error df, so that no equal variances are assumed.",
        "The seed component is (mean square of the seeds - residual) / conditions, the residual component "
        f"all error terms together.{floor}",
    )
