"""The report as one HTML file: the first screen, sortable tables, figures inline, a folded section a run.

No network, no other file: style and script stand in the page, and its policy forbids everything else. The
template page.html.jinja escapes every value; style, script and drawings are the only markup that it takes.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from reports.figures import style
from reports.figures.drawing import draw_all
from reports.output.report import Report, title
from reports.output.runs import RunPage
from reports.reading.frames import choose_study, load
from reports.sections.answer import Line, answer
from reports.statistics.analysis import Options, analyse
from reports.tables import Picture, Table, plain

_HERE = Path(__file__).parent
_VERDICT = re.compile(
    r"(?:SUPPORTED|REFUTED|OPEN|better|worse|lower|higher|unclear"
    r"|negligible(?: but measurably (?:better|worse|lower|higher))?)"
    r"(?: \(PROVISIONAL\))?|PROVISIONAL"
)
_FINDING = re.compile(f"({_VERDICT.pattern}): (.*)", re.DOTALL)


def page(report: Report, runs: list[RunPage]) -> str:
    """The whole document of a study's report."""
    first = report.answer
    pictures = [*report.pictures, *(run.picture for run in runs if run.picture is not None)]
    files = draw_all(pictures)
    sections = [*report.sections, *report.appendix]
    links = [("answer", "Answer"), *((_slug(section.heading), section.heading) for section in sections)]
    links += [("runs", "Runs")] if runs else []
    links.append(("again", "This report again"))
    return _template().render(
        report=report,
        answer=first,
        bars=bars(first.lines),
        runs=runs,
        links=links,
        drawn=lambda picture: Markup(_inline(picture, files)),
        css=Markup(css()),
        js=Markup(_file("page.js")),
    )


def first_screen(connection: sa.Connection, study: str) -> str:
    """The page's first screen alone, as HTML that is safe to stand in another page with `page.css`."""
    analysis = analyse(load(connection, choose_study(connection, study)[0]), Options())
    found = answer(analysis)
    made = _environment().get_template("answer.html.jinja").module
    return str(made.header(title(analysis.study), found, bars(found.lines)))  # type: ignore[attr-defined]


def css() -> str:
    """The page's style."""
    return _file("page.css")


def _template() -> Template:
    return _environment().get_template("page.html.jinja")


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"plain": plain, "lines": _lines}
    helpers: dict[str, Callable[..., object]] = {
        "slug": _slug,
        "sides_of": _sides,
        "badge": _badge,
        "cell": _cell,
        "finding": _finding,
    }
    environment.globals |= helpers
    return environment


@dataclass(frozen=True)
class Bar:
    """An interval as it is drawn: places from 0 to 100, no difference in the middle."""

    low: float
    point: float
    high: float
    margin_low: float
    margin_width: float


def bars(lines: tuple[Line, ...]) -> list[Bar | None]:
    """The lines' intervals, those of one metric on one scale; None where a line has no interval."""
    reach: dict[tuple[str, bool], float] = {}
    for line in lines:
        ends = [abs(line.contrast.low), abs(line.contrast.high), line.margin]
        key = (line.metric.column, line.ratio)
        reach[key] = max([reach.get(key, 0.0), *(end for end in ends if not math.isnan(end))])
    return [_bar(line, reach[line.metric.column, line.ratio]) for line in lines]


def _bar(line: Line, reach: float) -> Bar | None:
    contrast = line.contrast
    if math.isnan(contrast.low) or not reach > 0:
        return None
    low, point, high = (
        round(50 + 47 * value / reach, 2) for value in (contrast.low, contrast.difference, contrast.high)
    )
    margin = 0.0 if math.isnan(line.margin) else round(47 * line.margin / reach, 2)
    return Bar(low, point, high, 50 - margin, 2 * margin)


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _slug(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _sides(table: Table) -> list[Markup]:
    """The class of each column's cells."""
    align = table.align or "r" * len(table.columns)
    return [Markup(' class="l"' if letter == "l" else "") for letter in align]


def _cell(value: str) -> str:
    """A cell's text, which the template escapes; a verdict as a badge. Large studies have 60,000 of them."""
    if value[:1].isalpha() and _VERDICT.fullmatch(value):
        return _badge(value)
    return plain(value)


def _badge(verdict: str) -> Markup:
    kind = verdict.partition(" (")[0].lower().replace(" ", "-")
    return Markup('<span class="verdict {}">{}</span>').format(kind, verdict)


def _finding(paragraph: str) -> tuple[str, str] | None:
    found = _FINDING.fullmatch(paragraph)
    return (found[1], found[2]) if found else None


def _inline(picture: Picture, files: Mapping[tuple[str, str], bytes]) -> str:
    return inline_svg(files[picture.name, "svg"].decode(), picture.name, picture.alt)


def inline_svg(svg: str, name: str, alt: str) -> str:
    """An SVG file as a part of the page: its ids made its own, its ink and paper the page's, its alt text."""
    drawing = re.sub(r"<(style|metadata)\b.*?</\1>", "", svg[svg.index("<svg ") :], flags=re.DOTALL)
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", drawing)
    for colour, role in ((style.INK, "ink"), (style.FAINT, "rule"), (style.PAPER, "paper")):
        drawing = drawing.replace(colour, f"var(--{role})")
    drawing = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", drawing, count=1)
    label = html.escape(plain(alt))
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).rstrip()


def _lines(log: str) -> str:
    return "\n".join(plain(line) for line in log.split("\n"))
