"""How many seeds: what the study could have detected, what the margin takes, and the looks by which it stops.

Computed by reports/statistics/power.py and, when a look was made, by reports/statistics/looks.py. The command
that plans: reports/output/seeds.py. The figure of the looks: reports/figures/looks.py.
"""

from __future__ import annotations

import math

from reports.reading.looks import Look, Outcome
from reports.reading.study import Target
from reports.sections.head import looks_line
from reports.statistics.analysis import Analysis
from reports.statistics.contrasts import told_once
from reports.statistics.inference import Contrast
from reports.statistics.judgement import Judged
from reports.statistics.power import MAX_SEEDS, detectable_difference, observed_sd, seeds_needed
from reports.tables import (
    DASH,
    Section,
    Table,
    interval,
    number,
    percent,
    probability,
    ratio_interval,
    signed,
)

HEADING = "Power and seeds needed"
LOOKS = "Looks"
_ROWS = 40


def power(analysis: Analysis) -> Section:
    """What the study could have detected, contrast by contrast, and what the margin would take."""
    families, target, study = analysis.families, analysis.target, analysis.study.name
    if not families:
        return Section(HEADING, ("There is nothing to compare, so nothing to plan.",))
    shown = [f for f in told_once(families) if f is families[0] or len(f.family.factors) == 1]
    rows = [tested for family in shown for tested in family.tested]
    ppl = ("% of PPL",) if analysis.metric.logarithmic else ()
    columns = ("Contrast", "n", "sd of differences", "Detectable difference", *ppl, "Seeds for the margin")
    table = tuple(_row(t.comparison.label, t.contrast, target) for t in rows[:_ROWS])
    margin = "none" if target.margin is None else f"{target.margin:.4g}"
    another = "0.5percent" if analysis.metric.logarithmic else margin if target.margin else "0.01"
    more = len(rows) - _ROWS
    return Section(
        HEADING,
        (),
        (Table(columns, table, "l" + "r" * (len(columns) - 1)),),
        (
            "Detectable difference: the smallest whose corrected interval excludes 0 with 80 % power with "
            "the n at hand, if differences vary as they did here. An sd from few seeds is itself uncertain.",
            f"Seeds for the margin: how many seeds in all find a difference of the margin ({margin}) with 80 "
            f"% power. For another difference: python cli.py power --study {study} --difference {another}; "
            "--half-width plans intervals. Both plan the claims and print the command that adds the seeds.",
            "Decide on the number of seeds before they run: adding seeds until p is small finds an effect "
            "where there is none.",
            *([f"And {more} more contrasts."] if more > 0 else []),
        ),
    )


def _row(label: str, contrast: Contrast, target: Target) -> tuple[str, ...]:
    sd, metric = observed_sd(contrast), target.measure
    smallest = detectable_difference(sd, contrast.n, tests=contrast.tests)
    share = (percent(metric.percent(smallest)),) if metric.logarithmic else ()
    seeds = None if target.margin is None else seeds_needed(sd, target.margin, tests=contrast.tests)
    shown = number(smallest, metric.decimals)
    return label, str(contrast.n), number(contrast.sd, metric.decimals), shown, *share, count(seeds)


def count(seeds: int | None) -> str:
    """A number of seeds; a dash where it cannot be known."""
    if seeds is None:
        return DASH
    return f"{seeds:,}" if seeds <= MAX_SEEDS else f"more than {MAX_SEEDS:,}"


# --- looks ------------------------------------------------------------------------------------------------


def looks(analysis: Analysis) -> Section | None:
    """A row a claim and look, up to the one that decided it; None where seeds are a fixed number."""
    data = analysis.data
    if not data.study.looks:
        return None
    text = tuple(f"{name}: {told}." for name, told in looks_line(data))
    if not data.looks:
        return Section(LOOKS, text, notes=_look_notes(analysis))
    columns = (
        *("Claim", "Look", "Seeds", "n", "Difference", "Interval", "Level", "p", "Equivalence p"),
        *("Claims", "Verdict", "Chance"),
    )
    rows = tuple(
        _look_row(judged, look, look.outcomes[i])
        for i, judged in enumerate(analysis.judged)
        for look in data.looks
        if not look.outcomes[i].look or look.outcomes[i].look >= look.number
    )
    return Section(LOOKS, text, (Table(columns, rows, "l" + "r" * 9 + "lr"),), _look_notes(analysis))


def _look_row(judged: Judged, look: Look, outcome: Outcome) -> tuple[str, ...]:
    return (
        *(judged.name, str(look.number), str(look.seeds), str(outcome.n)),
        *_difference(outcome, judged),
        f"{outcome.level:.2g}",
        probability(outcome.p),
        probability(outcome.equivalence_p),
        str(outcome.tests),
        outcome.verdict + (", futile" if outcome.futile else ""),
        DASH if math.isnan(outcome.power) else f"{percent(100 * outcome.power)} %".lstrip("+"),
    )


def _difference(outcome: Outcome, judged: Judged) -> tuple[str, str]:
    decimals = judged.measure.decimals
    if not judged.ratio:
        shown = signed(outcome.difference, decimals)
        return shown, interval(outcome.low, outcome.high, decimals, judged.margin)
    return f"× {number(math.exp(outcome.difference), 3)}", ratio_interval(outcome.low, outcome.high)


def _look_notes(analysis: Analysis) -> tuple[str, ...]:
    plan = analysis.study.looks
    futile = plan["futility"]
    stops = (
        f"A claim whose chance is below {futile:g} gets no further seeds; that makes nothing easier to "
        "support (not binding)."
        if futile is not None
        else "No claim is stopped for a small chance."
    )
    return (
        f"Looks at {', '.join(map(str, plan['seeds']))} seeds were fixed before the first run. Level is that "
        f"of a look's paired t test, two-sided: {plan['spending']} spending (Lan and DeMets 1983), fitted to "
        "t tests of so few seeds, shared by the claims that are open (Holm; Ye et al. 2013). Interval is of "
        "that level; a claim is decided where it says so, and stays decided.",
        f"Chance is that the last look decides an open claim, if its difference is what it seems. {stops}",
        "A difference that stopped early is somewhat too large on average: look at its interval. Intervals "
        "of other comparisons than the claims' do not allow for the looks.",
    )
