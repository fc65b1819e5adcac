"""Reading a report back: its sections, tables and facts, for the tests of reports/."""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa

from reports.output.markdown import markdown
from reports.output.report import compose
from reports.reading.frames import choose_study, load
from reports.statistics.analysis import Options, analyse


def render(connection: sa.Connection, study: str | None = None, **options: Any) -> str:
    """The report of a study (default: the newest) as markdown, without figures."""
    data = load(connection, choose_study(connection, study)[0])
    return markdown(compose(analyse(data, Options(**options))))


def section(text: str, heading: str) -> str:
    """What stands under a ## heading."""
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table of a markdown text, a dict a row, as a renderer reads it."""
    found, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            inside = False
        elif not inside:
            found.append([cells])
            inside = True
        elif set(line) - set("|-: "):
            found[-1].append(cells)
    return [[dict(zip(rows[0], row, strict=True)) for row in rows[1:]] for rows in found]


def aggregate(text: str) -> dict[tuple[float, ...], dict[str, str]]:
    """Condition → its row of the tables of quality, load and cost."""
    found: dict[tuple[float, ...], dict[str, str]] = {}
    for heading in ("Timings and cost", "Expert load by condition", "Results by condition"):
        for row in (*tables(section(text, heading)), [])[0]:
            cell = (float(row["noise_std"]), float(row["load_balancing_weight"]))
            found[cell] = found.get(cell, {}) | row
    return found


def fact(text: str, label: str) -> str:
    found = re.search(rf"^- \*\*{label}:\*\* (.*)$", text, re.MULTILINE)
    assert found, f"no {label} in the banner"
    return found[1]
