"""Two studies side by side: matching conditions, what each found against its baseline, what differs in how.

Published against ours, short against long. The studies share no random draws that a test could pair, so
differences between them are of means, with Welch's interval; differences within each stay paired by seed.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from reports.output.markdown import markdown
from reports.output.report import Report
from reports.reading.frames import StudyData, choose_study, load
from reports.reading.measures import BITS, LOAD, LOSS, PERPLEXITY, Measure
from reports.reading.origin import configurations, distinct, flatten
from reports.reading.study import Cell
from reports.reading.units import UnknownOption
from reports.sections.provenance import corpus_line, protocol_line
from reports.statistics.analysis import DEFAULT_DB
from reports.statistics.blocks import blocks
from reports.statistics.families import baseline_cell
from reports.statistics.inference import Array, Contrast, finite, unpaired, weighted_contrast
from reports.statistics.words import direction
from reports.tables import (
    DASH,
    Section,
    Table,
    done_of_all,
    interval,
    mean_spread,
    number,
    percent,
    probability,
    signed,
)

_MEASURES = (LOSS, PERPLEXITY, BITS, LOAD)


@dataclass(frozen=True)
class Match:
    """A condition that both studies have: its factors' values, and its key in each."""

    label: str
    first: Cell
    second: Cell


def compare_studies(connection: sa.Connection, first: str, second: str, db: str = DEFAULT_DB) -> str:
    """The comparison as markdown.

    Raises:
        NoSuchStudy: one of them is not in the database.
        UnknownOption: it is one study twice.
    """
    if first == second:
        raise UnknownOption(
            f"compare {first} {second}: a study has nothing to differ from itself in; name two"
        )
    one, two = (load(connection, choose_study(connection, name)[0]) for name in (first, second))
    return markdown(compose(one, two, db))


def compose(first: StudyData, second: StudyData, db: str = DEFAULT_DB) -> Report:
    """What differs in protocol first, since it decides what the numbers may say."""
    names = (first.study.name, second.study.name)
    found = matches(first, second)
    words = ["compare", *names, *(["--db", db] if db != DEFAULT_DB else [])]
    command = f"python cli.py {shlex.join(words)} > comparison.md"
    if found:
        sections = [_side_by_side(first, second, found), _effects(first, second, found)]
    else:
        text = f"No condition of {names[0]} has the same factors' values as one of {names[1]}."
        sections = [Section("Conditions", (text,))]
    return Report(
        title=f"{names[0]} and {names[1]}",
        answer=None,
        warnings=_warnings(first, second),
        facts=tuple((data.study.name, _line(data)) for data in (first, second)),
        sections=(_differences(first, second), *sections),
        appendix=(),
        command=command,
    )


def matches(first: StudyData, second: StudyData) -> list[Match]:
    """Conditions that agree in all that either study varies (the last part of a name counts).

    What one study varies and the other does not has there the value that its runs were told.
    """
    keys = _varied(first) | _varied(second)
    there = {_key(second, cell, keys): cell for cell in second.cells}
    return [
        Match(first.study.label(cell), cell, there[key])
        for cell in first.cells
        if (key := _key(first, cell, keys)) in there
    ]


def _varied(data: StudyData) -> set[str]:
    """What the study's conditions differ in: factors, and for named levels the keys that those set."""
    return {_last(key) for key in data.study.varied - data.study.levels.keys()}


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _key(data: StudyData, cell: Cell, keys: set[str]) -> frozenset[tuple[str, Any]]:
    """Each key with its value in the condition: its factors', its named level's, else its runs'."""
    runs = data.by_cell[cell]
    told = flatten(runs["config"].iloc[0]) if len(runs) else {}
    values: dict[str, Any] = {_last(name): value for name, value in told.items()}
    for factor, level in data.study.values(cell).items():
        named = data.study.levels.get(factor, {}).get(level)
        values |= {_last(k): v for k, v in named.items()} if named else {_last(factor): level}
    return frozenset((key, _comparable(values.get(key))) for key in keys)


