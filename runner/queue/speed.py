"""How fast runs go on each device, as measured: when a study will be done, what one would cost. Reads only.

A speed is steps a second over everything that a run costs: training, evaluation, compiling, waiting.
"""

from __future__ import annotations

import json
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from runner.queue.schema import JobStatus, attempts, jobs, measures, studies, workers
from runner.queue.store import now

LATEST = 50
"""The newest finished runs of a study, by which its speed is measured: more would only add the past."""
LATEST_OF_HOST = 2_000
"""The newest finished runs of a machine, by which the cost of a size is measured."""
Key = TypeVar("Key")
Size = tuple[Any, ...]
Slot = tuple[str, str]
"""(host, device): two cards of one machine, or of two, need not be equally fast."""


@dataclass(frozen=True)
class Left:
    """What a study still has to do."""

    study_id: int
    steps: int
    order: tuple[int, int]
    """(minus its highest priority, its lowest job): whose jobs are claimed first."""


@dataclass(frozen=True)
class Eta:
    """When a study will be done, from now."""

    seconds: float | None
    """None if no run of it has been timed yet."""
    assumed: bool
    """Nobody is at work: this is how long one worker would take."""


@dataclass(frozen=True)
class Pace:
    """What runs of a size take on a device: starts, steps and evaluations apart, so that short ones tell."""

    step_seconds: float
    evaluated_seconds: float = 0.0
    """Of a unit of what is evaluated: a held-out token, of the language model."""
    start_seconds: float = 0.0
    """Once a run: compiling and waiting, for data and for a trainer."""

    def run_seconds(self, program: Mapping[str, Any], config: Mapping[str, Any], steps: int) -> float:
        """A whole run of such a configuration."""
        evaluating = evaluated(program, config, steps) * self.evaluated_seconds
        return steps * self.step_seconds + evaluating + self.start_seconds


Paces = Mapping[str, Mapping[Size, Pace]]
"""Device → size → its pace."""


def slots_at_work(connection: sa.Connection) -> Counter[Slot]:
    """How many workers hold a job with a good lease, by host and device."""
    held = sa.and_(jobs.c.status == JobStatus.RUNNING, jobs.c.lease_expires_at >= now())
    owners = sa.select(jobs.c.owner).where(held)
    rows = connection.execute(sa.select(workers.c.host, workers.c.device).where(workers.c.id.in_(owners)))
    return Counter((row.host, row.device) for row in rows)


def speeds(connection: sa.Connection, study_id: int) -> dict[Slot, float]:
    """Steps a second by slot: of the latest finished runs; of the running ones if none has finished."""
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


def paces(connection: sa.Connection, host: str | None = None) -> Paces:
    """The paces by device and size, over the newest finished runs of a machine, this one by default."""
    told: dict[str, dict[Size, list[_Took]]] = defaultdict(lambda: defaultdict(list))
    for run in _timed(connection, attempts.c.host == (host or platform.node()), LATEST_OF_HOST):
        program, config = json.loads(run.program), json.loads(run.config)
        whole = run.training is not None and not run.resumed  # else its clocks are of earlier attempts, too
        clocks = (run.training, run.evaluation or 0.0) if whole else (run.seconds, 0.0)
        steps = run.steps - (_setting(program, config, "update") if whole else 0)
        took = _Took(steps, evaluated(program, config, run.steps), run.seconds, *clocks)
        if took.steps > 0 and took.seconds > 0:
            told[run.device][size_of(program, config)].append(took)
    return {device: {size: _pace(runs) for size, runs in sizes.items()} for device, sizes in told.items()}


@dataclass(frozen=True)
class _Took:
    """What a finished run took; one whose program tells no clocks trained all the time."""

    steps: int
    """Those in `training_seconds`: a first update counts as compiling."""
    evaluated: int
    seconds: float
    training_seconds: float
    evaluation_seconds: float


