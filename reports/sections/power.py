"""How many seeds: what the study can detect, and how many it takes to detect or to pin down more.

Planned for a stated difference, or by Stein's two-stage rule for a stated half-width of the interval; never
by adding seeds until p is small. The power of the t test is statsmodels'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from reports.reading.measures import measure
from reports.reading.study import Target
from reports.sections.contrasts import TestedFamily, percent_of_perplexity
from reports.statistics.inference import ALPHA, CONFIDENCE, Contrast
from reports.tables import DASH, Section, Table, number

HEADING = "Power and seeds needed"
POWER = 0.8
MAX_SEEDS = 100_000
"""A need beyond it is reported as more than it."""
_ROWS = 40


@dataclass(frozen=True)
class Need:
    """The seeds that one contrast needs in all; None where the sd of its differences is not known."""

    label: str
    n: int
    sd: float
    seeds: int | None


def detectable_difference(sd: float, n: int, power: float = POWER) -> float:
    """The smallest difference that a two-sided paired t test at .05 finds with `power`, from the sd of the
    seeds' differences; NaN below two seeds or without spread."""
    if n < 2 or not sd > 0:
        return math.nan
    from statsmodels.stats.power import TTestPower

    # Bracketed by hand: for two or three seeds the effect is many sd, beyond where a solver starts.
    low, high = 0.0, 1.0
    while _power(TTestPower(), high, n) < power:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _power(TTestPower(), middle, n) >= power else (middle, high)
    return high * sd


def seeds_needed(sd: float, difference: float, power: float = POWER) -> int | None:
    """The fewest seeds with which a two-sided paired t test at .05 finds `difference` with `power`.

    None without spread or difference; MAX_SEEDS + 1 stands for more than MAX_SEEDS.
    """
    if not sd > 0 or not abs(difference) > 0:
        return None
    from statsmodels.stats.power import TTestPower

    effect, few, many = abs(difference) / sd, 1, 2
    while _power(TTestPower(), effect, many) < power:
        few, many = many, many * 2
        if few > MAX_SEEDS:
            return MAX_SEEDS + 1
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if _power(TTestPower(), effect, middle) >= power else (middle, many)
    return many


def stein_seeds(sd: float, n: int, half_width: float, confidence: float = CONFIDENCE) -> int | None:
    """Stein's two-stage rule: N = max(n0, ceil((t(n0 - 1) · s0 / h)²)) seeds in all (Stein 1945).

    The interval after the second stage keeps s0 and n0 - 1 degrees of freedom, which makes its half-width
    at most h whatever the true sd. None below two seeds, without spread or without a half-width.
    """
    if n < 2 or not sd > 0 or not half_width > 0:
        return None
    t = float(stats.t.ppf((1 + confidence) / 2, n - 1))
    return max(n, math.ceil((t * sd / half_width) ** 2))


def needs(families: list[TestedFamily], difference: float | None, half_width: float | None) -> list[Need]:
    """What every condition against the baseline needs, for a difference or for a half-width."""
    found = []
    for tested in families[0].tested if families else ():
        contrast = tested.contrast
        if difference is not None:
            seeds = seeds_needed(_sd(contrast), difference)
        else:
            seeds = stein_seeds(_sd(contrast), contrast.n, half_width or math.nan)
        found.append(Need(tested.comparison.label, contrast.n, _sd(contrast), seeds))
    return found


def power(families: list[TestedFamily], target: Target, study: str) -> Section:
    """What the study could have detected, contrast by contrast, and what the margin would take."""
    if not families:
        return Section(HEADING, ("There is nothing to compare, so nothing to plan.",))
    rows = [t for f in families for t in f.tested if f is families[0] or len(f.family.factors) == 1]
    ppl = ("% of PPL",) if target.metric == "val_loss" else ()
    columns = ("Contrast", "n", "sd of differences", "Detectable difference", *ppl, "Seeds for the margin")
    table = tuple(_row(t.comparison.label, t.contrast, target) for t in rows[:_ROWS])
    margin = "none" if target.margin is None else f"{target.margin:.4g}"
    more = len(rows) - _ROWS
    return Section(
        HEADING,
        (),
        (Table(columns, table, "l" + "r" * (len(columns) - 1)),),
        (
            "Detectable difference: the smallest that a two-sided paired t test at .05 finds with 80 % power "
            "with the n at hand, if the seeds' differences vary as they did here. An sd from few seeds is "
            "itself uncertain, and Holm's correction asks for more.",
            f"Seeds for the margin: how many seeds in all find a difference of the margin ({margin}) with 80 "
            f"% power. For another difference: python cli.py power --study {study} --difference 0.5percent; "
            "--half-width plans an interval. Both print the command that adds the seeds.",
            "Decide on the number of seeds before they run: adding seeds until p is small finds an effect "
            "where there is none.",
            *([f"And {more} more contrasts."] if more > 0 else []),
        ),
    )


def _row(label: str, contrast: Contrast, target: Target) -> tuple[str, ...]:
    sd, decimals = _sd(contrast), measure(target.metric).decimals
    smallest = detectable_difference(sd, contrast.n)
    share = (percent_of_perplexity(smallest),) if target.metric == "val_loss" else ()
    seeds = None if target.margin is None else seeds_needed(sd, target.margin)
    shown = number(smallest, decimals)
    return label, str(contrast.n), number(contrast.sd, decimals), shown, *share, count(seeds)


def count(seeds: int | None) -> str:
    """A number of seeds; a dash where it cannot be known."""
    if seeds is None:
        return DASH
    return f"{seeds:,}" if seeds <= MAX_SEEDS else f"more than {MAX_SEEDS:,}"


def _sd(contrast: Contrast) -> float:
    """The sd of the differences, NaN where they do not vary but for rounding."""
    return math.nan if math.isnan(contrast.p) else contrast.sd


def _power(test: object, effect: float, n: int) -> float:
    value = float(test.power(effect, n, ALPHA))  # type: ignore[attr-defined]
    # Far out the noncentral t of scipy gives NaN, where the power is 1.
    return 1.0 if math.isnan(value) else value
