"""What was decided after a study began: how many seeds it should have, and what was added, from the events.

`power` writes an event when it asks for more seeds: which seeds it took the spread from decides how the final
interval may be computed (reports/statistics/inference.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from reports.reading.study import Study
from runner.queue.attempts import LINKED
from runner.queue.schema import events

PLANNED = "seeds planned"
"""The event's kind; its detail is a Plan's fields, and the study's id."""


@dataclass(frozen=True)
class Plan:
    """A number of seeds that was decided on from the seeds that were there."""

    at: float
    metric: str
    rule: str
    """`half-width` (Stein's two stages) or `difference` (80 % power)."""
    value: float
    """The half-width or the difference, in the metric's unit."""
    seeds: tuple[int, ...]
    """The seeds that were there: the first stage."""
    total: int
    """How many there should be in all."""


@dataclass(frozen=True)
class Addition:
    """Runs that joined the study after its first ones."""

    at: float
    runs: int


def plans(connection: sa.Connection, study: Study) -> tuple[Plan, ...]:
    """Every plan of the study, in the order in which they were made."""
    return tuple(
        Plan(
            at=at,
            metric=str(detail["metric"]),
            rule=str(detail["rule"]),
            value=float(detail["value"]),
            seeds=tuple(int(seed) for seed in detail["seeds"]),
            total=int(detail["total"]),
        )
        for at, detail in _events(connection, study, PLANNED)
    )


def additions(connection: sa.Connection, study: Study) -> tuple[Addition, ...]:
    """Every submission after the first."""
    found = [Addition(at, int(detail["jobs"])) for at, detail in _events(connection, study, "submitted")]
    return tuple(found[1:])


def linked(connection: sa.Connection, study: Study) -> tuple[tuple[str, int], ...]:
    """(Another study, runs that were taken over from it and not trained again), by name."""
    counts: Counter[str] = Counter()
    for _, detail in _events(connection, study, LINKED):
        counts[str(detail["from"])] += int(detail["jobs"])
    return tuple(sorted(counts.items()))


def _events(connection: sa.Connection, study: Study, kind: str) -> Iterator[tuple[float, dict[str, Any]]]:
    statement = sa.select(events.c.at, events.c.detail).where(events.c.kind == kind).order_by(events.c.id)
    for at, text in connection.execute(statement):
        detail = json.loads(text or "{}")
        if detail.get("study_id") == study.id:
            yield at, detail
