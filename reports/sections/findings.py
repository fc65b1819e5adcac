"""Findings: a sentence a claim, made only from verdicts, and the numbers behind each.

The claims come from the study's grid, where they stood before the first run; they are judged by
reports/statistics/judgement.py. Where none was declared, the sentences are of the factors' levels.
"""

from __future__ import annotations

import math

from reports.reading.looks import Outcome
from reports.reading.measures import Measure
from reports.sections.contrasts import diverged, provisional
from reports.statistics.analysis import Analysis
from reports.statistics.anova import Effect
from reports.statistics.contrasts import Tested, TestedFamily
from reports.statistics.failures import Failures
from reports.statistics.inference import ALPHA, Contrast
from reports.statistics.judgement import Judged
from reports.tables import (
    DASH,
    Section,
    Table,
    interval,
    listed,
    percent,
    probability,
    ratio_interval,
    signed,
)
from runner.queue.where import counted

HEADING = "Findings"
_SENTENCES = 12
_READ_OFF = (
    "Every verdict is read off its interval. p is against no difference, equivalence p against a difference "
    "of the margin"
)
_AT_LOOKS = (
    "The study is looked at as it grows: every verdict is read off the interval of the look that decided "
    "it, which is wider than one of 95 %, as the looks and the open claims ask. Over all looks and claims a "
    "verdict is wrong in at most 5 % of studies. p is against no difference, equivalence p against a "
    "difference of the margin, both corrected alike. A look that decides a direction has the first below "
    ".05, one that decides an equivalence the second; that something is not worse is decided by one end of "
    "the interval, and may have neither."
)
_KINDS = {
    "less": "below 0",
    "greater": "above 0",
    "equivalent": "within the margin",
    "not_worse": "not worse by the margin",
}


def findings(analysis: Analysis) -> Section:
    """The sentences, and with declared claims a table of what neither they nor the first screen says."""
    judged = analysis.judged
    if not judged:
        return Section(HEADING, (*_diverged(analysis.families), *_undeclared(analysis)))
    columns = ("Claim", "Metric", "Should be", "Margin", "p", "Equivalence p", "Diverged")
    table = Table(columns, tuple(_row(j) for j in judged), "lll" + "r" * 4)
    sentences = (*_diverged(analysis.families), *(_sentence(j) for j in judged))
    return Section(HEADING, sentences, (table,), _notes(judged, bool(analysis.study.looks)))


def _diverged(families: tuple[TestedFamily, ...]) -> tuple[str, ...]:
    """A finding for each condition that diverged, or whose baseline did: tested before any loss."""
    tested = [t for t in (families[0].tested if families else ()) if t.failures.any]
    tests = sum(not math.isnan(t.failures.p) for t in tested)
    return tuple(_diverging(t.comparison.label, t.failures, tests) for t in tested[:_SENTENCES])


def _diverging(label: str, failures: Failures, tests: int) -> str:
    text = (
        f"{label} diverged in {failures.first} of {failures.first_of} runs, the baseline in "
        f"{failures.second} of {failures.second_of}"
    )
    if math.isnan(failures.p):
        return f"{text}: in the same seeds."
    p = min(1.0, tests * failures.p)
    way = "more often" if failures.balance > 0 else "less often"
    said = f"it diverges {way}" if p < ALPHA and failures.balance else "that may be chance"
    together = "" if tests == 1 else f", {tests} tests together {probability(p)}"
    return f"{text}: {said} (exact McNemar p {probability(failures.p)}{together})."


def _sentence(judged: Judged) -> str:
    """`SUPPORTED: the claim. a against b: worse, val_loss +0.0093 … . What qualifies it.`"""
    seeds = counted(judged.to_come, "seed")
    mark = f"PROVISIONAL: {seeds} to come. " if judged.to_come else ""
    text = f"{mark}{judged.verdict}: {judged.name}. {judged.what}: {judged.word}, "
    if not judged.weights:
        return f"{text}the study has no such conditions."
    text += _numbers(judged.measure, judged.contrast, judged.margin, judged.ratio, judged.outcome)
    return text + _failed(judged.failures) + _qualified(judged.depends_on)


def _numbers(
    known: Measure,
    contrast: Contrast,
    margin: float,
    ratio: bool = False,
    outcome: Outcome | None = None,
) -> str:
    metric, low, high = known.column, contrast.low, contrast.high
    if not contrast.n:
        return f"no seed has every condition of it with {metric}."
    seeds = f"n = {counted(contrast.n, 'seed')}"
    if low == high == 0:
        return f"{metric} is the same in every seed ({seeds})."
    estimate = f"{metric} {_difference(known, contrast, ratio)}"
    if math.isnan(contrast.p):
        if contrast.sd > 0:
            return f"{estimate} (no look was made at it yet; {seeds})."
        why = "one seed" if contrast.n == 1 else "the same difference in every seed"
        return f"{estimate} ({why}: no test is possible; {seeds})."
    name = "95 % interval" if contrast.tests == 1 else f"95 % interval of {contrast.tests} together"
    if outcome is not None:
        name = f"interval of its look {outcome.look}" if outcome.look else "interval of the last look"
    shown = ratio_interval(low, high) if ratio else interval(low, high, known.decimals, margin)
    return f"{estimate} ({name} {shown}; {seeds})."


