"""How many seeds: what the study could have detected, and how many it takes to detect the margin.

Computed by reports/statistics/power.py. The command that plans: reports/output/seeds.py.
"""

from __future__ import annotations

from reports.reading.measures import measure
from reports.reading.study import Target
from reports.statistics.analysis import Analysis
from reports.statistics.inference import Contrast
from reports.statistics.power import MAX_SEEDS, detectable_difference, observed_sd, seeds_needed
from reports.tables import DASH, Section, Table, number, percent

HEADING = "Power and seeds needed"
_ROWS = 40


def power(analysis: Analysis) -> Section:
    """What the study could have detected, contrast by contrast, and what the margin would take."""
    families, target, study = analysis.families, analysis.target, analysis.study.name
    if not families:
        return Section(HEADING, ("There is nothing to compare, so nothing to plan.",))
    rows = [t for f in families for t in f.tested if f is families[0] or len(f.family.factors) == 1]
    ppl = ("% of PPL",) if analysis.metric.logarithmic else ()
    columns = ("Contrast", "n", "sd of differences", "Detectable difference", *ppl, "Seeds for the margin")
    table = tuple(_row(t.comparison.label, t.contrast, target) for t in rows[:_ROWS])
    margin = "none" if target.margin is None else f"{target.margin:.4g}"
    more = len(rows) - _ROWS
    return Section(
        HEADING,
        (),
        (Table(columns, table, "l" + "r" * (len(columns) - 1)),),
        (
            "Detectable difference: the smallest whose corrected interval excludes 0 with 80 % power with "
            "the n at hand, if differences vary as they did here. An sd from few seeds is itself uncertain.",
            f"Seeds for the margin: how many seeds in all find a difference of the margin ({margin}) with 80 "
            f"% power. For another difference: python cli.py power --study {study} --difference 0.5percent; "
            "--half-width plans intervals. Both plan the claims and print the command that adds the seeds.",
            "Decide on the number of seeds before they run: adding seeds until p is small finds an effect "
            "where there is none.",
            *([f"And {more} more contrasts."] if more > 0 else []),
        ),
    )


def _row(label: str, contrast: Contrast, target: Target) -> tuple[str, ...]:
    sd, metric = observed_sd(contrast), measure(target.metric)
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
