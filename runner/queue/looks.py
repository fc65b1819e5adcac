"""The looks at a study that stops when it knows: when one is due, and the transaction that makes it.

A look reads complete blocks only: it is due when no job of the study is open. What it decides is not worked
out here (runner/ knows no statistics): whoever works the queue brings a function for that, which reads; then
one transaction stores the look, queues the next block, and gives its runs the results that other studies
have. A worker that is killed has either done all of it or nothing, and of two that decided at once the second
finds that there is nothing left to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from runner.queue import attempts as attempt_log
from runner.queue import jobs
from runner.queue.dialects import now, one_at_a_time
from runner.queue.schema import OPEN, looks, results, studies
from runner.queue.schema import jobs as jobs_table
from runner.queue.store import Store
from runner.queue.where import counted

KIND = "look"
"""Of the event that tells of one."""


@dataclass(frozen=True)
class Decided:
    """What a look says, from who knows statistics."""

    number: int
    """From 1."""
    claims: Sequence[Mapping[str, Any]]
    """Each claim as the look leaves it; kept as JSON."""
    cells: Sequence[Mapping[str, Any]]
    """The conditions that get the next block's seeds, factor → level; empty where there are none."""
    reason: str
    """Why it is the last look; empty where the study goes on."""


Decide = Callable[[sa.Connection, str], Decided]
"""Study's name → what the next look at it says; reads only."""
Reseed = Callable[[Mapping[str, Any], str, int], tuple[str, str]]
"""(`studies.program`, a configuration's JSON, a seed) → hash and JSON with that seed."""
Link = Callable[[sa.Connection, str], Mapping[str, int]]
"""Gives a study's untried jobs the results that other studies have: another's name → how many."""


@dataclass(frozen=True)
class Due:
    """A study whose next look can be made."""

    study_id: int
    study: str
    made: int
    """Looks before it."""
    seen: str
    """What its runs had come to; another value means that the decision is of other data."""


@dataclass(frozen=True)
class Made:
    """A look that was made here."""

    study: str
    decided: Decided
    jobs: int
    """Of the next block."""
    taken_over: Mapping[str, int]
    """Another study → how many of them it had."""

    def told(self) -> str:
        """`dose: look 2: 4 of 6 claims decided; 24 runs queued, 3 of them taken over from study pilot`."""
        claims = self.decided.claims
        done = sum(bool(claim["look"]) for claim in claims)
        taken = "".join(
            f", {count} of them taken over from study {name}" for name, count in self.taken_over.items()
        )
        reason = self.decided.reason
        then = f"stopped: {reason}" if reason else f"{counted(self.jobs, 'run')} queued{taken}"
        return f"{self.study}: look {self.decided.number}: {done} of {len(claims)} claims decided; {then}"


@dataclass(frozen=True)
class Standing:
    """How far a study with looks has come."""

    made: int
    of: int
    seeds: int
    """At the last look, or at the first where none was made."""
    most: int
    """Seeds that there may be in all."""
    decided: int
    claims: int
    next: int
    """Seeds at the next look; 0 where there is none."""
    reason: str
    """Why it stopped; empty while it goes on."""
    steps: int
    """Training steps of the blocks that are not queued yet, if all are needed."""

    def told(self, further: str = "") -> str:
        """In words; `further` is how long it may take yet."""
        if not self.made:
            return f"no look yet: the first of {self.of} is at {self.seeds} seeds{further}"
        text = f"look {self.made} of {self.of}, {self.seeds} seeds, {self.decided} of {self.claims} claims"
        if self.reason:
            return f"{text} decided; stopped: {self.reason}"
        return f"{text} decided; next look at {self.next}{further}"


def standing(connection: sa.Connection, study_id: int, plan: Mapping[str, Any]) -> Standing:
    """How far the study has come; `plan` is its design, as its row keeps it."""
    made = connection.execute(
        sa.select(looks).where(looks.c.study_id == study_id).order_by(looks.c.number.desc()).limit(1)
    ).first()
    claims = json.loads(made.claims) if made else []
    number, numbers, reason = (made.number, plan["seeds"], made.reason) if made else (0, plan["seeds"], "")
    following = 0 if reason else numbers[min(number, len(numbers) - 1)]
    return Standing(
        made=number,
        of=len(numbers),
        seeds=made.seeds if made else numbers[0],
        most=numbers[-1],
        decided=sum(bool(claim["look"]) for claim in claims),
        claims=len(claims),
        next=following,
        reason=reason,
        steps=(numbers[-1] - following) * _steps_a_seed(connection, study_id) if following else 0,
    )


def _steps_a_seed(connection: sa.Connection, study_id: int) -> int:
    """Training steps of all conditions with one seed, as in the block that came last."""
    own = jobs_table.c.study_id == study_id
    last = sa.select(jobs_table.c.seed).where(own).order_by(jobs_table.c.id.desc()).limit(1)
    steps = sa.select(sa.func.sum(jobs_table.c.total_steps))
    return int(connection.scalar(steps.where(own, jobs_table.c.seed == last.scalar_subquery())) or 0)


