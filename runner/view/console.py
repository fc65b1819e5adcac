"""What `status` and a change of many jobs print: tables that fit 80 columns.

Names and messages come from files and machines: they are made plain before they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner.queue.schema import STATUSES
from runner.queue.series import digits
from runner.queue.where import counted
from runner.view.text import duration, label, more, plain

if TYPE_CHECKING:
    from runner.queue.selection import Meant

ROWS = 60
"""Rows of a table; a longer list is cut here, and the rest counted."""


def console(stderr: bool = False) -> Console:
    """For stdout, or for stderr; colours only on a terminal, and none where NO_COLOR is set."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def show(out: Console, made: Table, total: int, of: str = "") -> None:
    """Print a table of the first `ROWS` of `total` things, and a line that counts the rest."""
    out.print(made)
    for line in more(total, ROWS, of):
        out.print(line)


def table(title: str, *columns: str, folds: str = "") -> Table:
    """A table without lines; the column `folds` takes what room is left and may break over lines."""
    made = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        wide = column == folds
        made.add_column(column, overflow="fold", no_wrap=not wide, ratio=1 if wide else None)
    return made


def markdown_screen(text: str) -> None:
    """Markdown as a terminal shows it, as wide as that is."""
    from rich.markdown import Markdown  # a parser that no other screen needs

    console().print(Markdown(text))


def chosen_screen(chosen: Sequence[Meant]) -> None:
    """The jobs that a command is about to change, on stderr: the answer is not given yet."""
    made = table(counted(len(chosen), "job"), "job", "study", "cell", "status", "priority", folds="cell")
    for job in chosen[:ROWS]:
        state = job.status + (" (paused)" if job.held else "")
        made.add_row(str(job.id), plain(job.study), label(job.cell, job.seed), state, str(job.priority))
    show(console(stderr=True), made, len(chosen))


def status_screen(
    overview: list[dict[str, Any]], running: list[dict[str, Any]], out: Console | None = None
) -> None:
    """A line a study, a line a running job."""
    out = out or console()
    if not overview:
        out.print("no studies yet: python cli.py enqueue --grid factorial")
        return
    out.print(_studies(overview))
    for study in overview:
        if study["looks"]:
            out.print(plain(f"{study['name']}: {study['looks']['told']}"))
    if any(study["eta_assumed"] and study["eta_seconds"] for study in overview):
        out.print("(in brackets: nobody is at work; with one worker it would take this long)", style="dim")
    if running:
        out.print()
        show(out, _running(running[:ROWS]), len(running))


def eta(study: dict[str, Any]) -> str:
    """A study's ETA as words: in brackets if nobody is at work."""
    if study["paused"]:
        return "paused"
    text = duration(study["eta_seconds"])
    return f"({text})" if study["eta_assumed"] and study["eta_seconds"] else text


def _studies(overview: list[dict[str, Any]]) -> Table:
    made = table("Studies", "study", *STATUSES, "ETA", folds="study")
    for study in overview:
        counts = [str(study[state]) for state in STATUSES]
        if study["held"]:
            counts[0] += f" ({study['held']} paused)"
        made.add_row(plain(study["name"]), *counts, eta(study))
    return made


def _running(running: list[dict[str, Any]]) -> Table:
    names = {job["series"] for job in running if job["series"]}
    mixed = len(names) > 1
    head = "value" if mixed else plain(names.pop()) if names else "loss"
    columns = ("job", "cell", "step", head, "tok/s", "try", "device", "last event")
    made = table("Running", *columns, folds="cell")
    for job in running:
        age = f"{duration(job['event_age_seconds'])} ago"
        made.add_row(
            str(job["id"]),
            label(job["cell"], job["seed"]),
            f"{job['progress_step']}/{job['total_steps']}",
            _value(job, mixed),
            "–" if job["tokens_per_second"] is None else f"{job['tokens_per_second']:,.0f}",
            str(job["attempt"]),
            plain(job["device"] or "–"),
            "lost" if job["stale"] else "cancelling" if job["cancel_requested"] else age,
        )
    return made


def _value(job: dict[str, Any], named: bool) -> str:
    if job["value"] is None:
        return "–"
    return f"{plain(job['series'])} {digits(job['value'])}" if named else digits(job["value"])
