"""What is still to be written of one attempt, in order, while its lease is kept.

The supervisor alone writes. What the trainer measures waits here until a transaction takes it; a transaction
that cannot be had (a lock, a full disk) is tried again while the trainer goes on. The lease is renewed in the
same transactions. Once it is lost, nothing is written any more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from model.events import Checkpointed, Event, Measured, NotSaved, Resumed, Waiting
from runner.queue import attempts as attempt_log
from runner.queue import jobs, records
from runner.queue.attempts import Ending
from runner.queue.jobs import Lease, LeaseLost
from runner.queue.store import StoreUnavailable
from runner.work.options import Night
from runner.work.signals import awake_seconds

FLUSH_SECONDS = 1.0
"""Longest wait of an event before it is written."""
HEARTBEAT_SHARE = 1 / 6
"""Of the lease: a heartbeat every 10 s for a lease of 60 s."""
FENCE_SHARE = 2 / 3
"""Of the lease: after this long without an answer from the database, the attempt is asked to stop."""


class Outbox:
    """The writes of one attempt; `flush` them while it runs, `conclude` when it has ended."""

    def __init__(self, night: Night, lease: Lease, provenance: Mapping[str, Any], pid: int) -> None:
        self.store, self.display, self.options = night.store, night.display, night.options
        self.lease, self.runs = lease, night.runs
        self.workdir = night.runs / str(lease.job_id) / f"a{lease.attempt}"
        self.lost = False
        self._ran_by: tuple[Mapping[str, Any], int] | None = (provenance, pid)  # until it is written
        self._events: list[Event] = []
        self._waits: list[Event] = []  # each is noted once, and each complaint
        self._complaints: set[str] = set()
        self._flushed_at = self._confirmed_at = awake_seconds()

    def add(self, event: Event) -> None:
        """Keep an event for the next transaction; the same reason to wait is kept once."""
        if isinstance(event, Waiting):
            if event in self._waits:
                return
            self._waits.append(event)
        self._events.append(event)

    def drop(self) -> None:
        """Forget the events: they cannot be recorded."""
        self._events.clear()

    @property
    def due(self) -> bool:
        """Whether it is time to write: for events or for the heartbeat."""
        heartbeat_seconds = self.options.lease_seconds * HEARTBEAT_SHARE
        wait = min(FLUSH_SECONDS, heartbeat_seconds) if self._events else heartbeat_seconds
        return awake_seconds() - self._flushed_at >= wait

    @property
    def unanswered(self) -> bool:
        """Whether the database has been silent for FENCE_SHARE of a lease: another may soon hold the job."""
        return awake_seconds() - self._confirmed_at > self.options.lease_seconds * FENCE_SHARE

    # --- one transaction ----------------------------------------------------------------------------------

    def flush(self, step: int, silent_seconds: float) -> bool:
        """Try to write the events and the heartbeat, with the step reached and the trainer's silence.

        Returns whether it was written, and someone has asked to cancel the job.
        """
        self._flushed_at = awake_seconds()
        self.store.check_identity()
        self.keep_folder()
        cancel = False

        def transaction(connection: sa.Connection) -> list[str]:
            nonlocal cancel
            superfluous, cancel = self._write(connection, step, silent_seconds)
            return superfluous

        return self._try(transaction) and cancel

    def conclude(self, ending: Ending, step: int, silent_seconds: float) -> str | None:
        """Try to write the ending with whatever is left, in one transaction.

        Returns the job's new state; None if the database did not take it now, or the lease is lost.

        Raises:
            Exception: the ending cannot be recorded, and nothing of it was.
        """
        became = ""

        def transaction(connection: sa.Connection) -> list[str]:
            nonlocal became
            superfluous, _ = self._write(connection, step, silent_seconds)
            became, more = self._end(connection, ending)
            return superfluous + more

        return became if self._try(transaction) else None

    def whose(self) -> str | None:
        """After the loss: done if the result there is ours, else lost; None if the database is away.

        If the connection broke during COMMIT, the retry fails at the fence; the results row then tells
        whether the first COMMIT was ours.
        """
        try:
            ours = self.store.try_write(lambda c: jobs.is_finished_by(c, self.lease))
        except StoreUnavailable:
            return None
        return "done" if ours else "lost"

    def _try(self, transaction: Callable[[sa.Connection], list[str]]) -> bool:
        """One try of a transaction; False if it could not be had now, or the lease is lost."""
        sent = len(self._events)
        try:
            superfluous = self.store.try_write(transaction)
        except StoreUnavailable as error:
            self.display.note(f"waiting: {error}")
            time.sleep(0.05)  # a full disk answers at once; a lock has waited already
            return False
        except LeaseLost as error:
            self.lost = True
            self.display.note(f"{error}; dropped")
            return False
        self._confirmed_at = awake_seconds()
        self._ran_by = None
        del self._events[:sent]
        self._remove(superfluous)
        return True

    def _write(self, connection: sa.Connection, step: int, silent_seconds: float) -> tuple[list[str], bool]:
        """The heartbeat and the events; returns the files that they make superfluous, and the answer."""
        lease = self.lease
        cancel = jobs.heartbeat(connection, lease, self.options.lease_seconds, step, silent_seconds)
        if self._ran_by is not None:
            provenance, pid = self._ran_by
            log_path = str(self.workdir.relative_to(self.runs) / "trainer.log")
            records.describe(connection, lease, provenance, log_path, pid)
        superfluous: list[str] = []
        measured: list[Measured] = []
        for event in self._events:
            if isinstance(event, Measured):  # together: a program may log thousands of steps a second
                measured.append(event)
                continue
            if measured:
                records.record(connection, lease, *measured)
                measured.clear()
            if isinstance(event, Resumed):
                records.rewind(connection, lease, event)
            elif isinstance(event, Waiting):
                records.waits(connection, lease, event)
            elif isinstance(event, NotSaved):
                records.not_saved(connection, lease, event)
            elif isinstance(event, Checkpointed):
                path = str(Path(event.path).relative_to(self.runs))
                superfluous += records.checkpointed(connection, lease, event, path)
        if measured:
            records.record(connection, lease, *measured)
        return superfluous, cancel

    def _end(self, connection: sa.Connection, ending: Ending) -> tuple[str, list[str]]:
        """Move the job; returns what became of it, and the files that nobody needs any more."""
        if ending.outcome == "done":
            jobs.finish(connection, self.lease, ending.results or {})
            keep = self.options.keep_checkpoints
            return "done", [] if keep else records.forget_checkpoints(connection, self.lease.job_id)
        if ending.outcome == "preempted":
            jobs.release(connection, self.lease, ending.message or "")
            return "queued", []
        if ending.outcome == "cancelled":
            jobs.end_cancelled(connection, self.lease)
            return "cancelled", []
        why = (ending.cause or "bug", ending.message or "", ending.traceback, ending.exit_code)
        return jobs.fail(connection, self.lease, *why), []

    # --- the run folder -----------------------------------------------------------------------------------

    def keep_folder(self, first: bool = False) -> None:
        """Make the attempt's folder, again if it was deleted; the job goes on without one too."""
        if not first and self.workdir.is_dir():
            return
        deleted = not first or not self.runs.is_dir()
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._complain(f"{error}; going on without checkpoints and logs")
            return
        if deleted:
            self._complain(f"{self.workdir} was deleted, and is made again")

    def _remove(self, paths: list[str]) -> None:
        """Delete files that no row points to any more; what cannot be deleted, `clean` finds later."""
        for path in paths:
            try:
                (self.runs / path).unlink(missing_ok=True)
            except OSError as error:
                self._complain(f"{error}")

    def _complain(self, reason: str) -> None:
        """Say and note once what is wrong with the run folder: it costs checkpoints and logs, never a job."""
        if reason in self._complaints:
            return
        self._complaints.add(reason)
        self.display.note(f"run folder: {reason}")
        lease, detail = self.lease, {"reason": reason}
        of_it = (lease.job_id, lease.attempt, lease.owner)
        with contextlib.suppress(StoreUnavailable):
            self.store.try_write(lambda c: attempt_log.note(c, "run folder", *of_it, detail))