def _difference(known: Measure, contrast: Contrast, ratio: bool) -> str:
    if ratio:
        return f"{signed(100 * math.expm1(contrast.difference), 1)} %"
    share = f", {percent(known.percent(contrast.difference))} % of the PPL" if known.logarithmic else ""
    unit = f" {known.unit}" if known.unit else ""
    return f"{signed(contrast.difference, known.decimals)}{unit}{share}"


def _failed(failures: Failures) -> str:
    """` Diverged: 5 of 10 runs against 0 of 10 …`: what a comparison of the runs that survived leaves out."""
    if not failures.any:
        return ""
    p = "" if math.isnan(failures.p) else f", exact McNemar p {probability(failures.p)}"
    sides = f"{failures.first} of {failures.first_of} runs"
    text = f" Diverged: {sides} against {failures.second} of {failures.second_of}{p}"
    if failures.balance:
        text += "; the losses are of the runs that survived, and do not make up for it"
    return f"{text}."


def _qualified(effects: tuple[Effect, ...]) -> str:
    """` Qualified: …`: an average over conditions in which the effect is not the same."""
    if not effects:
        return ""
    names, p = " × ".join(effects[0].factors), probability(effects[0].p)
    return f" Qualified: {names} interact (p {p}), so this is an average of unlike effects."


def _undeclared(analysis: Analysis) -> tuple[str, ...]:
    families = analysis.families
    margin = math.nan if analysis.target.margin is None else analysis.target.margin
    sentences = [
        _told(family, tested, margin)
        for family in [f for f in families if len(f.family.factors) == 1] or families[:1]
        for tested in family.tested
    ]
    if not sentences:
        return ("No claims were declared with this study, and it has no factors to compare.",)
    more = len(sentences) - _SENTENCES
    return (
        "No claims were declared with this study. These words are on the levels of its factors, the "
        "first named against the second, each factor a family of its own.",
        *sentences[:_SENTENCES],
        *([f"And {more} more, under paired contrasts."] if more > 0 else []),
    )


def _told(family: TestedFamily, tested: Tested, margin: float) -> str:
    text = f"{tested.comparison.label}: {provisional(tested.word, tested.to_come)}, "
    text += _numbers(family.measure, tested.contrast, margin) + _failed(tested.failures)
    return text + _qualified(family.depends_on)


def _row(judged: Judged) -> tuple[str, ...]:
    return (
        *(judged.name, judged.metric, _KINDS[judged.kind]),
        DASH if math.isnan(judged.margin) else f"{judged.margin:.4g}",
        probability(judged.contrast.p),
        probability(judged.equivalence_p),
        diverged(judged.failures),
    )


def _together(judged: tuple[Judged, ...]) -> str:
    """What the intervals are, of as many claims as have one."""
    tests = sum(not math.isnan(j.contrast.p) for j in judged)
    if not tests:
        return "No claim can be tested: none has two seeds whose differences vary."
    if tests == 1:
        return f"One claim can be tested: its interval holds in 95 % of studies. {_READ_OFF}."
    return (
        f"The {tests} claims that can be tested are one family: in 95 % of studies all their intervals hold "
        f"(Bonferroni). {_READ_OFF}, both corrected."
    )


def _notes(judged: tuple[Judged, ...], looks: bool) -> tuple[str, ...]:
    ratios = dict.fromkeys(j.measure.column for j in judged if j.ratio)
    verb = "is compared as a ratio" if len(ratios) == 1 else "are compared as ratios"
    return (
        "The claims were declared in the grid, before the runs. Differences are paired by seed and averaged "
        "over the factors that a claim does not name; n counts the seeds that have every condition in it.",
        _AT_LOOKS if looks else _together(judged),
        "Better or worse: where the interval excludes 0; negligible: where it lies inside the "
        "margin; both where both; unclear otherwise. SUPPORTED: the interval is where the claim says. "
        "REFUTED: it is where the claim's opposite says, for equivalent and not worse beyond the margin. "
        "OPEN: neither, fewer than 3 seeds, or diverged runs in the way. PROVISIONAL: seeds are to come.",
        *((f"{listed(ratios)} {verb}, by the logarithm: the spread grows with the size.",) if ratios else ()),
    )
