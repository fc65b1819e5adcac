"""The first screen: the question, the answer in plain sentences, and what an answer rests on.

The sentences are made from the verdicts alone. Everything else that a report says stands behind it:
reports/output/report.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.reading.measures import Measure
from reports.reading.study import Cell
from reports.sections import head
from reports.sections.contrasts import provisional
from reports.statistics.analysis import Analysis, mean_perplexity
from reports.statistics.blocks import Weights
from reports.statistics.contrasts import Tested, TestedFamily
from reports.statistics.families import baseline_cell
from reports.statistics.inference import Contrast, finite
from reports.tables import DASH, Fact, Picture, Table, interval, listed, number, percent, signed

MAX_LINES = 8
"""Claims or comparisons on the first screen; the rest stand under findings and contrasts."""
MAX_NOTES = 3
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
        shown, between = f"{column}× {number(math.exp(contrast.difference), 3)}", _ratio_interval(contrast)
    else:
        shown, between = (
            column + signed(contrast.difference, decimals),
            interval(contrast.low, contrast.high, decimals),
        )
    return line.name, shown, _percent(line.change), between, str(contrast.n), line.verdict


def _ratio_interval(contrast: Contrast) -> str:
    low, high = (100 * math.expm1(value) for value in (contrast.low, contrast.high))
    return DASH if math.isnan(low) else f"{number(low, 1)} to {number(high, 1)} %"


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
    """A difference in percent."""
    if ratio or metric.logarithmic:
        return 100 * math.expm1(contrast.difference)
    by_cell = analysis.data.by_cell
    against = [by_cell[cell] for cell, weight in weights.items() if weight < 0 and cell in by_cell]
    values = finite([value for runs in against for value in runs[metric.column]])
    return 100 * contrast.difference / abs(float(values.mean())) if values.any() else math.nan


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
    lost = [t for family in analysis.families[:1] for t in family.tested if t.failures.balance]
    if not lost:
        return "Nothing can be said yet: no two conditions have results."
    worst = max(lost, key=lambda tested: tested.failures.first + tested.failures.second)
    failures = worst.failures
    return (
        f"{worst.comparison.label} diverged in {failures.first} of {failures.first_of} runs, the baseline in "
        f"{failures.second} of {failures.second_of}: no two conditions have results to compare."
    )


def _effect(analysis: Analysis, family: TestedFamily) -> str:
    """`Compared with noise_std 0.0: 0.1 costs 0.9 % and 0.5 costs 10.7 % of the perplexity.`"""
    (factor,) = family.family.factors
    standard = analysis.study.values(baseline_cell(analysis.data)[0])[factor]
    by_phrase: dict[str, list[str]] = {}
    for tested in family.tested:
        level, against = tested.comparison.levels or (None, None)
        sign = 1.0 if against == standard else -1.0
        if standard in (level, against):
            phrase = _phrase(analysis, tested, sign)
            by_phrase.setdefault(phrase, []).append(str(level if sign > 0 else against))
    if not by_phrase:
        return ""
    told = [f"{listed(levels)} {_plural(phrase, len(levels))}" for phrase, levels in by_phrase.items()]
    text = f"Compared with {factor} {standard}: {listed(told)}"
    if analysis.metric.logarithmic and _PERCENT in text:
        text += " of the perplexity"
    others = sorted({name for effect in family.depends_on for name in effect.factors} - {factor})
    return f"{text}, on average; how much depends on {listed(others)}." if others else f"{text}."


def _phrase(analysis: Analysis, tested: Tested, sign: float) -> str:
    """What a level does, from its word; `sign` is -1 where the level is the second side."""
    word = str(tested.word)
    if word.startswith("negligible"):
        return _MATTERS_NOT
    if word == "unclear":
        return "is open"
    change = abs(_change(analysis, analysis.metric, tested.contrast, tested.comparison.weights, False))
    if word in ("higher", "lower"):
        way = "higher" if (word == "higher") == (sign > 0) else "lower"
        return f"is {way} by {change:.1f}{_PERCENT}" if math.isfinite(change) else f"is {way}"
    worse = (word == "worse") == (sign > 0)
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
    if analysis.blocks is None or len(analysis.data.cells) < 2:
        return ""
    means = {
        cell: float(values.mean())
        for cell in analysis.blocks.cells
        if (values := finite(analysis.blocks.column(cell))).size
    }
    if len(means) < 2:
        return ""
    metric = analysis.metric
    choose, word = (max, "highest") if metric.higher_is_better else (min, "lowest")
    best = choose(means, key=lambda cell: means[cell])
    text = f"{analysis.study.label(best)} has the {word} {_level(analysis, best, means[best])}"
    if best == baseline_cell(analysis.data)[0]:
        return f"{text}, and is the baseline."
    for tested in analysis.families[0].tested:
        if tested.comparison.weights.get(best, 0) > 0:
            change = _change(analysis, metric, tested.contrast, tested.comparison.weights, False)
            return f"{text}, {percent(change)}{_PERCENT} against the baseline ({tested.word})."
    return f"{text}."


def _level(analysis: Analysis, cell: Cell, mean: float) -> str:
    """`val loss, 7.2624 (PPL 1425.96)`."""
    metric = analysis.metric
    text = f"{metric.label.lower()}, {number(mean, metric.decimals)}"
    if not metric.logarithmic:
        return text
    return f"{text} (PPL {number(mean_perplexity(analysis.data.by_cell[cell][metric.column]), 2)})"
