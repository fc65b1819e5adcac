"""`watch`: the queue, live in a terminal; one snapshot on a pipe. Reads the database, changes nothing.

A snapshot is read once a second and drawn by runner/view/frame.py. Ctrl-C leaves it.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.live import Live

from runner.queue.backlog import is_dead
from runner.queue.schema import JobStatus, events, jobs, metrics, studies, workers
from runner.queue.store import Store, StoreUnavailable, now
from runner.queue.studies import named
from runner.view.frame import frame
from runner.view.gpus import Gpu, gpus
from runner.view.status import running_jobs, studies_overview
from runner.view.text import label

REFRESH_SECONDS = 1.0
GPU_SECONDS = 5.0
"""Between two questions to nvidia-smi, which takes its time."""
MOST_GLYPHS = 5_000
"""A study with more jobs is shown by counts."""
MOST_RUNNING = 8
EVENTS = 12


@dataclass(frozen=True)
class Snapshot:
    """What one frame shows."""

    at: float
    overview: list[dict[str, Any]]
    study: str | None
    cells: dict[str, list[tuple[int, str]]]
    """Cell → (seed, state) of each of its jobs; states are the five, and `paused`."""
    counts: dict[str, dict[str, int]]
    """Cell → jobs by state, for a study that is too large for one letter a job."""
    running: list[dict[str, Any]]
    workers: list[dict[str, Any]]
    events: list[dict[str, Any]]
    gpus: list[Gpu] = field(default_factory=list)


def watch(store: Store, study: str | None = None, out: Console | None = None) -> None:
    """Show the queue until Ctrl-C; where stdout is no terminal, once.

    Raises:
        ConfigError: no study of that name.
        StoreUnreachable: the database went away.
    """
    out = out or Console(highlight=False, markup=False, emoji=False)
    cards = gpus()
    with store.read() as connection:
        first = snapshot(connection, study, cards)
    if not out.is_terminal:
        out.print(frame(first, out.width, None))
        return
    signal.signal(signal.SIGTERM, _leave)
    asked_at = time.monotonic()
    live = Live(frame(first, out.width, out.height), console=out, screen=True, auto_refresh=False)
    # Not `with`: a Ctrl-C while the first frame is drawn would leave the terminal without its own screen.
    try:
        live.start(refresh=True)
        while True:
            time.sleep(REFRESH_SECONDS)
            if cards and time.monotonic() - asked_at > GPU_SECONDS:
                cards, asked_at = gpus(), time.monotonic()
            store.check_identity()
            try:
                with store.read() as connection:
                    shown = snapshot(connection, study, cards)
            except StoreUnavailable:  # the last frame stays until the next can be had
                continue
            live.update(frame(shown, out.width, out.height), refresh=True)
    finally:
        live.stop()


def _leave(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def snapshot(connection: sa.Connection, study: str | None, cards: list[Gpu]) -> Snapshot:
    """Read what a frame shows, in one transaction.

    Raises:
        ConfigError: no study of that name.
    """
    overview, running = studies_overview(connection), running_jobs(connection)
    if study is None:
        study = _interesting(overview, running)
    number = named(connection, study).id if study is not None else None
    size = next((each["jobs"] for each in overview if each["name"] == study), 0)
    small = size <= MOST_GLYPHS
    for job in running[:MOST_RUNNING]:
        job["losses"] = _losses(connection, job["id"])
    return Snapshot(
        at=float(connection.scalar(sa.select(now())) or 0.0),
        overview=overview,
        study=study,
        cells=_cells(connection, number) if number is not None and small else {},
        counts=_counts(connection, number) if number is not None and not small else {},
        running=running,
        workers=_workers(connection),
        events=_events(connection),
        gpus=cards,
    )


def _interesting(overview: list[dict[str, Any]], running: list[dict[str, Any]]) -> str | None:
    """The study of the first running job, or the newest that is not over, or the newest."""
    if running:
        return str(running[0]["study"])
    waiting = [study for study in overview if study["queued"]]
    return str((waiting or overview)[-1]["name"]) if overview else None


def _state() -> Any:
    held = sa.and_(jobs.c.status == JobStatus.QUEUED, sa.or_(jobs.c.held == 1, studies.c.held == 1))
    return sa.case((held, "paused"), else_=jobs.c.status).label("state")


def _cells(connection: sa.Connection, number: int) -> dict[str, list[tuple[int, str]]]:
    rows = connection.execute(
        sa.select(jobs.c.cell, jobs.c.seed, _state())
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(jobs.c.study_id == number)
        .order_by(jobs.c.seed, jobs.c.id)
    )
    found: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        found.setdefault(row.cell, []).append((row.seed, row.state))
    return {label(json.loads(cell)): jobs_of_it for cell, jobs_of_it in found.items()}


def _counts(connection: sa.Connection, number: int) -> dict[str, dict[str, int]]:
    state = _state()
    rows = connection.execute(
        sa.select(jobs.c.cell, state, sa.func.count().label("jobs"))
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(jobs.c.study_id == number)
        .group_by(jobs.c.cell, state)
        .order_by(sa.func.min(jobs.c.id))
    )
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(label(json.loads(row.cell)), {})[row.state] = row.jobs
    return found


def _losses(connection: sa.Connection, job_id: int) -> list[float | None]:
    rows = connection.scalars(
        sa.select(metrics.c.value)
        .where(metrics.c.job_id == job_id, metrics.c.split == "train", metrics.c.name == "loss")
        .order_by(metrics.c.step)
    )
    return list(rows)


def _workers(connection: sa.Connection) -> list[dict[str, Any]]:
    """Workers that neither signed off nor are long dead, with the job in hand; the latest heard of first."""
    rows = connection.execute(
        sa.select(
            workers.c.host,
            workers.c.pid,
            workers.c.device,
            jobs.c.id.label("job_id"),
            (now() - workers.c.heartbeat_at).label("age_seconds"),
            (jobs.c.lease_expires_at < now()).label("stale"),
        )
        .outerjoin(jobs, sa.and_(jobs.c.owner == workers.c.id, jobs.c.status == JobStatus.RUNNING))
        .where(workers.c.stopped_at.is_(None), ~is_dead())
        .order_by(workers.c.heartbeat_at.desc())
        .limit(MOST_RUNNING)
    )
    return [dict(row._mapping) for row in rows]


def _events(connection: sa.Connection) -> list[dict[str, Any]]:
    rows = connection.execute(sa.select(events).order_by(events.c.id.desc()).limit(EVENTS))
    return [{**row._mapping, "detail": json.loads(row.detail or "{}")} for row in rows]