def _comparable(value: Any) -> Any:
    """0.10 and 0.1, 2 and 2.0, as a number or as text, are one value."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _line(data: StudyData) -> str:
    return (
        f"{done_of_all(data.runs)} runs done; {protocol_line(data.study)}; corpus {corpus_line(data.study)}"
    )


def _warnings(first: StudyData, second: StudyData) -> tuple[str, ...]:
    lines = []
    if first.study.corpus_id != second.study.corpus_id or not first.study.corpus_id:
        lines.append(
            "The texts are not the same, or not known to be: losses and perplexities do not compare across "
            "texts and tokenizers; bits per byte come closer, and differences within a study compare best."
        )
    if first.study.protocol != second.study.protocol:
        lines.append(
            f"The protocols differ ({first.study.protocol}, {second.study.protocol}): under the published "
            "one the validation text is almost all in the training set."
        )
    return tuple(lines)


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
    names = {_last(key) for key in data.study.varied}
    found: dict[str, dict[str, None]] = {}
    for config in data.runs["config"]:
        for key, value in flatten(config).items():
            if _last(key) in names:
                found.setdefault(key, {})[value] = None
    return {key: f"varied: {_some(list(values))}" for key, values in found.items()}


def _some(values: list[str], most: int = 8) -> str:
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")


def _side_by_side(first: StudyData, second: StudyData, found: list[Match]) -> Section:
    names = (first.study.name, second.study.name)
    columns = ("Condition", *(f"n, {name}" for name in names))
    columns += tuple(f"{measure.label}, {name}" for measure in _MEASURES for name in names)
    columns += ("Loss: difference", "95 % interval")
    rows = []
    for match in found:
        pair = (first.by_cell[match.first], second.by_cell[match.second])
        done = [runs[runs["status"] == "done"] for runs in pair]
        shown = [_shown(runs, measure) for measure in _MEASURES for runs in done]
        apart = unpaired(done[0][LOSS.column], done[1][LOSS.column])
        difference = signed(apart.difference, 4), interval(apart.low, apart.high, 4)
        rows.append((match.label, *map(done_of_all, pair), *shown, *difference))
    return Section(
        "Conditions side by side",
        (),
        (Table(columns, tuple(rows), "l" + "r" * (len(columns) - 1)),),
        (
            f"Mean ± sample standard deviation over seeds. The difference is {names[0]} - {names[1]}, not "
            "paired, with Welch's 95 % interval.",
        ),
    )


def _shown(done: Any, measure: Measure) -> str:
    return mean_spread(done[measure.column], measure.decimals, "sample", len(done))


def _effects(first: StudyData, second: StudyData, found: list[Match]) -> Section:
    """Each matching condition against the same baseline condition, within each study."""
    wanted = baseline_cell(first)[0]
    base = next((match for match in found if match.first == wanted), found[0])
    others = [match for match in found if match is not base]
    sides = [(_by_seed(first, m.first, base.first), _by_seed(second, m.second, base.second)) for m in others]
    tests = sum(not math.isnan(unpaired(one, two).p) for one, two in sides) or 1
    rows = []
    for match, (one, two) in zip(others, sides, strict=True):
        effects = [weighted_contrast(each[:, None], [1.0]) for each in (one, two)]
        apart = unpaired(one, two, tests)
        shown = (signed(apart.difference, 4), interval(apart.low, apart.high, 4), probability(apart.p))
        rows.append((match.label, *_effect(effects[0]), *_effect(effects[1]), *shown, _signs(*effects)))
    names = (first.study.name, second.study.name)
    kinds = ("n", "Difference", "% of PPL", "95 % interval")
    columns = ("Condition", *(f"{kind}, {name}" for name in names for kind in kinds))
    columns += ("First - second", "95 % interval, together", "p", "Signs")
    return Section(
        "Effects side by side",
        (f"Each condition against {base.label}, in {LOSS.column}, paired by seed within each study.",),
        (Table(columns, tuple(rows), "l" + "r" * (len(columns) - 1)),),
        (
            "Differences within a study compare better than losses do: what a study's text and protocol add "
            "to every condition is not in them.",
            "First - second is the one study's effect minus the other's, by Welch's t, corrected for the "
            "table: where its interval holds 0, that they differ is not shown.",
            "Signs are given where both intervals exclude 0; one seed has no sign.",
        ),
    )


def _by_seed(data: StudyData, cell: Cell, base: Cell) -> Array:
    """The effect in each seed that has both conditions. Shape: (S,)."""
    matrix = blocks(data, LOSS.column)
    return finite(matrix.column(cell) - matrix.column(base))


def _effect(contrast: Contrast) -> tuple[str, ...]:
    return (
        str(contrast.n),
        signed(contrast.difference, 4) if contrast.n else DASH,
        percent(LOSS.percent(contrast.difference)),
        interval(contrast.low, contrast.high, 4) if contrast.n else number(math.nan),
    )


def _signs(one: Contrast, two: Contrast) -> str:
    ways = direction(one) * direction(two)
    return DASH if not ways else "the same" if ways > 0 else "opposite"
