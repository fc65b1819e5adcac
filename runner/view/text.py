"""Small pictures in text and safe words: bars, curves, durations, instants, labels. Pure functions.

What prints them: runner/view/console.py, runner/view/job.py and runner/view/frame.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from runner.queue.where import written

LEVELS = "▁▂▃▄▅▆▇█"


def plain(value: Any) -> str:
    """One line that no terminal takes for a command: an escape sequence in a message stays visible text."""
    return "".join(
        letter if letter.isprintable() else "�" if letter == "\x1b" else " " for letter in str(value)
    )


def bars(values: Sequence[float], full: float) -> str:
    """One letter a value, from ▁ at 0 to █ at `full` and above."""
    if full <= 0:
        return LEVELS[0] * len(values)
    return "".join(LEVELS[min(len(LEVELS) - 1, int(value / full * len(LEVELS)))] for value in values)


def curve(values: Sequence[float | None], width: int) -> str:
    """A line of at most `width` letters, ▁ at the least value and █ at the greatest; × is no number."""
    chosen = thinned(values, width)
    finite = [value for value in chosen if value is not None and math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)

    def letter(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return "×"
        return LEVELS[round((value - low) / (high - low) * (len(LEVELS) - 1))] if high > low else LEVELS[0]

    return "".join(map(letter, chosen))


def thinned(values: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the values, evenly spread, the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[(index + 1) * len(values) // most - 1] for index in range(most)]


def progress(done: int, total: int, width: int) -> str:
    """━━━━╌╌╌╌ of exactly `width` letters."""
    filled = 0 if total <= 0 else min(width, width * done // total)
    return "━" * filled + "╌" * (width - filled)


def duration(seconds: float | None) -> str:
    """45s, 12m, 3h05m, 2d04h: two units at most, – for none."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole}s"
    if hours < 1:
        return f"{minutes}m"
    return f"{hours}h{minutes % 60:02}m" if days < 1 else f"{days}d{hours % 24:02}h"


def instant(seconds: float | None) -> str:
    """Month, day and time of this machine's zone."""
    return "–" if seconds is None else datetime.fromtimestamp(seconds).strftime("%m-%d %H:%M:%S")


def size(size_bytes: float) -> str:
    """Decimal units, as disks are sold: 1 GB is 10^9 bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def label(cell: Mapping[str, Any], seed: int | None = None) -> str:
    """A cell as people name it, and as `show` takes it: noise_std=0.1,top_k=2,seed=43."""
    return plain(written({**cell, **({} if seed is None else {"seed": seed})}, ",")) or "all"


def more(total: int, shown: int, of: str = "") -> list[str]:
    """The line that says how many of a list are not shown, or no line: `and 12 more studies`."""
    return [f"and {total - shown:,} more{of}"] if total > shown else []


def varying(values: Iterable[int]) -> str:
    """A number that all share, or the span: `1,000` or `1,000 to 2,000`."""
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
