"""Two studies side by side: matching conditions, what each found against its baseline, what differs in how.

Published against ours, short against long. Computed by reports/output/matching.py.
"""

from __future__ import annotations

import math
import shlex

import pandas as pd
import sqlalchemy as sa

from reports.output.markdown import markdown
from reports.output.matching import (
    Effect,
    Match,
    common,
    effects,
    last,
    levels,
    matches,
    repeated,
    sign_of,
)
from reports.output.report import Report
from reports.reading.frames import StudyData, choose_study, load
from reports.reading.measures import LOAD, Measure
from reports.reading.origin import configurations, distinct, flatten
from reports.reading.rows import by_seed, recorded
from reports.reading.units import UnknownOption
from reports.sections.answer import Answer
from reports.sections.provenance import corpus_line, protocol_line
from reports.statistics.analysis import DEFAULT_DB
from reports.statistics.inference import Contrast
from reports.tables import (
    DASH,
    Section,
    Table,
    done_of_all,
    interval,
    listed,
    mean_spread,
    number,
    percent,
    probability,
    signed,
)
from runner.queue.where import counted

_NAMED = 3
"""Conditions that the first screen names."""


def compare_studies(connection: sa.Connection, first: str, second: str, db: str = DEFAULT_DB) -> str:
    """The comparison as markdown.

    Raises:
        UnknownOption: it is one study twice, or the second does not measure what the first is about.
    """
    if first == second:
        raise UnknownOption(
            f"compare {first} {second}: a study has nothing to differ from itself in; name two"
        )
    one, two = (load(connection, choose_study(connection, name)[0]) for name in (first, second))
    return markdown(compose(one, two, db))


def compose(first: StudyData, second: StudyData, db: str = DEFAULT_DB) -> Report:
    """The short answer, then what differs in protocol, since it decides what the numbers may say."""
    names = (first.study.name, second.study.name)
    found = matches(first, second)
    sections = [_differences(first, second)]
    notes = [note for _, note in _obstacles(first, second)]
    if found:
        metric = first.study.measure(first.study.primary)
        if metric.column not in second.study.measures:
            raise UnknownOption(f"compare {' '.join(names)}: {names[1]} does not measure {metric.column}")
        base, apart = common(first, found), levels(first, second, metric.column, found)
        each = effects(first, second, metric.column, found, base)
        sentences = [_agreement(each, base.label), _better(first, second, metric, apart)]
        sections.append(_side_by_side(first, second, metric, found, apart))
        sections += [_effects(names, metric, each, base.label)] if each else []
        notes += _twice(repeated(first, second, metric.column, found), names, metric)
    else:
        sentences = [f"No condition of {names[0]} has the same factors' values as one of {names[1]}."]
    words = ["compare", *names, *(["--db", db] if db != DEFAULT_DB else [])]
    return Report(
        title=f"{names[0]} and {names[1]}",
        answer=Answer(
            question="",
            sentences=tuple(sentences),
            lines=(),
            more=0,
            notes=tuple(notes),
            missing=_missing(first, second),
            limits=tuple((data.study.name, _line(data)) for data in (first, second)),
        ),
        sections=tuple(sections),
        appendix=(),
        command=f"python cli.py {shlex.join(words)} > comparison.md",
    )


# --- the first screen -------------------------------------------------------------------------------------


def _agreement(each: list[Effect], base: str) -> str:
    """Whether the conditions do in one study what they do in the other."""
    if not each:
        return f"One condition matches, {base}: there is no effect to set beside another."
    signs = [effect.sign for effect in each]
    opposite = [effect.label for effect in each if effect.sign < 0]
    apart = [effect.label for effect in each if sign_of(effect.apart)]
    told = [
        f"{_have(signs.count(1))} the same sign in both studies",
        f"{_have(len(opposite))} opposite signs{_named(opposite)}",
        f"{signs.count(0) or 'none'} {'is' if signs.count(0) < 2 else 'are'} open",
    ]
    differ = f"{len(apart) or 'none'} {'is' if len(apart) < 2 else 'are'} shown to differ in size"
    what = f"Of {len(each)} effects" if len(each) > 1 else "Of one effect"
    return f"{what} against {base}, {listed(told)}; {differ}{_named(apart)}."


