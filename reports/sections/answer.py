"""The first screen: the question, the answer in plain sentences, and what an answer rests on.

The sentences are made from the verdicts alone. Everything else that a report says stands behind it:
reports/output/report.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from reports.reading.measures import Measure
from reports.reading.study import Cell
from reports.sections import head
from reports.sections.contrasts import provisional
from reports.statistics.analysis import Analysis, mean_perplexity
from reports.statistics.blocks import Weights
from reports.statistics.contrasts import Tested, TestedFamily
from reports.statistics.families import baseline_cell
from reports.statistics.inference import Contrast, finite
from reports.statistics.levels import Best, best_condition
from reports.tables import (
    DASH,
    Fact,
    Picture,
    Table,
    interval,
    listed,
    number,
    percent,
    ratio_interval,
    signed,
)
from runner.queue.where import counted

MAX_LINES = 8
"""Claims or comparisons on the first screen; the rest stand under findings and contrasts."""
MAX_NOTES = 3
_MOST_LEVELS = 10
"""Levels of a factor that a sentence names."""
ANSWER = "Answer"
"""Where the picture of the lines belongs."""
_PERCENT = "\u00a0%"
_MATTERS_NOT = "makes no difference that matters"


@dataclass(frozen=True)
class Line:
    """A claim, or a comparison of two levels where none was declared."""

    name: str
    metric: Measure
    contrast: Contrast
    ratio: bool
    """The contrast is of logarithms."""
    change: float
    """The difference in percent: of the perplexity for a loss, of the second side's mean otherwise."""
    margin: float
    """NaN where there is none."""
    verdict: str


@dataclass(frozen=True)
class Answer:
    """What a reader must have seen in ten seconds."""

    question: str
    """Empty where none was declared: an import has none."""
    sentences: tuple[str, ...]
    lines: tuple[Line, ...]
    more: int
    """Lines that did not fit."""
    notes: tuple[str, ...]
    """What changes how the numbers may be read."""
    missing: str
    limits: tuple[Fact, ...]
    """Scale, corpus, seeds."""
    looked: bool = False
    """The lines are claims as looks left them."""
    picture: Picture | None = None
    """The lines drawn: reports/figures/comparison.py."""

    @property
    def table(self) -> Table | None:
        """The lines as a table; None without any."""
        if not self.lines:
            return None
        one = len({line.metric.column for line in self.lines}) == 1
        what = f"Difference in {self.lines[0].metric.named}" if one else "Difference"
        together = any(line.contrast.tests > 1 for line in self.lines)
        between = "95 % interval, together" if together else "95 % interval"
        columns = (
            *("Claim" if self.declared else "Comparison", what, "In percent"),
            *("Interval of its look" if self.looked else between, "n"),
        )
        rows = tuple(_row(line, named=not one) for line in self.lines)
        return Table((*columns, "Verdict"), rows, "lrrrrl")

    @property
    def declared(self) -> bool:
        return any(line.verdict.isupper() for line in self.lines)


def answer(analysis: Analysis) -> Answer:
    """The first screen of a study, whatever is there of it."""
    lines = _claims(analysis) or _levels(analysis)
    notes = (*_diverged(analysis), *head.warnings(analysis))
    if len(notes) > MAX_NOTES:
        notes = (*notes[: MAX_NOTES - 1], f"And {len(notes) - MAX_NOTES + 1} more, under provenance.")
    return Answer(
        str(analysis.study.grid.get("question") or ""),
        tuple(_sentences(analysis)),
        lines[:MAX_LINES],
        max(0, len(lines) - MAX_LINES),
        notes,
        head.missing_line(analysis),
        head.limits(analysis),
        looked=bool(analysis.study.looks),
    )


def _diverged(analysis: Analysis) -> tuple[str, ...]:
    """Comparisons in which one side diverged more often: its loss is of the runs that survived."""
    named = [(judged.name, judged.failures) for judged in analysis.judged]
    named += [(t.comparison.label, t.failures) for family in _main_families(analysis) for t in family.tested]
    uneven = [(name, failures) for name, failures in named if failures.balance]
    if not uneven:
        return ()
    name, failures = max(uneven, key=lambda each: each[1].first + each[1].second)
    text = f"Diverged: {failures.first} of {failures.first_of} runs against {failures.second} of"
    more = f" (and {len(uneven) - 1} more)" if len(uneven) > 1 else ""
    return (f"{text} {failures.second_of} in {name}{more}; the losses are of the runs that survived.",)


