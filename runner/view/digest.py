"""`digest`: the morning after in twenty lines, for people and for `work --on-finish COMMAND`. Reads only.

Device time is the attempts' wall-clock time, whatever the device. Wasted is the time of attempts that ended
failed, lost or cancelled and left nothing that a later attempt went on from.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from typing import Any

import sqlalchemy as sa

from runner.queue.attempts import wasted
from runner.queue.schema import OVER, JobStatus, attempts, jobs, measures, studies
from runner.queue.store import Store, now
from runner.view.status import studies_overview
from runner.view.text import duration, instant, label, more, plain

LINES = 20
WIDTH = 100
"""Characters of a line: what a mail or a telephone shows."""
ON_FINISH_SECONDS = 60.0
"""Longest run of the --on-finish command; a mail that hangs must not keep the machine."""
_FAILED = ("failed", "lost", "cancelled")


def digest(connection: sa.Connection, hours: float = 24.0) -> str:
    """What happened in the last `hours`, what is left, and the best cell so far; at most 20 lines."""
    since, until = connection.execute(sa.select(now() - hours * 3600.0, now())).one()
    overview = studies_overview(connection)
    tried = _attempts(connection, since)
    lines = [
        f"Nightshift, {instant(since)} to {instant(until)}",
        _finished(connection, tried, since),
        *_failures(connection, since),
        _recovered(tried),
        _hours(tried, since),
        "",
        *_studies(connection, overview, since),
    ]
    return "\n".join(_cut([line for line in lines if line is not None])) + "\n"


def send(store: Store, command: str, findings: str = "") -> str | None:
    """Run a shell command with the digest, and `findings` after it, on its stdin, in UTF-8.

    Returns what went wrong, if anything did. It is run even if there is no digest to be had: its stdin then
    says why.
    """
    try:
        store.check_identity()  # a file that was moved away is still open, and knows nothing of the end
        with store.read() as connection:
            text = digest(connection) + (f"\n{findings}" if findings else "")
    except Exception as error:  # whatever it is, the night is over, and whoever waits is to know
        text = f"no digest: {plain(error)}\n"
    try:
        done = subprocess.run(
            command,
            shell=True,  # the user's own words, as at a prompt: a pipe to mail or curl
            input=text.encode(errors="replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=ON_FINISH_SECONDS,
            start_new_session=True,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return plain(f"{type(error).__name__}: {error}")
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or "it said nothing"
        return plain(f"exit code {done.returncode}: {said.splitlines()[-1]}")
    return None


def _attempts(connection: sa.Connection, since: float) -> list[dict[str, Any]]:
    """Every attempt of the jobs that were tried in the time, by job and number."""
    tried = sa.select(attempts.c.job_id).where(
        sa.or_(attempts.c.ended_at >= since, attempts.c.outcome.is_(None))
    )
    columns = ("job_id", "number", "outcome", "started_at", "ended_at")
    # A running attempt whose worker is gone did nothing after its last heartbeat.
    alive_until = sa.case((jobs.c.lease_expires_at < now(), jobs.c.heartbeat_at), else_=now())
    rows = connection.execute(
        sa.select(
            *(attempts.c[name] for name in columns),
            wasted().label("wasted"),
            alive_until.label("alive_until"),
            jobs.c.status,
        )
        .join(jobs, jobs.c.id == attempts.c.job_id)
        .where(attempts.c.job_id.in_(tried))
        .order_by(attempts.c.job_id, attempts.c.number)
    )
    return [{**row._mapping, "recent": row.ended_at is None or row.ended_at >= since} for row in rows]


def _finished(connection: sa.Connection, tried: list[dict[str, Any]], since: float) -> str:
    """Jobs by what became of them in the time."""
    ended = connection.execute(
        sa.select(jobs.c.status, sa.func.count())
        .where(jobs.c.status.in_(OVER), jobs.c.finished_at >= since)
        .group_by(jobs.c.status)
    )
    counts = {row[0]: row[1] for row in ended}
    running = len({attempt["job_id"] for attempt in tried if attempt["outcome"] is None})
    said = [f"{counts.get(status, 0)} {status}" for status in OVER]
    return ", ".join([*said, f"{running} running"])


def _failures(connection: sa.Connection, since: float, most: int = 5) -> list[str]:
    """Why jobs failed for good: by the last attempt's cause and message, the most frequent first."""
    rows = connection.execute(
        sa.select(attempts.c.job_id, attempts.c.cause, attempts.c.message)
        .join(jobs, sa.and_(jobs.c.id == attempts.c.job_id, jobs.c.attempt == attempts.c.number))
        .where(jobs.c.status == JobStatus.FAILED, jobs.c.finished_at >= since)
        .order_by(attempts.c.job_id)
    ).all()
    why = Counter((row.cause or "unknown", row.message or "") for row in rows)
    first = {(row.cause or "unknown", row.message or ""): row.job_id for row in reversed(rows)}
    said = [
        f"  {count} × {cause}: {plain(message)} (job {first[cause, message]})"
        for (cause, message), count in why.most_common(most)
    ]
    return said + ([f"  and {len(why) - most} other reasons"] if len(why) > most else [])