def _have(count: int) -> str:
    return f"{count or 'none'} {'has' if count < 2 else 'have'}"


def _named(labels: list[str]) -> str:
    """` (noise_std=0.1; noise_std=0.5)`, or nothing."""
    more = "; …" if len(labels) > _NAMED else ""
    return f" ({'; '.join(labels[:_NAMED])}{more})" if labels else ""


def _better(first: StudyData, second: StudyData, metric: Measure, apart: list[Contrast]) -> str:
    """Which study has the lower values, where they compare at all."""
    name = metric.label.lower()
    if reasons := [what for what, _ in _obstacles(first, second)]:
        return f"Their values of {name} do not compare: {listed(reasons)}."
    ways = [sign_of(contrast) for contrast in apart]
    told = [
        f"{data.study.name} has the lower {name} in {ways.count(way)}"
        for data, way in ((first, -1), (second, 1))
        if ways.count(way)
    ]
    if not told:
        return f"Their values of {name} are not shown to differ in any condition."
    return f"Of {counted(len(apart), 'condition')}, {listed(told)}; {ways.count(0)} are open."


def _obstacles(first: StudyData, second: StudyData) -> tuple[tuple[str, str], ...]:
    """Why losses of the two do not compare, in a few words and in a note."""
    found = []
    if not (first.study.has_text or second.study.has_text):
        one, two = first.study.facts, second.study.facts
        unlike = [label for label in {**one, **two} if one.get(label) != two.get(label)]
        note = f"What the programs say of the studies differs: {', '.join(unlike)}."
        return ((f"they are not the same in {listed(unlike)}", note),) if unlike else ()
    if first.study.corpus_id != second.study.corpus_id or not first.study.corpus_id:
        note = (
            "The texts are not the same, or not known to be: losses and perplexities do not compare across "
            "texts and tokenizers; bits per byte come closer, and differences within a study compare best."
        )
        found.append(("the texts are not known to be the same", note))
    if first.study.protocol != second.study.protocol:
        note = (
            f"The protocols differ ({first.study.protocol}, {second.study.protocol}): under the published "
            "one the validation text is almost all in the training set."
        )
        found.append(("the protocols differ", note))
    return tuple(found)


def _twice(count: int, names: tuple[str, str], metric: Measure) -> list[str]:
    """That the studies share runs: what both say of those, one run says."""
    if not count:
        return []
    one = count == 1
    runs = "1 run is" if one else f"{count} runs are"
    return [
        f"{runs} in both {names[0]} and {names[1]}, of the same seed and with the same "
        f"{metric.label.lower()} to the last digit: that the studies agree in {'it' if one else 'them'} is "
        "no second finding, and the intervals between the studies do not hold: they are for other runs."
    ]


def _missing(first: StudyData, second: StudyData) -> str:
    told = [
        f"{missing} of {len(data.runs)} runs of {data.study.name} have no result"
        for data in (first, second)
        if (missing := len(data.runs) - len(data.done))
    ]
    return f"{listed(told)}." if told else "Nothing: all runs are done."


def _line(data: StudyData) -> str:
    study = data.study
    text = (protocol_line(study), f"corpus {corpus_line(study)}") if study.has_text else ()
    facts = (f"{label} {said}" for label, said in study.further_facts)
    return "; ".join((f"{done_of_all(data.runs)} runs done", *text, *facts))


# --- the tables -------------------------------------------------------------------------------------------


def _differences(first: StudyData, second: StudyData) -> Section:
    """Keys of the configuration that are not the same in both."""
    heading = "What differs"
    one, two = (_told(data) for data in (first, second))
    rows = [
        (key, one.get(key, "not recorded"), two.get(key, "not recorded"))
        for key in dict.fromkeys([*one, *two])
        if one.get(key) != two.get(key)
    ]
    if not rows:
        return Section(heading, ("Nothing that was recorded: the configurations are the same.",))
    return Section(heading, (), (Table(("", first.study.name, second.study.name), tuple(rows), "lll"),))


def _told(data: StudyData) -> dict[str, str]:
    told = {"protocol": data.study.protocol, "corpus": data.study.corpus}
    told |= {key: " or ".join(distinct(v.values())) for key, v in configurations(data).items()}
    told |= _varied_values(data)
    told["seeds"] = ", ".join(map(str, sorted(set(data.runs["seed"]))))
    told["scale"] = str(data.study.grid.get("scale", "unknown"))
    return told


