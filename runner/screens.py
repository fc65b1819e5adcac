"""What `status`, `show` and `enqueue --dry-run` print: rich tables that fit a terminal of 80 columns."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runner.grids import Grid

DRY_RUN_ROWS = 60
"""A longer dry run shows so many and counts the rest."""


def jobs_screen(name: str, grid: Grid) -> None:
    """The jobs that an enqueue would add."""
    base = grid.base
    table = _table(f"{name}: {grid.size} jobs", "seed", *grid.factors, "hash")
    for number, (cell, config) in enumerate(grid.runs()):
        if number == DRY_RUN_ROWS:
            table.caption = f"and {grid.size - DRY_RUN_ROWS} more"
            break
        table.add_row(str(config.seed), *map(str, cell.values()), config.hash[:12])
    console = _console()
    console.print(table)
    console.print(
        f"{base.model.total_parameters:,} parameters, {base.model.active_parameters:,} active a token; "
        f"{base.train.steps} steps of {base.train.batch_size} × {base.train.seq_len} tokens; "
        f"corpus {escape(base.data.corpus)}, vocabulary {base.model.vocab_size:,}; protocol {base.protocol}"
    )


def status_screen(overview: list[dict[str, Any]], running: list[dict[str, Any]]) -> None:
    """A line a study, a line a running job."""
    console = _console()
    states = ("queued", "running", "done", "failed", "cancelled")
    table = _table("Studies", "study", *states)
    for study in overview:
        table.add_row(escape(study["name"]), *(str(study[state]) for state in states))
    console.print(table if overview else "no studies yet: python cli.py enqueue --grid factorial")
    if running:
        table = _table("Running", "job", "cell", "step", "loss", "attempt", "device", "last sign")
        for job in running:
            table.add_row(
                str(job["id"]),
                escape(_cell(job["cell"], job["seed"])),
                f"{job['progress_step']}/{job['total_steps']}",
                "–" if job["loss"] is None else f"{job['loss']:.3f}",
                str(job["attempt"]),
                str(job["device"] or "–"),
                f"{job['heartbeat_age_seconds']:.0f} s" + (" stale" if job["stale"] else ""),
            )
        console.print(table)


def job_screen(details: dict[str, Any]) -> None:
    """One job's whole history."""
    job, result = details["job"], details["result"]
    console = _console()
    console.print(
        f"[bold]job {job['id']}[/] of {escape(job['study'])}: {escape(_cell(job['cell'], job['seed']))}"
    )
    console.print(
        f"{job['status']}, step {job['progress_step']}/{job['total_steps']}, hash {job['config_hash'][:12]}"
    )
    table = _table("Attempts", "no.", "outcome", "cause", "started", "from step", "device", "message")
    for attempt in details["attempts"]:
        table.add_row(
            str(attempt["number"]),
            attempt["outcome"] or "running",
            attempt["cause"] or "",
            _instant(attempt["started_at"]),
            str(attempt["resumed_from_step"] if attempt["resumed_from_step"] is not None else "–"),
            escape(attempt["device"]),
            escape(attempt["message"] or ""),
        )
    console.print(table)
    if result:
        table = _table("Result", "name", "value")
        for name, value in result.items():
            if value is not None and name != "job_id":
                table.add_row(name, f"{value:,.6g}" if isinstance(value, float) else f"{value:,}")
        console.print(table)
    for checkpoint in details["checkpoints"]:
        console.print(f"checkpoint: step {checkpoint['step']}, {checkpoint['path']}")
    table = _table("Events", "at", "attempt", "what", "detail")
    for event in details["events"]:
        detail = json.loads(event["detail"] or "{}")
        said = ", ".join(f"{name}: {value}" for name, value in detail.items() if value not in (None, ""))
        attempt_number = str(event["attempt"] or "")
        table.add_row(_instant(event["at"]), attempt_number, escape(event["kind"]), escape(said))
    console.print(table)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    return table


def _cell(cell: dict[str, Any], seed: int) -> str:
    return " ".join([*(f"{name}={value}" for name, value in cell.items()), f"seed={seed}"])


def _instant(seconds: float | None) -> str:
    return "–" if seconds is None else datetime.fromtimestamp(seconds).strftime("%m-%d %H:%M:%S")
