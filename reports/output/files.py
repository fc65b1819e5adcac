"""From a study to what the reader asked for: text for stdout, or files in a folder.

`gather` reads the database and is done with it; `produce` computes, draws and returns content; `write` puts
files beside their places and renames them. The same database gives the same bytes.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from reports.figures.layout import Curves, chosen_runs, read_curves
from reports.output.markdown import brief, markdown, markdown_section
from reports.output.report import compose, title
from reports.reading.frames import StudyData, choose_study, load
from reports.reading.units import UnknownOption
from reports.sections.answer import answer
from reports.sections.heldout import held_out
from reports.statistics.analysis import Options, analyse

FORMATS = ("markdown", "html", "json", "pdf")
_PAGES = ("html", "pdf")
FIGURES = "figures"


@dataclass(frozen=True)
class Material:
    """All that a report is made from, in memory; `curves` where figures will be drawn."""

    data: StudyData
    curves: Curves | None


def gather(connection: sa.Connection, study: str | None, options: Options) -> Material:
    """Read what the report needs, and no series unless figures are drawn.

    Raises:
        UnknownOption: no such format.
    """
    if options.format not in FORMATS:
        raise UnknownOption(f"--format {options.format}: choose one of {', '.join(FORMATS)}")
    if options.brief and options.format != "markdown":
        raise UnknownOption(f"--brief is markdown; leave out --format {options.format}")
    data = load(connection, choose_study(connection, study)[0])
    if options.brief:
        return Material(data, None)
    drawn = options.format in _PAGES or (options.format == "markdown" and options.output is not None)
    further = chosen_runs(data) if options.format in _PAGES else []
    return Material(data, read_curves(connection, data, further) if drawn else None)


def produce(material: Material, options: Options, runs_dir: Path) -> dict[str, bytes]:
    """File name → content; the first is the report itself, figures follow where a folder will hold them.

    Raises:
        UnknownOption: the metric or margin asked for does not exist.
        NotUniform: --strict, and what made the results is not one thing.
        NoBrowser: a PDF, and there is no Chromium that prints it.
    """
    data, curves = material.data, material.curves
    analysis = analyse(data, options)
    if options.brief:
        return {"report.md": brief(title(analysis.study), answer(analysis)).encode()}
    if curves is None:
        report = compose(analysis)
        if options.format == "markdown":
            return {"report.md": markdown(report).encode()}
        from reports.output.as_json import as_json

        return {"report.json": as_json(report, analysis).encode()}
    from reports.figures.comparison import pictures  # matplotlib: a second that a table does not need
    from reports.figures.drawing import draw_all
    from reports.output.page import page
    from reports.output.pdf import pdf
    from reports.output.runs import run_pages

    report = compose(analysis, partial(pictures, curves))
    if options.format in _PAGES:
        content = page(report, run_pages(curves, data, runs_dir)).encode()
        return {"report.html": content} if options.format == "html" else {"report.pdf": pdf(content)}
    files = {"report.md": markdown(report, FIGURES).encode()}
    drawn = draw_all(report.pictures, ("png", "svg"))
    return files | {f"{FIGURES}/{name}.{kind}": content for (name, kind), content in drawn.items()}


def first_screen(connection: sa.Connection, study: str) -> str:
    """The first screen of a study, as markdown."""
    options = Options(brief=True)
    return produce(gather(connection, study, options), options, Path())["report.md"].decode()


def revealed(connection: sa.Connection, study: str) -> str:
    """The test split's section alone, as markdown, for the command that reveals it."""
    section = held_out(analyse(load(connection, choose_study(connection, study)[0]), Options()))
    return f"{markdown_section(section)}\n" if section else ""


def write(files: dict[str, bytes], folder: Path) -> Path:
    """Put the files in the folder, each whole or not at all; returns the report's path.

    Raises:
        UnknownOption: the folder cannot be written.
    """
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(beside).chmod(0o644)
            Path(beside).replace(path)
    except OSError as error:
        raise UnknownOption(f"--output {folder}: cannot be written: {error.strerror}") from error
    return folder / next(iter(files))