def _varied_values(data: StudyData) -> dict[str, str]:
    """Key → `varied: 0.0, 0.1, 0.5`, of the keys that the study's conditions set."""
    names = {last(key) for key in data.study.varied}
    found: dict[str, dict[str, None]] = {}
    for config in data.runs["config"]:
        for key, value in flatten(config).items():
            if last(key) in names:
                found.setdefault(key, {})[value] = None
    return {key: f"varied: {_some(list(values))}" for key, values in found.items()}


def _some(values: list[str], most: int = 8) -> str:
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")


def _side_by_side(
    first: StudyData, second: StudyData, metric: Measure, found: list[Match], apart: list[Contrast]
) -> Section:
    names = (first.study.name, second.study.name)
    wanted = [*first.study.results, *(m for name, m in first.study.measures.items() if name == LOAD)]
    shared = [
        m
        for m in wanted
        if m.column in second.study.measures
        and any(recorded(data.done, [m.column]) for data in (first, second))
    ]
    columns = ("Condition", *(f"n, {name}" for name in names))
    columns += tuple(f"{measure.label}, {name}" for measure in shared for name in names)
    columns += (f"{metric.label}: difference", "95 % interval, together")
    rows = []
    for match, difference in zip(found, apart, strict=True):
        pair = (first.by_cell[match.first], second.by_cell[match.second])
        done = [runs[runs["status"] == "done"] for runs in pair]
        shown = [_shown(runs, measure) for measure in shared for runs in done]
        between = (
            signed(difference.difference, metric.decimals),
            interval(difference.low, difference.high, metric.decimals),
        )
        rows.append((match.label, *map(done_of_all, pair), *shown, *between))
    return Section(
        "Conditions side by side",
        (),
        (Table(columns, tuple(rows), "l" + "r" * (len(columns) - 1)),),
        (
            f"Mean ± sample standard deviation over seeds. The difference is {names[0]} - {names[1]}, not "
            "paired, with Welch's interval; the intervals of the table hold together.",
        ),
    )


def _shown(done: pd.DataFrame, measure: Measure) -> str:
    values = by_seed(done[[measure.column]], done["seed"])[measure.column]
    return mean_spread(values, measure.decimals, "sample", len(values))


def _effects(names: tuple[str, str], metric: Measure, each: list[Effect], base: str) -> Section:
    """Each matching condition against the same baseline condition, within each study."""
    rows = tuple(
        (
            *(effect.label, *_effect(metric, effect.first), *_effect(metric, effect.second)),
            signed(effect.apart.difference, metric.decimals),
            interval(effect.apart.low, effect.apart.high, metric.decimals),
            *(probability(effect.apart.p), {1: "the same", -1: "opposite", 0: DASH}[effect.sign]),
        )
        for effect in each
    )
    kinds = ("n", "Difference", *(("% of PPL",) if metric.logarithmic else ()), "95 % interval, together")
    columns = ("Condition", *(f"{kind}, {name}" for name in names for kind in kinds))
    columns += ("First - second", "95 % interval, together", "p", "Signs")
    return Section(
        "Effects side by side",
        (f"Each condition against {base}, in {metric.column}, paired by seed within each study.",),
        (Table(columns, rows, "l" + "r" * (len(columns) - 1)),),
        (
            "Differences within a study compare better than losses do: what a study's text and protocol add "
            "to every condition is not in them.",
            "First - second is the one study's effect minus the other's, by Welch's t, corrected for the "
            "table: where its interval holds 0, that they differ is not shown.",
            "The intervals of a column hold together. Signs are given where both intervals exclude 0, over "
            "three seeds and more.",
        ),
    )


def _effect(metric: Measure, contrast: Contrast) -> tuple[str, ...]:
    return (
        str(contrast.n),
        signed(contrast.difference, metric.decimals) if contrast.n else DASH,
        *((percent(metric.percent(contrast.difference)),) if metric.logarithmic else ()),
        interval(contrast.low, contrast.high, metric.decimals) if contrast.n else number(math.nan),
    )
