"""The digest, sent while the night goes on: at a fixed interval, and soon after a job has failed for good.

Runs beside `work --notify COMMAND --notify-every 2h` (runner/page/beside.py); the last one is `work`'s own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import sqlalchemy as sa

from runner.queue.schema import JobStatus, jobs
from runner.queue.store import Store, StoreUnavailable
from runner.view import digest

LOOK_SECONDS = 30.0
"""Between two queries for failed jobs."""
APART_SECONDS = 600.0
"""At least this between two messages of failures: if everything fails, one message says so, not a hundred."""


def keep_telling(
    store: Store,
    command: str,
    every_seconds: float | None,
    wait: Callable[[float], bool],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Send the digest to a shell command until `wait(seconds)` returns True.

    Args:
        every_seconds: between two digests; None sends them at failures only.
    """
    known, told_at, failed_at = _failed(store), clock(), -APART_SECONDS
    while not wait(LOOK_SECONDS if every_seconds is None else min(LOOK_SECONDS, every_seconds)):
        try:
            store.check_identity()
            failed = _failed(store)
            known = min(known, failed)  # some may have been retried
        except StoreUnavailable:
            continue
        at = clock()
        fresh = failed > known and at - failed_at >= APART_SECONDS
        due = every_seconds is not None and at - told_at >= every_seconds
        if not fresh and not due:
            continue
        if trouble := digest.send(store, command):
            say(f"--notify: {trouble}")
        told_at = at
        if fresh:
            known, failed_at = failed, at
    # The last message is the worker's own, with what the night has found.


def _failed(store: Store) -> int:
    with store.read() as connection:
        count = sa.select(sa.func.count()).where(jobs.c.status == JobStatus.FAILED)
        return connection.scalar(count) or 0
