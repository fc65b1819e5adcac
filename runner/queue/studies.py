"""What is said of a study as a whole: that it waits, that it goes on, that its sealed test is opened.

How one is made from a grid: runner/design/enqueue.py.
"""

from __future__ import annotations

import sqlalchemy as sa

from model.config import ConfigError
from runner.queue import attempts as attempt_log
from runner.queue import jobs
from runner.queue.dialects import now
from runner.queue.schema import jobs as jobs_table
from runner.queue.schema import studies


def reveal_test(connection: sa.Connection, study: str, command: str = "cli.py test") -> bool:
    """Open a study's sealed test split for good; True the first time, False when it was open already.

    The event keeps when and by which command, so that a report can say that the scores have been seen.

    Raises:
        ConfigError: no study of that name, or one whose results were not computed here.
    """
    named = sa.select(studies).where(studies.c.name == study)
    row = connection.execute(named.with_for_update()).first()
    if row is None:
        raise ConfigError(f"study {study!r}: not in this database; `python cli.py status` lists the studies")
    if row.imported_from:
        raise ConfigError(f"study {study!r}: imported results; they have no test split")
    if row.test_revealed_at is not None:
        return False
    connection.execute(sa.update(studies).where(studies.c.id == row.id).values(test_revealed_at=now()))
    attempt_log.note(connection, "test revealed", detail={"study_id": row.id, "command": command})
    return True


def hold(connection: sa.Connection, study: str, held: bool) -> None:
    """Pause a study (its queued jobs, and those that come later, wait), or let it and its jobs go on.

    Raises:
        ConfigError: no study of that name.
    """
    row = connection.execute(sa.select(studies).where(studies.c.name == study)).first()
    if row is None:
        raise ConfigError(f"study {study!r}: not in this database; `python cli.py status` lists the studies")
    connection.execute(sa.update(studies).where(studies.c.id == row.id).values(held=int(held)))
    attempt_log.note(connection, "study paused" if held else "study resumed", detail={"study_id": row.id})
    if not held:
        own = sa.select(jobs_table.c.id).where(jobs_table.c.study_id == row.id, jobs_table.c.held == 1)
        jobs.unhold(connection, connection.scalars(own).all())