def _pace(runs: Sequence[_Took]) -> Pace:
    scored = sum(run.evaluated for run in runs)
    other = sum(max(0.0, run.seconds - run.training_seconds - run.evaluation_seconds) for run in runs)
    evaluating = sum(run.evaluation_seconds for run in runs)
    return Pace(
        step_seconds=sum(run.training_seconds for run in runs) / sum(run.steps for run in runs),
        evaluated_seconds=evaluating / scored if scored else 0.0,
        start_seconds=(other + (0.0 if scored else evaluating)) / len(runs),
    )


def evaluated(program: Mapping[str, Any], config: Mapping[str, Any], steps: int) -> int:
    """What a run scores, in the program's unit: now and then, at the end, and a sealed split once.

    0 where the program's PACE does not say.
    """
    every = _setting(program, config, "evaluate_every")
    between = (steps - 1) // every if every else 0
    return int((between + 2) * _setting(program, config, "evaluated"))


def size_of(program: Mapping[str, Any], config: Mapping[str, Any]) -> Size:
    """What a run's time a step depends on, of a configuration as it is stored: the program, and its sizes.

    Args:
        program: as `studies.program` has it; `pace` holds dotted keys.
    """
    return program.get("path"), *(_value(config, key) for key in program.get("pace", {}).get("size", ()))


def _setting(program: Mapping[str, Any], config: Mapping[str, Any], name: str) -> int:
    """The value of the key that PACE names so; 0 where it names none."""
    key = program.get("pace", {}).get(name)
    return int(_value(config, key) or 0) if key else 0


def _value(config: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key."""
    *parts, last = key.split(".")
    for part in parts:
        config = config.get(part, {})
    return config.get(last)


def _timed(connection: sa.Connection, chosen: sa.ColumnElement[bool], most: int) -> sa.CursorResult[Any]:
    """The newest attempts among the chosen that finished: host, device, config, program, steps, seconds.

    Steps are those from where the attempt resumed; seconds are all that it lasted, and what of them, as far
    as its program says, went into training and evaluation.
    """
    resumed = sa.func.coalesce(attempts.c.resumed_from_step, 0)
    seconds = attempts.c.ended_at - attempts.c.started_at
    steps = (jobs.c.total_steps - resumed).label("steps")
    timed = [steps, resumed.label("resumed"), seconds.label("seconds")]
    clocks = [_clock("training"), _clock("evaluation")]
    return connection.execute(
        sa.select(attempts.c.host, attempts.c.device, jobs.c.config, studies.c.program, *timed, *clocks)
        .join(jobs, jobs.c.id == attempts.c.job_id)
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(chosen, attempts.c.outcome == "done")
        .order_by(attempts.c.id.desc())
        .limit(most)
    )


def _clock(name: str) -> sa.Label[Any]:
    own = sa.and_(measures.c.job_id == jobs.c.id, measures.c.name == f"{name}_seconds")
    return sa.select(measures.c.value).where(own).scalar_subquery().label(name)


def _finished(connection: sa.Connection, study_id: int) -> dict[Slot, float]:
    runs = _timed(connection, jobs.c.study_id == study_id, LATEST)
    return _speeds(((run.host, run.device), run.steps, run.seconds) for run in runs)


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
        .where(jobs.c.status == JobStatus.RUNNING)
    )
    return _speeds(((row[0], row[1]), row[2], row[3] or 0.0) for row in rows if row[4] == study_id)


def _speeds(runs: Iterable[tuple[Slot, int, float]]) -> dict[Slot, float]:
    return {slot: steps / seconds for slot, (steps, seconds) in _summed(runs).items()}


def _summed(runs: Iterable[tuple[Key, int, float]]) -> dict[Key, tuple[int, float]]:
    """(steps, seconds) by key, of (key, steps, seconds) of each run; a key without either has none."""
    steps: dict[Key, int] = defaultdict(int)
    seconds: dict[Key, float] = defaultdict(float)
    for key, run_steps, run_seconds in runs:
        steps[key] += run_steps
        seconds[key] += run_seconds
    return {key: (steps[key], seconds[key]) for key in steps if steps[key] > 0 and seconds[key] > 0}
