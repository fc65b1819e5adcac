"""The report of a study: a banner, the tables, notes of method, and the command that makes it again.

`render` reads the database once and prints markdown; the same database gives the same bytes, so there is
no clock in it. Sections come from the modules beside it; markdown from reports/tables.py.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace

import sqlalchemy as sa

from reports.reading.frames import StudyData, choose_study, load
from reports.reading.measures import measured
from reports.reading.origin import Environment, observe
from reports.reading.study import Study, Target
from reports.reading.units import UnknownOption, parse_difference
from reports.sections import behaviour, conditions, contrasts, costs, head, heldout
from reports.sections.anova import variance
from reports.sections.dose import response
from reports.sections.findings import findings
from reports.sections.horizons import horizons
from reports.sections.load import load as load_by_layer
from reports.sections.power import power
from reports.sections.repeats import noise_floor
from reports.statistics.blocks import usable
from reports.statistics.contrasts import TestedFamily, judge_families
from reports.statistics.families import baseline_cell
from reports.statistics.inference import Std, finite
from reports.statistics.judgement import Judged, judge
from reports.statistics.load import RunLoad, run_loads
from reports.tables import Picture, Section, escape, markdown_section, plain

Drawn = Callable[[StudyData, Target, list[TestedFamily], dict[int, RunLoad]], dict[str, tuple[Picture, ...]]]
"""What adds pictures to the sections, by heading: reports/figures/comparison.py."""

DEFAULT_DB = "jobs.db"
"""Where the command line looks when --db is not given."""
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
class Options:
    """What the reader asked for; all of it stands in the command that makes the report again."""

    std: Std = "sample"
    metric: str | None = None
    """Compared instead of the primary metric."""
    margin: str | None = None
    """Of equivalence, with its unit, instead of the declared one."""
    strict: bool = False
    format: str = "markdown"
    output: str | None = None
    db: str = DEFAULT_DB


@dataclass(frozen=True)
class Report:
    """The content of a report as plain text, before any format."""

    title: str
    warnings: tuple[str, ...]
    facts: tuple[head.Fact, ...]
    sections: tuple[Section, ...]
    command: str
    judged: tuple[Judged, ...] = ()
    families: tuple[TestedFamily, ...] = ()


def render(
    connection: sa.Connection,
    study: str | None = None,
    std: str = "sample",
    *,
    metric: str | None = None,
    margin: str | None = None,
    strict: bool = False,
    db: str = DEFAULT_DB,
) -> str:
    """The report of a study (default: the newest) as markdown, without figures.

    Raises:
        NoSuchStudy: there is none of that name, or none at all.
        UnknownOption: an option's value does not exist.
        NotUniform: `strict`, and what made the results is not one thing.
    """
    options = Options(check_std(std), metric, margin, strict, db=db)
    return markdown(compose(load(connection, choose_study(connection, study)[0]), options))


def summary(connection: sa.Connection, study: str | None = None) -> str:
    """Means and standard deviations by condition, for a terminal of 80 columns.

    Raises:
        NoSuchStudy: there is none of that name, or none at all.
    """
    chosen, _ = choose_study(connection, study)
    return conditions.summary(load(connection, chosen))


def check_std(std: str) -> Std:
    """`std` if it is one of the two kinds.

    Raises:
        UnknownOption: it is neither.
    """
    kinds: dict[str, Std] = {"sample": "sample", "population": "population"}
    if std in kinds:
        return kinds[std]
    raise UnknownOption(f"--std {std}: no such standard deviation; choose sample or population")


def compose(data: StudyData, options: Options, draw: Drawn | None = None) -> Report:
    """Everything that the report says, in its order; `draw` adds pictures to each section, by its heading.

    Raises:
        UnknownOption: the metric or margin asked for does not exist.
        NotUniform: `strict`, and what made the results is not one thing.
    """
    environment, target = observe(data), choose_target(data, options)
    if options.strict:
        _require_uniform(data, environment)
    sections: tuple[Section, ...] = (Section("Results", ("The study has no runs.",)),)
    judged = judge(data)
    families, loads = judge_families(data, target), run_loads(data)
    if len(data.runs):
        sections = _sections(data, options.std, target, families, judged, loads)
    if draw is not None:
        pictures = draw(data, target, families, loads)
        sections = tuple(replace(s, pictures=pictures.get(s.heading, ())) for s in sections)
    return Report(
        title=f"Study {data.study.name}" + (f": {title}" if (title := data.study.grid.get("title")) else ""),
        warnings=head.warnings(data, environment),
        facts=head.facts(data, environment, target),
        sections=(*sections, _method(data.study, options.std)),
        command=_command(data, options),
        judged=tuple(judged),
        families=tuple(families),
    )


def choose_target(data: StudyData, options: Options) -> Target:
    """What the comparisons are about, as asked for.

    Raises:
        UnknownOption: a metric that is not among the results, or a margin that cannot be read.
    """
    study = data.study
    if options.metric is not None and not usable(data, options.metric):
        known = ", ".join(measured(data.runs))
        raise UnknownOption(
            f"--metric {options.metric}: not among the recorded results; choose one of {known}"
        )
    margin = None
    if options.margin is not None:
        name = options.metric or study.primary
        margin = parse_difference("--margin", options.margin, name, baseline_perplexity(data))
    return study.target(options.metric, margin)


def baseline_perplexity(data: StudyData) -> float:
    """The mean perplexity of the baseline's finished runs, NaN where there are none."""
    if not data.cells:
        return math.nan
    values = finite(data.by_cell[baseline_cell(data)[0]]["val_perplexity"])
    return float(values.mean()) if values.size else math.nan


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


def _sections(
    data: StudyData,
    std: Std,
    target: Target,
    families: list[TestedFamily],
    judged: list[Judged],
    loads: dict[int, RunLoad],
) -> tuple[Section, ...]:
    """From what was found to how it came about: the order in which a reviewer asks."""
    floor = noise_floor(data)
    return (
        findings(data, judged, families),
        *((floor,) if floor is not None else ()),
        conditions.aggregate(data, std, loads),
        *costs.missing(data),
        *heldout.held_out(data, std),
        contrasts.contrasts(data, target, families),
        *response(data, target),
        *horizons(data, target),
        variance(data, target, families),
        power(families, target, data.study.name),
        behaviour.stability(data, std),
        behaviour.routing(data, std),
        load_by_layer(data, std, loads),
        conditions.per_seed(data),
        costs.timings(data),
        costs.failures(data),
    )


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
