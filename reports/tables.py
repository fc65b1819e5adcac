"""Text of tables and sections: what they hold, how numbers are written, how markdown is kept safe.

A Table and a Section hold plain text; only `markdown` escapes, so that another format can show the same
content. Names in a database may be hostile: nothing from it reaches the page unescaped.
Who fills them: reports/output/report.py and the section modules beside it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pandas as pd

from reports.reading.study import Cell
from reports.statistics.inference import Std, finite, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASH = "–"
_TURNS_TEXT_AROUND = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in ("\\", "|", "`", "*", "[", "]")}
)


@dataclass(frozen=True)
class Table:
    """Columns and rows of plain text; `align` has a letter a column, l or r (default: all r)."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn: its file's name, what it shows, and what its bars and bands are."""

    name: str
    alt: str
    """What a reader who cannot see it must know."""
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, tables, notes under them, and pictures."""

    heading: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()


def plain(value: object) -> str:
    """One line that is safe to print: no control characters, no lone surrogates, no turned text."""
    return "".join(_plain_character(c) for c in str(value))


def escape(value: object) -> str:
    """One line of markdown that shows `value` as it is."""
    return plain(value).translate(_ESCAPES)


def _plain_character(character: str) -> str:
    if character in "\n\r\t\u2028\u2029":
        return " "
    category = unicodedata.category(character)
    return "\ufffd" if category in ("Cc", "Cs") or ord(character) in _TURNS_TEXT_AROUND else character


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


def number(value: Any, decimals: int = 4) -> str:
    """A number with fixed decimals; a dash for a missing one; inf is written out, not hidden."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if abs(value) >= 1e7:
        return f"{value:.4g}"
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text  # -0.00 says nothing


def done_of_all(runs: pd.DataFrame) -> str:
    """`2/3`: finished runs of all runs."""
    return f"{int((runs['status'] == 'done').sum())}/{len(runs)}"


def condition(cell: Cell) -> tuple[str, ...]:
    """The factors' values as table cells."""
    return tuple(str(value) for value in cell)


def signed(value: Any, decimals: int = 4) -> str:
    """A difference: a number that shows its sign."""
    text = number(value, decimals)
    return text if text == DASH or text.startswith("-") else f"+{text}"


def percent(value: Any) -> str:
    """A relative difference in percent, with its sign and two decimals; a dash for none."""
    return signed(value, 2)


def mean(values: npt.ArrayLike, shown: Callable[[float], str]) -> str:
    """The mean of the finite values as `shown` writes it; a dash where there are none. Shape: (S,)."""
    numbers = finite(values)
    return shown(float(numbers.mean())) if numbers.size else DASH


def whole(value: Any) -> str:
    """A count with thousands separators; a dash for a missing one."""
    return DASH if value is None or not math.isfinite(value) else f"{round(value):,}"


def minutes(seconds: float) -> str:
    """Minutes from seconds: one decimal as in the published table, more where that would show 0."""
    value = seconds / 60
    return number(value, 1 if value >= 1 else 2 if value >= 0.1 else 3)


def probability(p: float) -> str:
    """A p value; tiny ones keep their size instead of becoming 0."""
    return f"{p:.1e}" if p < 0.0001 else number(p, 4)


def mean_spread(values: npt.ArrayLike, decimals: int, std: Std, n: int) -> str:
    """`mean ± sd` of the finite values, with its own n where that is below the cell's `n`. Shape: (S,)."""
    numbers = finite(values)
    if not numbers.size:
        return DASH
    text = f"{number(float(numbers.mean()), decimals)} ± {number(spread(numbers, std), decimals)}"
    return text if numbers.size == n else f"{text} (n={numbers.size})"


def interval(low: float, high: float, decimals: int) -> str:
    """An interval, or a dash; no brackets, which markdown would have to escape."""
    return DASH if math.isnan(low) else f"{number(low, decimals)} to {number(high, decimals)}"


def instant(seconds: float | None) -> str:
    """Seconds since 1970 as a UTC date and time."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    return datetime.fromtimestamp(round(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
