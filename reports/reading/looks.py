"""The looks at a study that stops when it knows: its design, and what each look decided, from the database.

What a look decides: reports/statistics/looks.py. How it comes to be stored: runner/queue/looks.py.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from runner.queue.schema import looks as looks_table


@dataclass(frozen=True)
class Outcome:
    """A claim as a look left it; NaN where there is no number."""

    name: str
    n: int
    """Seeds that have every condition of it."""
    difference: float
    sd: float
    df: int
    low: float
    """Ends of the repeated interval: at the look's level, corrected for `tests` claims."""
    high: float
    p: float
    """Against no difference, corrected for the looks and for `tests` claims."""
    equivalence_p: float
    """Against a difference of the margin, corrected alike."""
    level: float
    """The two-sided level of the look's t test."""
    tests: int
    """Claims that were open when it was tested (Holm)."""
    verdict: str
    look: int
    """Which look decided it, from 1; 0 while it is open."""
    power: float
    """While it is open: the chance that the last look decides it, if the difference is what it seems."""
    futile: bool
    """That chance is below the design's limit: it alone is no reason for further seeds."""

    @property
    def open(self) -> bool:
        """Whether it is a reason for further seeds."""
        return not self.look and not self.futile

    def plain(self) -> dict[str, Any]:
        """As it is stored: JSON has no NaN and no infinity."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Look:
    """One look at a study."""

    number: int
    """From 1."""
    seeds: int
    """How many there were."""
    at: float
    reason: str
    """Why it was the last; empty where the study went on."""
    outcomes: tuple[Outcome, ...]


def looks(connection: sa.Connection, study_id: int) -> tuple[Look, ...]:
    """Every look at the study, in order."""
    rows = connection.execute(
        sa.select(looks_table).where(looks_table.c.study_id == study_id).order_by(looks_table.c.number)
    )
    return tuple(
        Look(row.number, row.seeds, row.made_at, row.reason, tuple(map(_outcome, json.loads(row.claims))))
        for row in rows
    )


def _outcome(told: dict[str, Any]) -> Outcome:
    values: dict[str, Any] = {key: math.nan if value is None else value for key, value in told.items()}
    return Outcome(**values)