def _row(line: Line, named: bool) -> tuple[str, ...]:
    contrast, decimals = line.contrast, line.metric.decimals
    column = f"{line.metric.column} " if named else ""
    if line.ratio:
        shown = f"{column}× {number(math.exp(contrast.difference), 3)}"
        between = ratio_interval(contrast.low, contrast.high)
    else:
        shown = column + signed(contrast.difference, decimals)
        between = interval(contrast.low, contrast.high, decimals, line.margin)
    return line.name, shown, _percent(line.change), between, str(contrast.n), line.verdict


def _percent(change: float) -> str:
    return DASH if math.isnan(change) else f"{percent(change)} %"


def _claims(analysis: Analysis) -> tuple[Line, ...]:
    """The declared claims, in the order in which they were declared."""
    return tuple(
        Line(
            judged.name,
            judged.measure,
            judged.contrast,
            judged.ratio,
            _change(analysis, judged.measure, judged.contrast, judged.weights, judged.ratio),
            judged.margin,
            provisional(judged.verdict, judged.to_come),
        )
        for judged in analysis.judged
    )


def _levels(analysis: Analysis) -> tuple[Line, ...]:
    """The comparisons of the factors' levels, or of the conditions where no factor has several."""
    return tuple(
        Line(
            tested.comparison.label,
            analysis.metric,
            tested.contrast,
            False,
            _change(analysis, analysis.metric, tested.contrast, tested.comparison.weights, False),
            math.nan if analysis.target.margin is None else analysis.target.margin,
            provisional(tested.word, tested.to_come),
        )
        for family in _main_families(analysis)
        for tested in family.tested
    )


def _main_families(analysis: Analysis) -> list[TestedFamily]:
    single = [family for family in analysis.families if len(family.family.factors) == 1]
    return single or list(analysis.families[:1])


def _change(analysis: Analysis, metric: Measure, contrast: Contrast, weights: Weights, ratio: bool) -> float:
    """A difference in percent; NaN where it would be a share of nothing."""
    if ratio or metric.logarithmic:
        return 100 * math.expm1(contrast.difference)
    matrix = analysis.matrices.get(metric.column)
    return math.nan if matrix is None else matrix.percent(weights, contrast.difference)


# --- the sentences ----------------------------------------------------------------------------------------


def _sentences(analysis: Analysis) -> list[str]:
    """What each factor does to the compared metric, then which condition is best."""
    told = [
        sentence
        for family in analysis.families
        if len(family.family.factors) == 1
        if (sentence := _effect(analysis, family))
    ]
    best = _best(analysis)
    return [*([best] if best else []), *told] or [_nothing(analysis)]


def _nothing(analysis: Analysis) -> str:
    """Why nothing can be compared: that a condition has no result may be the result."""
    if len(analysis.data.cells) == 1:
        return _alone(analysis)
    lost = [t for family in analysis.families[:1] for t in family.tested if t.failures.balance]
    if not lost:
        return "Nothing can be said yet: no two conditions have results."
    worst = max(lost, key=lambda tested: tested.failures.first + tested.failures.second)
    failures = worst.failures
    return (
        f"{worst.comparison.label} diverged in {failures.first} of {failures.first_of} runs, the baseline in "
        f"{failures.second} of {failures.second_of}: no two conditions have results to compare."
    )


def _alone(analysis: Analysis) -> str:
    """The mean of a study that has one condition."""
    (cell,) = analysis.data.cells
    values = finite(analysis.blocks.column(cell)) if analysis.blocks is not None else finite([])
    if not values.size:
        return "Nothing can be said yet: no run has a result."
    seeds = counted(values.size, "seed")
    mean = _level(analysis, cell, float(values.mean()), " is ")
    return f"There is one condition, and nothing to compare it with: its {mean} over {seeds}."


def _effect(analysis: Analysis, family: TestedFamily) -> str:
    """`Compared with noise_std 0.0: 0.1 costs 0.9 % and 0.5 costs 10.7 % of the perplexity.`"""
    (factor,) = family.family.factors
    standard = analysis.study.values(baseline_cell(analysis.data)[0])[factor]
    found = [t for t in family.tested if t.comparison.levels and standard in t.comparison.levels]
    if not any(tested.contrast.n for tested in found):
        return ""
    by_phrase: dict[str, list[str]] = {}
    for tested in found[:_MOST_LEVELS]:
        level, against = tested.comparison.levels or (None, None)
        first = against == standard
        by_phrase.setdefault(_phrase(analysis, tested, first), []).append(str(level if first else against))
    told = [f"{listed(levels)} {_plural(phrase, len(levels))}" for phrase, levels in by_phrase.items()]
    percentages = [at for at, said in enumerate(told) if _PERCENT in said]
    if analysis.metric.logarithmic and percentages:
        told[percentages[-1]] += " of the perplexity"
    text = f"Compared with {factor} {standard}: {listed(told)}"
    others = sorted({name for effect in family.depends_on for name in effect.factors} - {factor})
    text += f", on average; how much depends on {listed(others)}." if others else "."
    more = len(found) - _MOST_LEVELS
    return f"{text} Its {counted(more, 'further level')} stand below." if more > 0 else text


