"""The best level of each factor: marginal means, differences to the best, what is surely better.

Computed by reports/statistics/levels.py.
"""

from __future__ import annotations

from typing import Any

from reports.statistics.analysis import Analysis
from reports.statistics.inference import Contrast
from reports.statistics.levels import Levels, rank
from reports.tables import DASH, Section, Table, interval, listed, number, signed

HEADING = "Best level"


def best_levels(analysis: Analysis) -> Section | None:
    """A table a factor, or a sentence on why there is none.

    None where nothing varies or was measured, and for a measure of which neither more nor less is better.
    """
    study, matrix = analysis.study, analysis.blocks
    varied = [factor for factor, levels in study.factors.items() if len(levels) > 1]
    if matrix is None or not varied or analysis.metric.better == "none":
        return None
    found = {name: rank(study, matrix, name, analysis.metric.higher_is_better) for name in varied}
    ranked = [levels for levels in found.values() if isinstance(levels, Levels)]
    reasons = [f"{name}: not compared: {why}." for name, why in found.items() if isinstance(why, str)]
    tables = tuple(_table(levels, varied, analysis.metric.decimals) for levels in ranked)
    notes = _notes(analysis) if ranked else ()
    return Section(HEADING, (*map(_sentence, ranked), *reasons), tables, notes)


def _sentence(found: Levels) -> str:
    best = found.levels[found.best]
    beaten = found.beaten(found.best)
    rest = [level for level in found.levels if level != best and level not in beaten]
    text = f"{found.factor}: {best} has the best mean"
    if not rest:
        text += "; it is surely better than every other level compared."
    elif beaten:
        text += f"; it is surely better than {_named(beaten)}, not surely than {_named(rest)}."
    else:
        text += "; it is not surely better than any other level."
    for level, (lost, ended) in found.diverged.items():
        text += f" {level} is not compared: {lost} of {ended} of its runs diverged, more than of others."
    if found.strata[0] < found.strata[1]:
        text += f" Averaged over {found.strata[0]} of {found.strata[1]} combinations of the other factors."
    seeds = "seed is" if found.to_come == 1 else "seeds are"
    return text + (f" PROVISIONAL: {found.to_come} {seeds} still to come." if found.to_come else "")


def _table(found: Levels, varied: list[str], decimals: int) -> Table:
    others = [name for name in varied if name != found.factor]
    averaged = f", averaged over {listed(others)}" if others else ""
    columns = (found.factor, "n", "Mean", "Difference to the best", "95 % interval, together")
    return Table(
        (*columns, "Surely better than"),
        tuple(_row(found, i, decimals) for i in range(len(found.levels))),
        "lrrrrl",
        f"Levels of {found.factor}{averaged}",
    )


def _row(found: Levels, i: int, decimals: int) -> tuple[str, ...]:
    level, mean = str(found.levels[i]), number(float(found.means[i]), decimals)
    n, beaten = str(len(found.values)), _named(found.beaten(i)) or DASH
    if i == found.best:
        return f"{level} (best)", n, mean, DASH, DASH, beaten
    behind: Contrast = found.differences[i, found.best]
    reach = interval(behind.low, behind.high, decimals)
    return level, n, mean, signed(behind.difference, decimals), reach, beaten


def _named(levels: list[Any]) -> str:
    return listed(str(level) for level in levels) if levels else ""


def _notes(analysis: Analysis) -> tuple[str, ...]:
    notes = (
        f"In {analysis.metric.named}. Means are over the n seeds that have every level, the other factors "
        "averaged over within each seed; differences are paired by seed, level - best.",
        "Which level is best is read off the same data, so the intervals of a table hold together over all "
        "pairs of its levels (Bonferroni), and so do the words: surely better is where the interval of that "
        "pair excludes 0, over 3 seeds and more. A dash for an interval: the same difference in every "
        "seed, or fewer than two seeds.",
        "A best level averaged over others need not be the best at each of theirs: see the interactions "
        "under Paired contrasts, which has n and p of each pair.",
    )
    if analysis.responses:
        named = listed(analysis.responses)
        return (*notes, f"The spread of these means, and a fit through them: Response to {named}.")
    return notes
