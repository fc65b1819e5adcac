"""`logs`: what an attempt printed, from its own file, and further as it grows. Reads only.

The file is runs/<database id>/<job>/a<attempt>/trainer.log, on the machine that ran the attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from runner.queue.jobs import UnknownJob
from runner.queue.schema import attempts
from runner.queue.store import Store

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Log:
    """One attempt's log file."""

    path: Path
    job_id: int
    attempt: int
    host: str


def find_log(store: Store, runs: Path, job_id: int, number: int | None) -> Log:
    """The log of an attempt, the newest where `number` is None.

    Raises:
        UnknownJob: the job has no such attempt, or its file is not on this machine.
    """
    of_job = attempts.c.job_id == job_id
    with store.read() as connection:
        found = connection.execute(sa.select(attempts).where(of_job).order_by(attempts.c.number)).all()
    if not found:
        raise UnknownJob(f"job {job_id}: never started; `python cli.py work` starts it")
    chosen = found[-1] if number is None else next((each for each in found if each.number == number), None)
    if chosen is None:
        known = ", ".join(str(each.number) for each in found)
        raise UnknownJob(f"job {job_id}: no attempt {number}; there are {known}")
    # An attempt that died young never wrote where its log is; the place is a rule.
    relative = chosen.log_path or f"{job_id}/a{chosen.number}/trainer.log"
    path = runs / store.database_id / relative
    if not path.exists() and chosen.outcome is not None:
        raise UnknownJob(
            f"job {job_id}, attempt {chosen.number}: no log at {path}; it ran on {chosen.host}, "
            "or `python cli.py clean` removed it (--runs-dir names another folder)"
        )
    return Log(path, job_id, chosen.number, chosen.host)


def lines(log: Log, ended: Callable[[], bool], follow: bool) -> Iterator[str]:
    """The file's text in pieces; with `follow` until the attempt has ended and all of it was read."""
    position, over = 0, not follow
    while True:
        # Asked before reading: what is written before the end is then in this read or an earlier one.
        over = over or ended()
        if log.path.exists():
            with log.path.open("rb") as file:
                file.seek(position)
                while piece := file.read(1 << 16):
                    position += len(piece)
                    yield piece.decode(errors="replace")
        if over:
            return
        time.sleep(POLL_SECONDS)


def has_ended(store: Store, log: Log) -> bool:
    """Whether the attempt is over."""
    of_it = sa.and_(attempts.c.job_id == log.job_id, attempts.c.number == log.attempt)
    with store.read() as connection:
        return connection.scalar(sa.select(attempts.c.outcome).where(of_it)) is not None
