"""The report as one HTML file: the same content, sortable tables, figures inline, a section a run.

No network, no other file: style and script stand in the page, and its policy forbids everything else. Every
text is escaped here; reports/page.css and reports/page.js are the only markup that is not.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from reports.figures import style
from reports.output.report import Report
from reports.output.runs import RunPage
from reports.tables import Picture, Section, Table, plain

_HERE = Path(__file__).parent
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_VERDICT = re.compile(r"(SUPPORTED|REFUTED|OPEN|PROVISIONAL)")
_FINDING = re.compile(_VERDICT.pattern + r": (.*)", re.DOTALL)


def page(report: Report, runs: list[RunPage]) -> str:
    """The whole document."""
    sections = [*report.sections]
    links = [(_slug(section.heading), section.heading) for section in sections]
    links += [("runs", "Runs")] if runs else []
    links.append(("again", "This report again"))
    body = [
        f"<h1>{text(report.title)}</h1>",
        *(f'<p class="note">{text(warning)}</p>' for warning in report.warnings),
        "<dl>" + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in report.facts) + "</dl>",
        *(_section(section) for section in sections),
        *([_runs(runs)] if runs else []),
        f'<section id="again"><h2>This report again</h2><pre>{text(report.command)}</pre></section>',
    ]
    items = "".join(f'<li><a href="#{slug}">{text(heading)}</a></li>' for slug, heading in links)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(report.title)}</title>\n<style>\n{_file('page.css')}</style>\n</head>\n<body>\n"
        f'<div class="frame"><nav aria-label="Sections"><ol>{items}</ol></nav><main>\n'
        + "\n".join(body)
        + f"\n</main></div>\n<script>\n{_file('page.js')}</script>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Any value as text that a browser shows as it is, in content and in attributes."""
    return html.escape(plain(value))


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _slug(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _section(section: Section) -> str:
    found = [_FINDING.fullmatch(paragraph) for paragraph in section.text]
    if any(found):
        paragraphs = '<ul class="findings">' + "".join(_finding(p) for p in section.text) + "</ul>"
    else:
        paragraphs = "".join(f"<p>{text(paragraph)}</p>" for paragraph in section.text)
    notes = "".join(f"<li>{text(note)}</li>" for note in section.notes)
    return (
        f'<section id="{_slug(section.heading)}"><h2>{text(section.heading)}</h2>{paragraphs}'
        + "".join(_table(table, section.heading) for table in section.tables)
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + "".join(_figure(picture) for picture in section.pictures)
        + "</section>"
    )


def _finding(paragraph: str) -> str:
    found = _FINDING.fullmatch(paragraph)
    if not found:
        return f"<li>{text(paragraph)}</li>"
    return f"<li>{_badge(found[1])} {text(found[2])}</li>"


def _badge(verdict: str) -> str:
    return f'<span class="verdict {verdict.replace(" ", "-")}">{verdict}</span>'


def _table(table: Table, section: str) -> str:
    align = table.align or "r" * len(table.columns)
    classes = [' class="l"' if letter == "l" else "" for letter in align]
    heads = "".join(
        f'<th scope="col"{kind}><button type="button">{text(name)}</button></th>'
        for name, kind in zip(table.columns, classes, strict=True)
    )
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(c)}</td>" for c, kind in zip(row, classes, strict=True)) + "</tr>"
        for row in table.rows
    )
    heading = f"<h3>{text(table.heading)}</h3>" if table.heading else ""
    label = text(table.heading or section)
    return (
        f'{heading}<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(value: str) -> str:
    return _badge(value) if _VERDICT.fullmatch(value) else text(value)


def _figure(picture: Picture) -> str:
    drawing = inline_svg(style.save(picture.draw(), "svg").decode(), picture.name, picture.alt)
    return f"<figure>{drawing}<figcaption>{text(picture.caption)}</figcaption></figure>"


def inline_svg(svg: str, name: str, alt: str) -> str:
    """An SVG file as a part of the page: its ids made its own, its ink and paper the page's, its alt text."""
    drawing = re.sub(r"<(style|metadata)\b.*?</\1>", "", svg[svg.index("<svg ") :], flags=re.DOTALL)
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", drawing)
    for colour, role in ((style.INK, "ink"), (style.FAINT, "rule"), (style.PAPER, "paper")):
        drawing = drawing.replace(colour, f"var(--{role})")
    drawing = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", drawing, count=1)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{text(alt)}" ', 1).rstrip()


def _runs(runs: list[RunPage]) -> str:
    parts = []
    for run in runs:
        facts = "".join(f"<dt>{text(label)}</dt><dd>{text(value)}</dd>" for label, value in run.facts)
        figure = _figure(run.picture) if run.picture else ""
        log = f"<h3>End of its log</h3><pre>{_lines(run.log)}</pre>" if run.log else ""
        parts.append(
            f'<details id="run-{run.job}"><summary>{text(run.title)}</summary><dl>{facts}</dl>{figure}{log}'
            "</details>"
        )
    remark = f"<p>{text(runs[0].remark)}</p>" if runs[0].remark else ""
    return f'<section id="runs"><h2>Runs</h2>{remark}{"".join(parts)}</section>'


def _lines(log: str) -> str:
    return "\n".join(text(line) for line in log.split("\n"))
