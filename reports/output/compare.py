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
from reports.reading.origin import configurations, distinct
from reports.reading.study import Cell
from reports.sections.head import corpus_line, protocol_line
from reports.statistics.analysis import DEFAULT_DB
from reports.statistics.blocks import blocks
from reports.statistics.families import baseline_cell
from reports.statistics.inference import Contrast, unpaired
from reports.tables import (
    DASH,
    Section,
    Table,
    done_of_all,
    interval,
    mean_spread,
    number,
    percent,
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
    """
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
    """Conditions whose factors have the same names (their last part counts) and values."""
    there = {_key(second, cell): cell for cell in second.cells}
    return [
        Match(first.study.label(cell), cell, there[_key(first, cell)])
        for cell in first.cells
        if _key(first, cell) in there
    ]


def _key(data: StudyData, cell: Cell) -> frozenset[tuple[str, Any]]:
    return frozenset((name.rsplit(".", 1)[-1], value) for name, value in data.study.values(cell).items())


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
    told["seeds"] = ", ".join(map(str, sorted(set(data.runs["seed"]))))
    told["scale"] = str(data.study.grid.get("scale", "unknown"))
    return told


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
    rows = []
    for match in found:
        if match is base:
            continue
        one = blocks(first, LOSS.column).contrast({match.first: 1.0, base.first: -1.0})
        two = blocks(second, LOSS.column).contrast({match.second: 1.0, base.second: -1.0})
        rows.append((match.label, *_effect(one), *_effect(two), _signs(one, two)))
    names = (first.study.name, second.study.name)
    kinds = ("n", "Difference", "% of PPL", "95 % interval")
    columns = ("Condition", *(f"{kind}, {name}" for name in names for kind in kinds), "Signs")
    return Section(
        "Effects side by side",
        (f"Each condition against {base.label}, in {LOSS.column}, paired by seed within each study.",),
        (Table(columns, tuple(rows), "l" + "r" * (len(columns) - 1)),),
        (
            "Differences within a study compare better than losses do: what a study's text and protocol add "
            "to every condition is not in them.",
            "Signs are of the two differences; whether they are established, the intervals say.",
        ),
    )


def _effect(contrast: Contrast) -> tuple[str, ...]:
    return (
        str(contrast.n),
        signed(contrast.difference, 4) if contrast.n else DASH,
        percent(LOSS.percent(contrast.difference)),
        interval(contrast.low, contrast.high, 4) if contrast.n else number(math.nan),
    )


def _signs(one: Contrast, two: Contrast) -> str:
    product = one.difference * two.difference
    return DASH if math.isnan(product) else "the same" if product >= 0 else "opposite"