def _phrase(analysis: Analysis, tested: Tested, first: bool) -> str:
    """What a level does to the standard, from its word; `first` where it is the first side."""
    word = str(tested.word)
    if word.startswith("negligible"):
        return _MATTERS_NOT
    if word == "unclear":
        return "is open"
    contrast, weights = tested.contrast, tested.comparison.weights
    if not first:  # a rise by a half is undone by a fall by a third
        contrast = replace(contrast, difference=-contrast.difference)
        weights = {cell: -weight for cell, weight in weights.items()}
    change = abs(_change(analysis, analysis.metric, contrast, weights, False))
    if word in ("higher", "lower"):
        way = "higher" if (word == "higher") == first else "lower"
        return f"is {way} by {change:.1f}{_PERCENT}" if math.isfinite(change) else f"is {way}"
    worse = (word == "worse") == first
    size = f"{change:.1f}{_PERCENT}" if change >= 0.095 else f"{change:.2f}{_PERCENT}"
    if not math.isfinite(change):
        return "is worse" if worse else "is better"
    if analysis.metric.logarithmic:
        return f"costs {size}" if worse else f"saves {size}"
    return f"is worse by {size}" if worse else f"is better by {size}"


def _plural(phrase: str, count: int) -> str:
    verbs = {"makes": "make", "costs": "cost", "saves": "save", "is": "are"}
    verb, _, rest = phrase.partition(" ")
    return f"{verbs.get(verb, verb)} {rest}" if count > 1 else phrase


def _best(analysis: Analysis) -> str:
    """Which condition has the best mean, and how it stands to the baseline."""
    matrix, metric, study = analysis.blocks, analysis.metric, analysis.study
    baseline = baseline_cell(analysis.data)[0]
    found = None if matrix is None else best_condition(matrix, baseline, metric.higher_is_better)
    if matrix is None or found is None:
        return ""
    best = found.cell
    level = _level(analysis, best, float(finite(matrix.column(best)).mean()))
    if len(found.equal) + 1 == found.compared:
        return f"All {found.compared} conditions have the same {level}."
    so_far = "So far, " if matrix.pending.any() else ""
    word = "highest" if metric.higher_is_better else "lowest"
    lost, ended = found.diverged
    survived = f" (of the runs that survived: {lost} of its {ended} diverged)" if lost else ""
    text = f"{so_far}{study.label(best)} has the {word} {level}{survived}"
    if found.equal:
        text += f" (as {'has' if len(found.equal) == 1 else 'have'} {_some(map(study.label, found.equal))})"
    if best == baseline:
        text += ", and is the baseline"
    for tested in analysis.families[0].tested:
        if tested.comparison.weights.get(best, 0) > 0 and tested.contrast.n:
            change = _change(analysis, metric, tested.contrast, tested.comparison.weights, False)
            percentage = f"{percent(change)}{_PERCENT} against" if math.isfinite(change) else "against"
            text += f", {percentage} the baseline ({tested.word})"
    return f"{text}.{_by_shared_seeds(found, study.label(found.against), found.against == baseline)}"


def _by_shared_seeds(found: Best, against: str, is_baseline: bool) -> str:
    """How conditions were compared that do not have the same seeds: no mean of theirs says it."""
    if found.alike:
        return ""
    name = "the baseline" if is_baseline else against
    return f" Not every condition has every seed: each was compared over those that it shares with {name}."


def _some(labels: Iterable[str]) -> str:
    first, *others = labels
    return f"{first} and {len(others)} more" if others else first


def _level(analysis: Analysis, cell: Cell, mean: float, between: str = ", ") -> str:
    """`val loss, 7.2624 (PPL 1425.96)`."""
    metric = analysis.metric
    text = f"{metric.label.lower()}{between}{number(mean, metric.decimals)}"
    if not metric.logarithmic:
        return text
    return f"{text} (PPL {number(mean_perplexity(analysis.data.by_cell[cell][metric.column]), 2)})"