def _recovered(tried: list[dict[str, Any]]) -> str | None:
    """Jobs that are done although an attempt of theirs ended badly."""
    hurt = {each["job_id"]: each["outcome"] for each in tried if each["outcome"] in ("failed", "lost")}
    saved = [job for job in hurt if any(e["job_id"] == job and e["status"] == "done" for e in tried)]
    if not saved:
        return None
    how = Counter(hurt[job] for job in saved)
    return f"recovered: {len(saved)} ({', '.join(f'{count} after {what}' for what, count in how.items())})"


def _hours(tried: list[dict[str, Any]], since: float) -> str:
    used = lost = 0.0
    for attempt in tried:
        if attempt["recent"]:
            ended = attempt["ended_at"] or attempt["alive_until"]
            seconds = max(0.0, ended - max(attempt["started_at"], since))
            used += seconds
            lost += seconds * (attempt["outcome"] in _FAILED and attempt["wasted"])
    share = f" ({lost / used:.0%})" if used else ""
    return f"Device time: {duration(used)} used, {duration(lost)} of it wasted{share}"


def _studies(
    connection: sa.Connection, overview: list[dict[str, Any]], since: float, most: int = 6
) -> list[str]:
    """Two lines, or three, a study that is open or moved in the time, the newest first; if none, the last."""
    ended = sa.select(jobs.c.study_id).where(jobs.c.finished_at >= since)
    moved = set(connection.scalars(sa.select(studies.c.name).where(studies.c.id.in_(ended))))
    told = [study for study in overview if study["queued"] or study["running"] or study["name"] in moved]
    shown = (told or overview[-1:])[::-1][:most]
    lines: list[str] = []
    for study in shown:
        left = study["queued"] + study["running"]
        rest = f"{left} left, {_when(study)}" if left else "nothing left"
        lines.append(f"{plain(study['name'])}: {study['done']}/{study['jobs']} done, {rest}")
        if study["looks"]:
            lines.append(f"  {study['looks']['told']}")
        if best := _best(connection, study["name"]):
            lines.append(f"  {best}")
    return lines + more(len(told), most, " studies")


def _when(study: dict[str, Any]) -> str:
    """When it will be done: `2m to go`, and what that rests on."""
    if study["paused"]:
        return "paused"
    once = " once a worker is started" if study["eta_assumed"] else ""
    if study["eta_seconds"] is None:
        return f"not timed yet{', nobody is at work' if once else ''}"
    return f"{duration(study['eta_seconds'])} to go{once}"


def _best(connection: sa.Connection, study: str) -> str | None:
    """The cell with the best mean of the primary metric; None before the first result."""
    row = connection.execute(
        sa.select(studies.c.id, studies.c.grid, studies.c.program).where(studies.c.name == study)
    ).one()
    known = json.loads(row.program).get("measures", [])
    metric = json.loads(row.grid).get("primary") or next((each["name"] for each in known), None)
    better = next((each["better"] for each in known if each["name"] == metric), "none")
    value, runs = sa.func.avg(measures.c.value), sa.func.count(measures.c.value)
    found = connection.execute(
        sa.select(jobs.c.cell, value, runs)
        .join(measures, measures.c.job_id == jobs.c.id)
        .where(jobs.c.study_id == row.id, measures.c.name == metric, measures.c.value.is_not(None))
        .group_by(jobs.c.cell)
        .order_by(value.desc() if better == "higher" else value.asc(), jobs.c.cell)
        .limit(1)
    ).first()
    if found is None:
        return None
    return f"best so far: {label(json.loads(found[0]))}, {metric} {found[1]:.4f} (n={found[2]})"


def _cut(lines: list[str]) -> list[str]:
    short = [line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in lines]
    return short if len(short) <= LINES else [*short[: LINES - 1], "…"]
