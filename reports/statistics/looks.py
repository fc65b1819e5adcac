"""A look at a study: which claims it decides, which of the conditions the others need, and if it is the last.

Each claim is read off its repeated confidence interval (Jennison and Turnbull 1989), an interval of the
look's level, by the words that every claim is judged with. Several claims are tested by the group-sequential
Holm procedure (Ye et al. 2013): those that are open share .05, and what is decided leaves its share to them.
The levels: reports/statistics/sequential.py. The transaction that stores a look: runner/queue/looks.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from reports.reading.looks import Outcome
from reports.statistics.blocks import Weights
from reports.statistics.failures import Failures
from reports.statistics.inference import ALPHA, Contrast
from reports.statistics.power import power as fixed_power
from reports.statistics.sequential import Design, adjusted, levels, t_p, t_reach, t_statistics
from reports.statistics.words import Kind, verdict

_STUDIES, _SEED = 40_000, 18
"""Of the simulation that says what a design is worth: a power within half a point."""


@dataclass(frozen=True)
class Case:
    """A claim before it is tested."""

    name: str
    kind: Kind
    contrast: Contrast
    margin: float
    """NaN where there is none."""
    higher_is_better: bool = False
    failures: Failures | None = None
    weights: Weights | None = None
    """Of the conditions that it compares."""


def ending(outcomes: Sequence[Outcome], last: bool) -> str:
    """Why there are no further seeds; empty where there are."""
    undecided = sum(not outcome.look for outcome in outcomes)
    if not undecided:
        return "every claim is decided"
    if not any(outcome.open for outcome in outcomes):
        few = "the open claim is" if undecided == 1 else f"the {undecided} open claims are"
        return f"{few} unlikely to be decided by the seeds that are left"
    return "the last look: no further seeds were declared" if last else ""


def decide(
    design: Design, number: int, cases: Sequence[Case], before: Sequence[Outcome] = ()
) -> list[Outcome]:
    """What a look decides, in the order of the claims.

    Args:
        number: of looks before this one.
        before: what the look before left; empty at the first.
    """
    found: dict[int, Outcome] = {}
    for i, outcome in enumerate(before):
        # Tested again only with new seeds: a level that grows must not be tried twice on the same ones.
        if outcome.look or cases[i].contrast.n <= outcome.n:
            found[i] = outcome
    undecided = len(cases) - sum(bool(outcome.look) for outcome in found.values())
    waiting = [i for i in range(len(cases)) if i not in found]
    while waiting:
        tests = undecided
        tested = {i: _tested(design, number, cases[i], tests) for i in waiting}
        decided = [i for i in waiting if tested[i].look]
        found |= {i: tested[i] for i in decided or waiting}
        waiting = [i for i in waiting if i not in found]
        undecided -= len(decided)
    return [found[i] for i in range(len(cases))]


def _tested(design: Design, number: int, case: Case, tests: int) -> Outcome:
    """One claim at a look, corrected for `tests` of them."""
    level = levels(design, ALPHA / tests)[number]
    contrast = repeated(case.contrast, level, tests)
    said = verdict(case.kind, contrast, case.margin, case.higher_is_better, case.failures)
    power = math.nan if said != "OPEN" else conditional_power(design, number, case, tests)
    return Outcome(
        name=case.name,
        n=contrast.n,
        difference=contrast.difference,
        sd=contrast.sd,
        df=contrast.df,
        low=contrast.low,
        high=contrast.high,
        p=_adjusted(design, number, contrast, 0.0),
        equivalence_p=_adjusted(design, number, contrast, case.margin) if case.margin > 0 else math.nan,
        level=level,
        tests=tests,
        verdict=said,
        look=0 if said == "OPEN" else number + 1,
        power=power,
        futile=design.futility is not None and power < design.futility,
    )


@dataclass(frozen=True)
class Worth:
    """What looks are worth for a claim whose true effect is this many sd."""

    effect: float
    power: float
    """The share of studies that support it."""
    fixed: float
    """The power of a study of as many seeds as the last look, without looks."""
    seeds: float
    """How many it takes on average until it is decided, or to the last look."""


def worth(design: Design, effect: float, tests: int = 1) -> Worth:
    """What a design is worth for a claim of a direction, one of `tests` that stay open; simulated."""
    t = t_statistics(np.random.default_rng(_SEED), design.seeds, _STUDIES, effect)
    p = np.stack([t_p(t[:, look], count - 1) for look, count in enumerate(design.seeds)], axis=1)
    decides = p < np.array(levels(design, ALPHA / tests))
    decides[:, -1] |= ~decides.any(axis=1)  # the end, decided or not
    at = decides.argmax(axis=1)
    rows = np.arange(_STUDIES)
    right = (p[rows, at] < np.array(levels(design, ALPHA / tests))[at]) & (t[rows, at] > 0)
    return Worth(
        effect,
        power=float(right.mean()),
        fixed=fixed_power("greater", effect, math.nan, design.seeds[-1], tests),
        seeds=float(np.array(design.seeds)[at].mean()),
    )


def repeated(contrast: Contrast, level: float, tests: int) -> Contrast:
    """The contrast with its interval at a look's level; without spread as it was."""
    if math.isnan(contrast.p) or not contrast.sd > 0:
        return contrast
    reach = t_reach(level, contrast.df) * contrast.standard_error
    return replace(contrast, low=contrast.difference - reach, high=contrast.difference + reach, tests=tests)


def _adjusted(design: Design, number: int, contrast: Contrast, margin: float) -> float:
    """The p against no difference, or against one of the margin, corrected for looks and claims.

    Against the margin it is twice the larger of two one-sided p values, as in
    reports/statistics/inference.py: each test has half the level.
    """
    if math.isnan(contrast.p):
        return math.nan
    if not contrast.sd > 0:
        return 0.0 if margin else contrast.p
    size = margin - abs(contrast.difference) if margin else abs(contrast.difference)
    one_sided = float(special.stdtr(contrast.df, -size / contrast.standard_error))
    return adjusted(design, number, min(1.0, 2 * one_sided), contrast.tests)


def conditional_power(design: Design, number: int, case: Case, tests: int) -> float:
    """The chance that the last look decides the claim either way, if difference and sd are what they seem.

    By the normal distribution of the final mean (Lan and Wittes 1988, under the current trend). It stops a
    claim, and never makes a boundary easier: the error stays what it is if nobody heeds it (not binding).
    NaN at the last look and where there is no spread.
    """
    contrast = case.contrast
    further = design.seeds[-1] - design.seeds[number]
    if not further or math.isnan(contrast.p) or not contrast.sd > 0:
        return math.nan
    total = contrast.n + further
    half = t_reach(levels(design, ALPHA / tests)[-1], total - 1) * contrast.sd / math.sqrt(total)
    spread = contrast.sd * math.sqrt(further) / total
    mean = -contrast.difference if case.higher_is_better else contrast.difference

    def below(end: float) -> float:
        """The chance that the final mean is below it; above 0 is worse."""
        return float(special.ndtr((end - mean) / spread))

    if case.kind == "equivalent":
        room = max(0.0, case.margin - half)
        return below(room) - below(-room) + 1 - below(case.margin + half) + below(-case.margin - half)
    if case.kind == "not_worse":
        return below(case.margin - half) + 1 - below(case.margin + half)
    return 1 - below(half) + below(-half)
