"""Text of tables and sections: what they hold, and how numbers are written.

A Table and a Section hold plain text, which every format escapes in its own way: names in a database may be
hostile. Filled by reports/sections, written by reports/output.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pandas as pd

from reports.reading.study import Cell
from reports.statistics.inference import ALPHA, Std, finite, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASH = "–"
_TURNS_TEXT_AROUND = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


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


Fact = tuple[str, str]
"""A label and what it says."""


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, labelled facts, tables, notes under them, and pictures."""

    heading: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    facts: tuple[Fact, ...] = ()


def plain(value: object) -> str:
    """One line that is safe to print: no control characters, no lone surrogates, no turned text."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_plain_character(c) for c in text)


def _plain_character(character: str) -> str:
    if character in "\n\r\t\u2028\u2029":
        return " "
    category = unicodedata.category(character)
    return "\ufffd" if category in ("Cc", "Cs") or ord(character) in _TURNS_TEXT_AROUND else character


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
    """A difference: a number that shows its sign, with more decimals where it would round to 0.

    What is 0 still has none: it says nothing of a direction.
    """
    text = number(value, _telling(value, decimals))
    return text if text in (DASH, "nan") or text.startswith("-") or float(text) == 0 else f"+{text}"


def _telling(value: Any, decimals: int, bounds: tuple[float, ...] = ()) -> int:
    """As many decimals as show a digit other than 0, and on which side of each bound the value lies.

    Up to four more; what has no such digit then is 0.
    """
    if value is None or not math.isfinite(value):
        return decimals

    def tells(each: int) -> bool:
        shown = float(f"{value:.{each}f}")
        return shown != 0 and all(
            (shown > bound, shown < bound) == (value > bound, value < bound) for bound in bounds
        )

    return next((each for each in range(decimals, decimals + 5) if tells(each)), decimals)


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
    """A p value; tiny ones keep their size instead of becoming 0, those near .05 their side of it."""
    return f"{p:.1e}" if 0 < p < 0.0001 else number(p, _telling(p, 4, (ALPHA,)))


def mean_spread(values: npt.ArrayLike, decimals: int, std: Std, n: int) -> str:
    """`mean ± sd` of the finite values, with its own n where that is below the cell's `n`. Shape: (S,)."""
    numbers = finite(values)
    if not numbers.size:
        return DASH
    text = f"{number(float(numbers.mean()), decimals)} ± {number(spread(numbers, std), decimals)}"
    return text if numbers.size == n else f"{text} (n={numbers.size})"


def interval(low: float, high: float, decimals: int, margin: float | None = None) -> str:
    """An interval, or a dash; no brackets, which markdown would have to escape.

    An end has as many decimals as show on which side of 0 and of ± `margin` it lies: words are read off it.
    """
    if math.isnan(low):
        return DASH
    bounds = () if margin is None or math.isnan(margin) else (-margin, margin)
    return " to ".join(number(end, _telling(end, decimals, bounds)) for end in (low, high))


def ratio_interval(low: float, high: float) -> str:
    """The interval of a ratio, from its logarithm's, in percent of change."""
    if math.isnan(low):
        return DASH
    return f"{interval(100 * math.expm1(low), 100 * math.expm1(high), 1)} %"


def listed(items: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def instant(seconds: float | None) -> str:
    """Seconds since 1970 as a UTC date and time."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    return datetime.fromtimestamp(round(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