def due(connection: sa.Connection) -> list[Due]:
    """The studies whose block is complete and not looked at; reads only, and cheap where there are none."""
    rows = connection.execute(sa.select(studies).where(studies.c.looks.is_not(None), studies.c.held == 0))
    return [found for row in rows if (found := _due(connection, row)) is not None]


def make(
    connection: sa.Connection, study: Due, decided: Decided, owner: str, reseed: Reseed, link: Link
) -> Made | None:
    """Store a look and queue the next block in one transaction, less what another study has.

    None where the look is made already, or the runs have changed since it was decided: nothing is written.
    """
    one_at_a_time(connection, jobs.SUBMISSION)
    row = connection.execute(sa.select(studies).where(studies.c.id == study.study_id)).first()
    if row is None or _due(connection, row) != study or decided.number != study.made + 1:
        return None
    plan = json.loads(row.looks)
    there, following = _seeds(plan, decided.number), _seeds(plan, decided.number + 1)
    new = [] if decided.reason else following[len(there) :]
    queued, taken_over = 0, {}
    if new:
        queued = _queue(connection, row, [dict(cell) for cell in decided.cells], new, reseed)
        grid = json.loads(row.grid) | {"seeds": following}
        connection.execute(sa.update(studies).where(studies.c.id == row.id).values(grid=json.dumps(grid)))
        taken_over = dict(link(connection, row.name))
    connection.execute(
        looks.insert().values(
            study_id=row.id,
            number=decided.number,
            seeds=len(there),
            made_at=now(),
            owner=owner,
            reason=decided.reason,
            claims=json.dumps([dict(claim) for claim in decided.claims], allow_nan=False),
            jobs=queued,
        )
    )
    detail = {"study_id": row.id, "number": decided.number, "jobs": queued, "reason": decided.reason}
    attempt_log.note(connection, KIND, owner=owner, detail=detail)
    return Made(row.name, decided, queued, taken_over)


def make_due(store: Store, decide: Decide, owner: str, reseed: Reseed, link: Link) -> list[Made]:
    """Make every look that is due; returns those that were made here."""
    with store.read() as connection:
        decisions = [(study, decide(connection, study.study)) for study in due(connection)]
    found = [
        store.write(partial(make, study=study, decided=said, owner=owner, reseed=reseed, link=link))
        for study, said in decisions
    ]
    return [made for made in found if made is not None]


def _seeds(plan: Mapping[str, Any], number: int) -> list[int]:
    """The seeds that there are at a look, from 1."""
    order: list[int] = plan["order"]
    return order[: plan["seeds"][number - 1]] if number <= len(plan["seeds"]) else order


def _due(connection: sa.Connection, study: sa.Row[Any]) -> Due | None:
    made = connection.execute(
        sa.select(looks.c.number, looks.c.reason)
        .where(looks.c.study_id == study.id)
        .order_by(looks.c.number.desc())
        .limit(1)
    ).first()
    number = made.number if made else 0
    if (made and made.reason) or number >= len(json.loads(study.looks)["seeds"]):
        return None
    own = jobs_table.c.study_id == study.id
    if connection.scalar(sa.select(sa.exists().where(own, jobs_table.c.status.in_(OPEN)))):
        return None
    seen = connection.execute(
        sa.select(sa.func.count(), sa.func.sum(jobs_table.c.attempt), sa.func.count(results.c.job_id))
        .select_from(jobs_table)
        .outerjoin(results, results.c.job_id == jobs_table.c.id)
        .where(own)
    ).one()
    return Due(study.id, study.name, number, " ".join(map(str, seen))) if seen[0] else None


def _queue(
    connection: sa.Connection,
    study: sa.Row[Any],
    cells: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    reseed: Reseed,
) -> int:
    """Queue new seeds of some conditions, each as the condition's first runs were queued."""
    own = jobs_table.c.study_id == study.id
    cell, seed_of = jobs_table.c.cell, jobs_table.c.seed
    first = sa.select(cell, sa.func.min(seed_of).label("seed")).where(own).group_by(cell).subquery()
    models = connection.execute(
        sa.select(jobs_table)
        .join(first, sa.and_(first.c.cell == cell, first.c.seed == seed_of))
        .where(own)
        .order_by(jobs_table.c.id)
    ).all()
    wanted = [model for model in models if json.loads(model.cell) in cells]
    program = json.loads(study.program)
    rows = [again(model, seed, program, reseed) for seed in seeds for model in wanted]
    failures = max((model.max_failures for model in wanted), default=3)
    priority = max((model.priority for model in wanted), default=0)
    return jobs.submit(connection, study.id, rows, failures, priority)


def again(model: Any, seed: int, program: Mapping[str, Any], reseed: Reseed) -> dict[str, Any]:
    """The columns of a new job's row: a run like another, with another seed."""
    config_hash, config = reseed(program, model.config, seed)
    return {
        "config_hash": config_hash,
        "config": config,
        "cell": model.cell,
        "seed": seed,
        "total_steps": model.total_steps,
    }
