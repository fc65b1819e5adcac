"""What the pages of `page` and `work --page` show: every study, what runs, what failed. Reads only.

Names and messages are given as they are; the template escapes them. No host, process or address is shown, and
of paths a corpus's alone: the pages may lie where everybody reads them. How they look and where they go:
runner/page/pages.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from runner.queue.schema import STATUSES, attempts, jobs, studies
from runner.queue.series import digits
from runner.view.console import eta
from runner.view.snapshot import Snapshot, snapshot
from runner.view.text import duration, label, plain, thinned

MOST_FAILURES = 20
MOST_POINTS = 160
"""Of a curve; a telephone has fewer columns of pixels."""
_SECRET = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*(?=@)")
"""User and password in an address, as a message may quote one."""

Screen = Callable[[sa.Connection, str], str]
"""Makes a study's first screen as HTML that is safe in a page: reports/output/page.py."""


@dataclass(frozen=True)
class Running:
    """A running job."""

    name: str
    step: int
    total: int
    state: str
    """`loss 7.990, 575 tok/s, 2s ago`."""
    curve: tuple[tuple[float, float], ...]
    """Points (x, y), each from 0 to 100; a higher value has a higher y."""
    series: str
    """What the curve is of: `training loss`, say."""
    first: str
    last: str
    """The values at both ends of the curve."""


@dataclass(frozen=True)
class Failure:
    """A job that failed for good."""

    name: str
    cause: str
    message: str


@dataclass(frozen=True)
class Study:
    """A study as a page shows it."""

    name: str
    counts: tuple[tuple[str, int], ...]
    """(state, number of jobs), without states that no job is in."""
    total: int
    when: str
    looks: str
    """How far its looks have come, in words; empty for a study with a fixed number of seeds."""
    seeds: str
    cells: tuple[tuple[str, tuple[tuple[int, str], ...]], ...]
    """(cell, its (seed, state) pairs); empty for a study too large to show a square for each job."""
    shares: tuple[tuple[str, int, int], ...]
    """(cell, done, jobs), for a study that is too large."""
    running: tuple[Running, ...]
    failures: tuple[Failure, ...]
    more_failures: int
    screen: str
    """The first screen of its report, as HTML; empty without results."""


@dataclass(frozen=True)
class Night:
    """All studies, at one moment."""

    at: str
    headline: str
    studies: tuple[Study, ...]
    """Those with running jobs first, then the newest."""


def night(connection: sa.Connection, screen: Screen | None = None) -> Night:
    """Read it all, in one transaction; `screen` makes the first screens of studies with results."""
    first = snapshot(connection, None, [])
    names = [study["name"] for study in first.overview]
    shown = {name: snapshot(connection, name, []) for name in names}
    at_work = {job["study"] for job in first.running}
    newest = names[::-1]
    order = [*(n for n in newest if n in at_work), *(n for n in newest if n not in at_work)]
    found = tuple(_study(connection, shown[name], screen) for name in order)
    counts = {state: sum(study[state] for study in first.overview) for state in STATUSES}
    return Night(
        at=datetime.fromtimestamp(first.at).astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        headline=", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "done"),
        studies=found,
    )


def _study(connection: sa.Connection, shown: Snapshot, screen: Screen | None) -> Study:
    told = next(study for study in shown.overview if study["name"] == shown.study)
    name = str(told["name"])
    failures, more = _failures(connection, name)
    seeds = sorted({seed for states in shown.cells.values() for seed, _ in states})
    return Study(
        name=name,
        counts=tuple((state, told[state]) for state in STATUSES if told[state]),
        total=told["jobs"],
        when=f"ETA {eta(told)}" if told["queued"] or told["running"] else "finished",
        looks=told["looks"]["told"] if told["looks"] else "",
        seeds=f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else "",
        cells=tuple((cell, tuple(states)) for cell, states in shown.cells.items()),
        shares=tuple((c, counts.get("done", 0), sum(counts.values())) for c, counts in shown.counts.items()),
        running=tuple(_running(job) for job in shown.running if job["study"] == name),
        failures=failures,
        more_failures=more,
        screen=screen(connection, name) if screen is not None and told["done"] else "",
    )


def _running(job: dict[str, Any]) -> Running:
    said = [] if job["value"] is None else [f"{plain(job['series'])} {digits(job['value'])}"]
    said += [] if job["tokens_per_second"] is None else [f"{job['tokens_per_second']:,.0f} tok/s"]
    said += [f"try {job['attempt']}"] if job["attempt"] > 1 else []
    said += ["lost" if job["stale"] else f"{duration(job['event_age_seconds'])} ago"]
    values = thinned([value for value in job.get("curve", []) if value is not None], MOST_POINTS)
    return Running(
        name=f"job {job['id']} {label(job['cell'], job['seed'])}",
        step=job["progress_step"],
        total=job["total_steps"],
        state=", ".join(said),
        curve=_points(values) if len(values) > 1 else (),
        series=plain(job["series"]),
        first=digits(values[0]) if values else "",
        last=digits(values[-1]) if values else "",
    )


def _points(values: list[float]) -> tuple[tuple[float, float], ...]:
    """Points evenly spaced in x; in y the lowest value is at 0 and the highest at 100."""
    low, high = min(values), max(values)
    height = (high - low) or 1.0
    last = len(values) - 1
    return tuple(
        (round(100 * i / last, 2), round(100 * (value - low) / height, 2)) for i, value in enumerate(values)
    )


def _failures(connection: sa.Connection, study: str) -> tuple[tuple[Failure, ...], int]:
    """The latest jobs that failed for good, by their last attempt, and how many more there are."""
    failed = (
        sa.select(jobs.c.id, jobs.c.cell, jobs.c.seed, attempts.c.cause, attempts.c.message)
        .join(studies, studies.c.id == jobs.c.study_id)
        .join(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt))
        .where(studies.c.name == study, jobs.c.status == "failed")
    )
    count = connection.scalar(sa.select(sa.func.count()).select_from(failed.subquery())) or 0
    latest = connection.execute(failed.order_by(jobs.c.finished_at.desc(), jobs.c.id).limit(MOST_FAILURES))
    found = tuple(
        Failure(
            f"job {row.id} {label(json.loads(row.cell), row.seed)}",
            row.cause or "unknown",
            without_secrets(plain(row.message or "")),
        )
        for row in latest
    )
    return found, count - len(found)


def without_secrets(text: str) -> str:
    """The text, without the user and password of any address in it."""
    return _SECRET.sub("…", text)
