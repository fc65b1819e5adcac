"""The report of a study: a banner, the tables, notes of method, and the command that makes it again.

The same database gives the same bytes, so there is no clock in it. Each section is made by a function of
reports/sections from one Analysis; markdown comes from reports/tables.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from reports.reading.frames import StudyData
from reports.reading.origin import Environment
from reports.reading.study import Study
from reports.sections import behaviour, conditions, contrasts, costs, heldout
from reports.sections.anova import variance
from reports.sections.answer import ANSWER, Answer, answer
from reports.sections.dose import response
from reports.sections.findings import findings
from reports.sections.head import method
from reports.sections.horizons import horizons
from reports.sections.levels import best_levels
from reports.sections.load import load as load_by_layer
from reports.sections.power import looks, power
from reports.sections.provenance import provenance
from reports.sections.repeats import noise_floor
from reports.statistics.analysis import DEFAULT_DB, Analysis, Options
from reports.tables import Picture, Section, plain

Made = Callable[[Analysis], Section | None]
SECTIONS: tuple[Made, ...] = (
    findings,
    looks,
    noise_floor,
    conditions.aggregate,
    conditions.load,
    costs.missing,
    best_levels,
    contrasts.contrasts,
    response,
    horizons,
    heldout.held_out,
    conditions.per_seed,
)
"""What was found, after the first screen: the order in which a reader asks."""
APPENDIX: tuple[Made, ...] = (
    variance,
    power,
    behaviour.stability,
    behaviour.routing,
    load_by_layer,
    costs.timings,
    costs.failures,
    method,
    provenance,
)
"""How it came about: folded in the page."""
Drawn = Callable[[Analysis], dict[str, tuple[Picture, ...]]]
"""Pictures by the heading of the section where they belong: reports/figures/comparison.py."""


class NotUniform(Exception):
    """--strict, and the study is mixed or not exact; the message says in what."""

    exit_code = 65


@dataclass(frozen=True)
class Report:
    """The content of a report as plain text, before any format."""

    title: str
    answer: Answer
    """The first screen."""
    sections: tuple[Section, ...]
    appendix: tuple[Section, ...]
    command: str

    @property
    def pictures(self) -> list[Picture]:
        """Every picture, in the order in which they appear."""
        own = self.answer.picture
        further = [p for section in (*self.sections, *self.appendix) for p in section.pictures]
        return [own, *further] if own is not None else further


def compose(analysis: Analysis, draw: Drawn | None = None) -> Report:
    """Everything that the report says, in its order; `draw` makes the pictures of its sections.

    Raises:
        NotUniform: `strict`, and what made the results is not one thing.
    """
    data, study, options = analysis.data, analysis.study, analysis.options
    if options.strict:
        _require_uniform(data, analysis.environment)
    first = answer(analysis)
    sections, appendix = _made(SECTIONS, analysis), _made(APPENDIX, analysis)
    if not len(data.runs):
        sections, appendix = [], _made((method, provenance), analysis)
    elif draw is not None:
        pictures = dict(draw(analysis))
        first = replace(first, picture=next(iter(pictures.pop(ANSWER, ())), None))
        found = illustrated([*sections, *appendix], pictures)
        sections, appendix = found[: len(sections)], found[len(sections) :]
    return Report(
        title=title(study),
        answer=first,
        sections=tuple(sections),
        appendix=tuple(appendix),
        command=_command(data, options),
    )


def title(study: Study) -> str:
    """`Study factorial: Routing noise`."""
    more = study.grid.get("title")
    return f"Study {study.name}" + (f": {more}" if more else "")


def _made(makers: tuple[Made, ...], analysis: Analysis) -> list[Section]:
    return [section for make in makers if (section := make(analysis)) is not None]


def illustrated(sections: list[Section], pictures: Mapping[str, tuple[Picture, ...]]) -> list[Section]:
    """The sections with the pictures that are under their headings.

    Raises:
        KeyError: pictures for a heading that no section has; they would vanish.
    """
    if lost := pictures.keys() - {section.heading for section in sections}:
        raise KeyError(f"pictures for {', '.join(sorted(lost))}: no section has that heading")
    return [replace(section, pictures=pictures.get(section.heading, ())) for section in sections]


def _require_uniform(data: StudyData, environment: Environment) -> None:
    reasons = list(environment.mixed)
    if data.study.imported_from is None and (loose := int((data.done["exact"] == 0).sum())):
        reasons.append(f"{loose} results are not exact")
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise NotUniform(
            f"study {data.study.name}: not uniform: {plain(reasons[0])}{more}; "
            "the report without --strict shows all of it"
        )


def _command(data: StudyData, options: Options) -> str:
    words = ["report", "--study", data.study.name, "--std", options.std]
    words += ["--metric", options.metric] if options.metric is not None else []
    words += ["--margin", options.margin] if options.margin is not None else []
    words += ["--strict"] if options.strict else []
    words += ["--format", options.format] if options.format != "markdown" else []
    words += ["--output", options.output] if options.output is not None else []
    words += ["--db", options.db] if options.db != DEFAULT_DB else []
    suffix = {"markdown": "md"}.get(options.format, options.format)
    to = "" if options.output is not None else f" > experiment_results.{suffix}"
    return f"python cli.py {shlex.join(words)}{to}"
