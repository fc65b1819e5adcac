"""How `watch` looks: lines of text for a given width and height. Pure functions of a snapshot.

Letters tell the states apart as well as colours do: a terminal without colours loses nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Group
from rich.text import Text

from runner.queue.schema import STATUSES
from runner.queue.series import digits
from runner.view.console import eta
from runner.view.snapshot import Snapshot
from runner.view.text import curve, duration, label, more, plain, progress, size

GLYPHS = {
    "queued": ("·", "dim"),
    "paused": ("‖", "magenta"),
    "running": ("▶", "bold cyan"),
    "done": ("■", "green"),
    "failed": ("✗", "bold red"),
    "cancelled": ("−", "yellow"),
}
MOST_STUDIES, MOST_RUNNING, MOST_WORKERS, MOST_GPUS, FEWEST_EVENTS = 3, 3, 3, 4, 3


def frame(shown: Snapshot, width: int, height: int | None) -> Group:
    """At most `height` lines of at most `width` columns; all lines if `height` is None."""
    blocks = [_head(shown), _running(shown, width), _machines(shown), _events(shown)]
    room = None if height is None else height - sum(map(len, blocks[:3])) - min(FEWEST_EVENTS, len(blocks[3]))
    lines = [*blocks[0], *_matrix(shown, width, room), *blocks[1], *blocks[2], *blocks[3]][:height]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return Group(*lines)


def _head(shown: Snapshot) -> list[Text]:
    at = datetime.fromtimestamp(shown.at).strftime("%Y-%m-%d %H:%M:%S")
    lines = [Text(f"Nightshift  {at}", style="bold")]
    if not shown.overview:
        return [*lines, Text("no studies yet: python cli.py enqueue --grid factorial")]
    first = [study for study in shown.overview if study["name"] == shown.study]
    others = [study for study in shown.overview[::-1] if study["name"] != shown.study]
    for study in (first + others)[:MOST_STUDIES]:
        line = Text(f"{plain(study['name'])}  ")
        for state in STATUSES:
            if study[state] or state in ("queued", "done"):
                line.append(f"{study[state]} {state}  ", style=GLYPHS[state][1])
        line.append(f"ETA {eta(study)}" if study["queued"] or study["running"] else "finished")
        lines.append(line)
        if study["looks"]:
            lines.append(Text(f"  {study['looks']['told']}"))
    return lines + _more(len(shown.overview), MOST_STUDIES, " studies")


def _matrix(shown: Snapshot, width: int, room: int | None) -> list[Text]:
    """A row a cell, a letter a job; rows that have no room are counted."""
    rows = _letters(shown, width) if shown.cells else _shares(shown, width)
    if room is None or len(rows) <= room:
        return rows
    if room < 2:
        return []
    return rows[: room - 1] + _more(len(rows), room - 1, " cells")


def _letters(shown: Snapshot, width: int) -> list[Text]:
    column = min(max(map(len, shown.cells)), width // 2)
    rows = []
    for cell, states in shown.cells.items():
        row = Text(_padded(cell, column) + " ")
        gap = " " if len(states) * 2 + column < width else ""
        for _, state in states:
            glyph, style = GLYPHS[state]
            row.append(glyph + gap, style=style)
        rows.append(row)
    seeds = [seed for seed, _ in next(iter(shown.cells.values()))]
    span = f"seeds {seeds[0]}…{seeds[-1]}" if len(set(seeds)) > 1 else f"seed {seeds[0]}"
    return [Text(" " * (column + 1) + span, style="dim"), *rows]


def _shares(shown: Snapshot, width: int) -> list[Text]:
    if not shown.counts:
        return []
    column = min(max(map(len, shown.counts)), width // 2)
    rows = []
    for cell, counts in shown.counts.items():
        total, done = sum(counts.values()), counts.get("done", 0)
        said = "".join(f" {count} {state}" for state, count in counts.items() if state != "done")
        row = Text(_padded(cell, column) + " ")
        row.append(progress(done, total, 12), style="green")
        rows.append(row.append(f" {done}/{total} done{said}"))
    return rows


def _running(shown: Snapshot, width: int) -> list[Text]:
    """Two lines a job: who, and how it goes."""
    lines: list[Text] = []
    for job in shown.running[:MOST_RUNNING]:
        age = "lost" if job["stale"] else f"{duration(job['event_age_seconds'])} ago"
        attempt = f", try {job['attempt']}" if job["attempt"] > 1 else ""
        tail = f"{attempt}  {'cancelling' if job['cancel_requested'] else age}"
        name = _padded(
            f"job {job['id']} {label(job['cell'], job['seed'])}", max(12, width - len(tail)), pad=False
        )
        lines.append(Text(name + tail, style="cyan"))
        value = "" if job["value"] is None else f" {plain(job['series'])} {digits(job['value'])}"
        speed = "" if job["tokens_per_second"] is None else f" {job['tokens_per_second']:,.0f} tok/s"
        line = Text("  ").append(progress(job["progress_step"], job["total_steps"], 16), style="cyan")
        line.append(f" {job['progress_step']}/{job['total_steps']}{value}{speed} ")
        lines.append(
            line.append(curve(job.get("curve", []), max(0, min(40, width - line.cell_len))), style="green")
        )
    return lines + _more(len(shown.running), MOST_RUNNING, " are running")


def _machines(shown: Snapshot) -> list[Text]:
    lines = []
    for worker in shown.workers[:MOST_WORKERS]:
        busy = f"job {worker['job_id']}" if worker["job_id"] else "idle"
        where = f"worker {plain(worker['host'])} {plain(worker['device'])} (pid {worker['pid']})"
        sign = "its lease is over" if worker["stale"] else f"{duration(worker['age_seconds'])} ago"
        lines.append(Text(f"{where}: {busy}, {sign}", style="yellow" if worker["stale"] else ""))
    lines += _more(len(shown.workers), MOST_WORKERS, " workers")
    for card in shown.gpus[:MOST_GPUS]:
        used = f"{size(card.used_bytes)} of {size(card.total_bytes)}"
        lines.append(Text(f"GPU {card.index} {plain(card.name)}: {card.busy} % busy, {used}"))
    return lines


def _events(shown: Snapshot) -> list[Text]:
    """The newest first."""
    lines = []
    for event in shown.events:
        at = datetime.fromtimestamp(event["at"]).strftime("%H:%M:%S")
        job = f"job {event['job_id']} " if event["job_id"] else ""
        detail: dict[str, Any] = event["detail"]
        dull = (None, "", False, True)  # a flag is as usual where it stands here
        said = ", ".join(f"{name} {value}" for name, value in detail.items() if value not in dull)
        lines.append(
            Text(f"{at} {job}{plain(event['kind'])}{': ' if said else ''}{plain(said)}", style="dim")
        )
    return lines


def _more(total: int, shown: int, of: str) -> list[Text]:
    return [Text(line, style="dim") for line in more(total, shown, of)]


def _padded(text: str, columns: int, pad: bool = True) -> str:
    """Cut with … or filled to this many columns; a wide letter takes two."""
    made = Text(text)
    made.truncate(columns, overflow="ellipsis", pad=pad)
    return made.plain
