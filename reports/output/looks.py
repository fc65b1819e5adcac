"""What the next look at a study says, for the worker that makes it: what it decides, and what runs then.

The decision: reports/statistics/looks.py. The transaction that stores it: runner/queue/looks.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from reports.reading.frames import StudyData, choose_study, load
from reports.statistics.judgement import asked
from reports.statistics.looks import Case, decide, ending
from reports.statistics.sequential import Design
from runner.queue.looks import Decided


def next_look(connection: sa.Connection, study: str) -> Decided:
    """What the next look at a study says, of the runs as they are now; reads only."""
    return look(load(connection, choose_study(connection, study)[0]))


def planned(looks: Mapping[str, Any]) -> Design:
    """The design as the study's row keeps it."""
    return Design(tuple(looks["seeds"]), looks["spending"], looks["futility"])


def cases(data: StudyData) -> list[Case]:
    """The study's claims as a look judges them, of the runs that are there."""
    return [
        Case(c.claim["name"], c.kind, c.contrast, c.margin, c.higher_is_better, c.failures, c.weights)
        for c in asked(data)
    ]


def look(data: StudyData) -> Decided:
    """What the next look at the study decides; the data are those of complete blocks."""
    study = data.study
    design = planned(study.looks)
    number = len(data.looks)
    before = data.looks[-1].outcomes if data.looks else ()
    claims = cases(data)
    outcomes = decide(design, number, claims, before)
    wanted = {
        cell
        for case, outcome in zip(claims, outcomes, strict=True)
        if outcome.open
        for cell in case.weights or ()
    }
    reason = ending(outcomes, last=number + 1 == len(design.seeds))
    cells = [cell for cell in study.cells() if cell in wanted or not study.looks.get("drop", True)]
    return Decided(
        number + 1,
        [outcome.plain() for outcome in outcomes],
        [] if reason else [study.values(cell) for cell in cells],
        reason,
    )
