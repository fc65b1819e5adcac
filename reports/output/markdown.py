"""A report as GitHub-flavoured markdown: whatever came from the database is shown as text.

Pictures are mentioned where a folder says where they lie.
"""

from __future__ import annotations

import re

from reports.output.report import Report
from reports.sections.answer import Answer
from reports.tables import Section, Table, plain

_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    | {mark: f"\\{mark}" for mark in ("\\", "|", "`", "*", "[", "]", "$", "~")}
)
_AT_AN_END = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""An underscore at a word's end begins emphasis; within a word, as in noise_std, GitHub leaves it alone."""


def markdown(report: Report, folder: str | None = None) -> str:
    """The whole report."""
    fence = "`" * (2 + max(map(len, re.findall(r"`+", report.command)), default=1))
    blocks = [f"# {escape(report.title)}", *_first(report.answer, folder)]
    blocks += [markdown_section(section, folder) for section in report.sections]
    if report.appendix:
        blocks.append("## Appendix\n\nHow it came about, and what the words and columns mean.")
    blocks += [markdown_section(section, folder) for section in report.appendix]
    blocks.append(f"## This report again\n\n{fence}bash\n{plain(report.command)}\n{fence}")
    return "\n\n".join(blocks) + "\n"


def brief(title: str, found: Answer) -> str:
    """The first screen alone."""
    return "\n\n".join([f"# {escape(title)}", *_first(found)]) + "\n"


def _first(found: Answer, folder: str | None = None) -> list[str]:
    """Question, answer, claims with their picture, what is missing, and what limits it all."""
    blocks = [f"**Question.** {escape(found.question)}"] if found.question else []
    blocks.append(f"**Answer.** {escape(' '.join(found.sentences))}")
    if (table := found.table) is not None:
        blocks.append(markdown_table(table))
    if found.more:
        blocks.append(f"And {found.more} more, below.")
    if folder is not None and found.picture is not None:
        blocks.append(f"![{escape(found.picture.alt)}]({folder}/{found.picture.name}.png)")
    blocks += [f"> **Note:** {escape(note)}" for note in found.notes]
    blocks.append(_facts((("Missing", found.missing), *found.limits)))
    return blocks


def _facts(facts: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(f"- **{escape(label)}:** {escape(text)}" for label, text in facts)


def escape(value: object) -> str:
    """One line of markdown that shows `value` as it is."""
    return _AT_AN_END.sub(r"\\_", plain(value).translate(_ESCAPES))


def markdown_table(table: Table) -> str:
    """The table as GitHub-flavoured markdown, with its heading as #### where it has one."""
    align = table.align or "r" * len(table.columns)
    lines = [f"#### {escape(table.heading)}"] if table.heading else []
    lines.append(_row([escape(name) for name in table.columns]))
    lines.append("|" + "|".join("---:" if letter == "r" else ":---" for letter in align) + "|")
    lines += [_row([escape(cell) for cell in row]) for row in table.rows]
    return "\n".join(lines)


def markdown_section(section: Section, folder: str | None = None) -> str:
    """The section as markdown: ## heading, paragraphs, tables, notes as a list, pictures from `folder`.

    Without a folder there is nowhere to keep pictures, and none is mentioned.
    """
    parts = [f"## {escape(section.heading)}", *map(escape, section.text)]
    if section.facts:
        parts.append(_facts(section.facts))
    parts += [markdown_table(table) for table in section.tables]
    if section.notes:
        parts.append("\n".join(f"- {escape(note)}" for note in section.notes))
    if folder is not None:
        for picture in section.pictures:
            parts.append(f"![{escape(picture.alt)}]({folder}/{picture.name}.png)")
            parts.append(f"Figure ([SVG]({folder}/{picture.name}.svg)). {escape(picture.caption)}")
    return "\n\n".join(parts)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
