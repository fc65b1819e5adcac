"""The report of a study: a banner, the tables, notes of method, and the command that makes it again.

The same database gives the same bytes, so there is no clock in it. Each section is made by a function of
reports/sections from one Analysis; markdown comes from reports/tables.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import sqlalchemy as sa

from reports.reading.frames import StudyData, choose_study, load
from reports.reading.origin import Environment
from reports.reading.study import Study
from reports.sections import behaviour, conditions, contrasts, costs, head, heldout
from reports.sections.anova import variance
from reports.sections.dose import response
from reports.sections.findings import findings
from reports.sections.horizons import horizons
from reports.sections.load import load as load_by_layer
from reports.sections.power import power
from reports.sections.repeats import noise_floor
from reports.statistics.analysis import DEFAULT_DB, Analysis, Options
from reports.statistics.inference import Std
from reports.tables import Picture, Section, escape, markdown_section, plain

SECTIONS: tuple[Callable[[Analysis], Section | None], ...] = (
    findings,
    noise_floor,
    conditions.aggregate,
    costs.missing,
    heldout.held_out,
    contrasts.contrasts,
    response,
    horizons,
    variance,
    power,
    behaviour.stability,
    behaviour.routing,
    load_by_layer,
    conditions.per_seed,
    costs.timings,
    costs.failures,
)
"""From what was found to how it came about: the order in which a reviewer asks."""
Drawn = Callable[[Analysis], dict[str, tuple[Picture, ...]]]
"""Pictures by the heading of the section where they belong: reports/figures/comparison.py."""

_METHOD_HERE = (
    "Seeds are blocks: the conditions of one seed share initialisation, data order and dropout draws, so "
    "that differences are taken within a seed. Whether the ± of two conditions overlap says nothing.",
    "Expert usage CV is the population sd / mean of the experts' token counts, summed over layers.",
    "Aux loss is the load-balancing loss as added to the training loss, 0 where its weight is 0; the "
    "unweighted one stands under training stability.",
    "The test split is scored in the final pass and stored sealed; it is read only after python cli.py test.",
)
_METHOD_ELSEWHERE = (
    "Seeds are blocks: differences are taken within a seed. What else the runs of one seed shared is not "
    "recorded here. Whether the ± of two conditions overlap says nothing.",
    "Expert usage CV, loss and perplexity are as their authors defined and rounded them.",
)


class NotUniform(Exception):
    """--strict, and the study is mixed or not exact; the message says in what."""

    exit_code = 65


@dataclass(frozen=True)
class Report:
    """The content of a report as plain text, before any format."""

    title: str
    warnings: tuple[str, ...]
    facts: tuple[head.Fact, ...]
    sections: tuple[Section, ...]
    command: str


def summary(connection: sa.Connection, study: str | None = None) -> str:
    """Means and standard deviations by condition, for a terminal of 80 columns.

    Raises:
        NoSuchStudy: there is none of that name, or none at all.
    """
    chosen, _ = choose_study(connection, study)
    return conditions.summary(load(connection, chosen))


def compose(analysis: Analysis, draw: Drawn | None = None) -> Report:
    """Everything that the report says, in its order; `draw` makes the pictures of its sections.

    Raises:
        NotUniform: `strict`, and what made the results is not one thing.
    """
    data, study, options = analysis.data, analysis.study, analysis.options
    if options.strict:
        _require_uniform(data, analysis.environment)
    sections = [Section("Results", ("The study has no runs.",))]
    if len(data.runs):
        sections = [section for make in SECTIONS if (section := make(analysis)) is not None]
        if draw is not None:
            sections = illustrated(sections, draw(analysis))
    return Report(
        title=f"Study {study.name}" + (f": {title}" if (title := study.grid.get("title")) else ""),
        warnings=head.warnings(analysis),
        facts=head.facts(analysis),
        sections=(*sections, _method(study, options.std)),
        command=_command(data, options),
    )


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


def markdown(report: Report, folder: str | None = None) -> str:
    """The report as GitHub-flavoured markdown; whatever came from the database is shown as text.

    Pictures are mentioned where `folder` says where they lie.
    """
    fence = "`" * (2 + max(map(len, re.findall(r"`+", report.command)), default=1))
    blocks = [f"# {escape(report.title)}"]
    blocks += [f"> **Note:** {escape(warning)}" for warning in report.warnings]
    blocks.append("\n".join(f"- **{escape(label)}:** {escape(text)}" for label, text in report.facts))
    blocks += [markdown_section(section, folder) for section in report.sections]
    blocks.append(f"## This report again\n\n{fence}bash\n{plain(report.command)}\n{fence}")
    return "\n\n".join(blocks) + "\n"


def _method(study: Study, std: Std) -> Section:
    divisor = {"sample": "n - 1 (ddof 1)", "population": "n (ddof 0)"}[std]
    return Section(
        "Method",
        notes=(
            f"± is the {std} standard deviation over seeds, divisor {divisor}; --std chooses. The population "
            "form understates the spread of few seeds and is there to reproduce published tables.",
            *(_METHOD_ELSEWHERE if study.imported_from is not None else _METHOD_HERE),
            "Perplexity is the exponential of the loss; bits per byte compares across tokenizers, the loss "
            "does not. A mean perplexity is the mean of the runs' perplexities.",
            "Best Val PPL is the lowest of a run's evaluations on the same held-out text: biased low, the "
            "more so the more evaluations there are. The final loss is primary.",
        ),
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
