"""How fast each study goes on each device, measured, and from that when it will be done. Reads only.

A speed is steps a second over everything that a run costs: training, evaluation, compiling, waiting.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from runner.queue.schema import attempts, jobs, results, workers
from runner.queue.store import now

LATEST = 50
"""Finished runs that a speed is measured by: more would only add the past."""

Slot = tuple[str, str]
"""(host, device): two cards of one machine, or of two, need not be equally fast."""


@dataclass(frozen=True)
class Left:
    """What a study has before it."""

    study_id: int
    steps: int
    order: tuple[int, int]
    """(minus its highest priority, its lowest job): whose jobs are claimed first."""


@dataclass(frozen=True)
class Eta:
    """When a study will be done, from now."""

    seconds: float | None
    """None where nothing of it has been timed yet."""
    assumed: bool
    """Nobody is at work: this is how long one worker would take."""


def slots_at_work(connection: sa.Connection) -> Counter[Slot]:
    """How many workers hold a job with a good lease, by host and device."""
    owners = sa.select(jobs.c.owner).where(jobs.c.status == "running", jobs.c.lease_expires_at >= now())
    rows = connection.execute(sa.select(workers.c.host, workers.c.device).where(workers.c.id.in_(owners)))
    return Counter((row.host, row.device) for row in rows)


def speeds(connection: sa.Connection, study_id: int) -> dict[Slot, float]:
    """Steps a second by slot: of the latest finished runs, or where there are none, of the running ones."""
    return _finished(connection, study_id) or _running(connection, study_id)


def etas(connection: sa.Connection, lefts: Sequence[Left]) -> dict[int, Eta]:
    """For each study with steps left: when, if the workers go on as they are, one study after another."""
    at_work = slots_at_work(connection)
    found: dict[int, Eta] = {}
    before: float | None = 0.0
    for left in sorted((each for each in lefts if each.steps > 0), key=lambda each: each.order):
        speed = together(speeds(connection, left.study_id), at_work)
        # A study that was never timed makes the end of those behind it unknown too.
        before = None if speed is None or before is None else before + left.steps / speed
        found[left.study_id] = Eta(before, assumed=not at_work)
    return found


def together(measured: Mapping[Slot, float], at_work: Mapping[Slot, int]) -> float | None:
    """Steps a second of all workers; one that was not timed counts as the mean, and nobody as one worker."""
    if not measured:
        return None
    mean = sum(measured.values()) / len(measured)
    return sum(measured.get(slot, mean) * count for slot, count in at_work.items()) or mean


def _finished(connection: sa.Connection, study_id: int) -> dict[Slot, float]:
    clocks = ("training_seconds", "evaluation_seconds", "compile_seconds", "waiting_seconds")
    seconds = sum((sa.func.coalesce(results.c[name], 0.0) for name in clocks), sa.literal(0.0))
    latest = (
        sa.select(attempts.c.host, attempts.c.device, jobs.c.total_steps, seconds.label("seconds"))
        .select_from(results)
        .join(jobs, jobs.c.id == results.c.job_id)
        .join(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.number == results.c.attempt))
        .where(jobs.c.study_id == study_id)
        .order_by(results.c.job_id.desc())
        .limit(LATEST)
    )
    return _by_slot(
        [(row.host, row.device, row.total_steps, row.seconds) for row in connection.execute(latest)]
    )


def _running(connection: sa.Connection, study_id: int) -> dict[Slot, float]:
    began = sa.func.coalesce(attempts.c.resumed_from_step, 0)
    # By status alone, which has an index: of a study's hundred thousand jobs only a few are running.
    rows = connection.execute(
        sa.select(
            attempts.c.host,
            attempts.c.device,
            jobs.c.progress_step - began,
            jobs.c.heartbeat_at - attempts.c.started_at,
            jobs.c.study_id,
        )
        .join(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt))
        .where(jobs.c.status == "running")
    )
    return _by_slot([(row[0], row[1], row[2], row[3] or 0.0) for row in rows if row[4] == study_id])


def _by_slot(runs: Sequence[tuple[str, str, int, float]]) -> dict[Slot, float]:
    steps: dict[Slot, int] = defaultdict(int)
    seconds: dict[Slot, float] = defaultdict(float)
    for host, device, run_steps, run_seconds in runs:
        steps[host, device] += run_steps
        seconds[host, device] += run_seconds
    return {slot: steps[slot] / seconds[slot] for slot in steps if steps[slot] > 0 and seconds[slot] > 0}
