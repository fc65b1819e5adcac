"""The report of a study: a banner, the tables, notes of method, and the command that makes it again.

`render` reads the database once and prints markdown; the same database gives the same bytes, so there is
no clock in it. Sections come from the modules beside it; markdown from reports/tables.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from reports import aggregate, banner, behaviour, contrasts
from reports.environment import observe
from reports.frames import StudyData, choose_study, load
from reports.statistics import Std
from reports.study import Study
from reports.tables import DASH, Section, Table, escape, markdown_section, plain, whole

DEFAULT_DB = "jobs.db"
"""Where the command line looks when --db is not given."""
_MISSING_SHOWN = 30
_METHOD_HERE = (
    "Seeds are blocks: the conditions of one seed share initialisation, data order and dropout draws, so "
    "that differences are taken within a seed. Whether the ± of two conditions overlap says nothing.",
    "Expert usage CV is the population sd / mean of the experts' token counts, summed over layers.",
    "Aux loss is the load-balancing loss as added to the training loss, 0 where its weight is 0; the "
    "unweighted one stands under training stability.",
    "The test split is scored in the final pass and stored sealed: no number here was chosen by it.",
)
_METHOD_ELSEWHERE = (
    "Seeds are blocks: differences are taken within a seed. What else the runs of one seed shared is not "
    "recorded here. Whether the ± of two conditions overlap says nothing.",
    "Expert usage CV, loss and perplexity are as their authors defined and rounded them.",
)


class UnknownOption(Exception):
    """An option's value that does not exist; the message names those that do."""

    exit_code = 65


@dataclass(frozen=True)
class Report:
    """The content of a report as plain text, before any format."""

    title: str
    warnings: tuple[str, ...]
    facts: tuple[banner.Fact, ...]
    sections: tuple[Section, ...]
    command: str


def render(
    connection: sa.Connection, study: str | None = None, std: str = "sample", *, db: str = DEFAULT_DB
) -> str:
    """The report of a study (default: the newest) as markdown.

    `std` is what ± shows, sample or population; `db` is what --db was, for the command that repeats this.

    Raises:
        NoSuchStudy: there is none of that name, or none at all.
        UnknownOption: `std` is neither.
    """
    kind = check_std(std)
    chosen, _ = choose_study(connection, study)
    return markdown(compose(load(connection, chosen), kind, db))


def summary(connection: sa.Connection, study: str | None = None) -> str:
    """Means and standard deviations by condition, for a terminal of 80 columns.

    Raises:
        NoSuchStudy: there is none of that name, or none at all.
    """
    chosen, _ = choose_study(connection, study)
    return aggregate.summary(load(connection, chosen))


def check_std(std: str) -> Std:
    """`std` if it is one of the two kinds.

    Raises:
        UnknownOption: it is neither.
    """
    kinds: dict[str, Std] = {"sample": "sample", "population": "population"}
    if std in kinds:
        return kinds[std]
    raise UnknownOption(f"--std {std}: no such standard deviation; choose sample or population")


def compose(data: StudyData, std: Std, db: str = DEFAULT_DB) -> Report:
    """Everything that the report says, in its order."""
    environment = observe(data)
    return Report(
        title=f"Study {data.study.name}" + (f": {title}" if (title := data.study.grid.get("title")) else ""),
        warnings=banner.warnings(data, environment),
        facts=banner.facts(data, environment),
        sections=(
            *_missing(data),
            *(_tables(data, std) if len(data.runs) else (Section("Results", ("The study has no runs.",)),)),
            _method(data.study, std),
        ),
        command=_command(data, std, db),
    )


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured markdown; whatever came from the database is shown as text."""
    fence = "`" * (2 + max(map(len, re.findall(r"`+", report.command)), default=1))
    blocks = [f"# {escape(report.title)}"]
    blocks += [f"> **Note:** {escape(warning)}" for warning in report.warnings]
    blocks.append("\n".join(f"- **{escape(label)}:** {escape(text)}" for label, text in report.facts))
    blocks += [markdown_section(section) for section in report.sections]
    blocks.append(f"## This report again\n\n{fence}bash\n{plain(report.command)}\n{fence}")
    return "\n\n".join(blocks) + "\n"


def _tables(data: StudyData, std: Std) -> tuple[Section, ...]:
    return (
        aggregate.aggregate(data, std),
        contrasts.contrasts(data),
        behaviour.stability(data, std),
        aggregate.per_seed(data),
        behaviour.load(data, std),
    )


def _missing(data: StudyData) -> tuple[Section, ...]:
    """The runs without a result, failed ones first, each with the cause of its last attempt that has one."""
    runs = data.runs[data.runs["status"] != "done"]
    if runs.empty:
        return ()
    told = data.last_causes
    order = {status: rank for rank, status in enumerate(("failed", "cancelled", "running", "queued"))}
    rows = [
        (
            *(str(run["job_id"]), data.study.label(run["cell"]), str(run["seed"])),
            run["status"] + (" (held)" if run["held"] else ""),
            *(str(run["attempt"]), f"{whole(run['progress_step'])} of {whole(run['total_steps'])}"),
            *_cause(told.loc[run["job_id"]] if run["job_id"] in told.index else {}),
        )
        for run in sorted(runs.to_dict("records"), key=lambda run: (order[run["status"]], run["job_id"]))
    ]
    columns = ("Job", "Condition", "Seed", "Status", "Attempts", "Step", "Last cause", "Message")
    more = len(rows) - _MISSING_SHOWN
    return (
        Section(
            "Runs without a result",
            tables=(Table(columns, tuple(rows[:_MISSING_SHOWN]), "rlrlrrll"),),
            notes=(f"And {more} more.",) if more > 0 else (),
        ),
    )


def _cause(attempt: Mapping[str, Any]) -> tuple[str, str]:
    return attempt.get("cause") or DASH, attempt.get("message") or DASH


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


def _command(data: StudyData, std: Std, db: str) -> str:
    words = ["report", "--study", data.study.name, "--std", std]
    words += ["--db", db] if db != DEFAULT_DB else []
    return f"python cli.py {shlex.join(words)} > experiment_results.md"
