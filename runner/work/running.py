"""One attempt in hand: what the trainer says goes to the database, in order, while the lease is kept.

The supervisor alone writes. Events wait in an outbox until a transaction takes them; a transaction that
cannot be had (a lock, a full disk) is tried again while the trainer goes on. The attempt ends with the job
done, failed, released or cancelled, or with the lease lost, and then nothing is written.
"""

from __future__ import annotations

import contextlib
import time
import traceback as tracebacks
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from model.events import (
    Checkpointed,
    Event,
    Finished,
    Measured,
    NotSaved,
    Phase,
    Progressed,
    Request,
    Resumed,
    Waiting,
    from_json,
)
from runner.queue import attempts as attempt_log
from runner.queue import jobs, records
from runner.queue.attempts import Ending
from runner.queue.jobs import Lease, LeaseLost
from runner.queue.store import Store, StoreRefused, StoreUnavailable
from runner.work.options import Options
from runner.work.process import TrainerProcess
from runner.work.progress import Display
from runner.work.signals import awake_seconds

FLUSH_SECONDS = 1.0
HEARTBEAT_SHARE = 1 / 6
"""Of the lease: a heartbeat each 10 s for a lease of 60 s."""
FENCE_SHARE = 2 / 3
"""Of the lease: without an answer from the database for so long, the attempt fences itself."""


class RunningJob:
    """A claimed job and the trainer that works on it; `listen` until `ending`, then `conclude`."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        trainer: TrainerProcess,
        display: Display,
        options: Options,
        runs: Path,
        provenance: dict[str, Any],
    ) -> None:
        self.store, self.lease, self.trainer, self.display = store, lease, trainer, display
        self.options, self.runs = options, runs
        self.workdir = runs / str(lease.job_id) / f"a{lease.attempt}"
        self._provenance: dict[str, Any] | None = provenance  # until it is written
        self.ending: Ending | None = None
        self.lost = False
        self.step = 0
        self.advanced = False  # it has left a checkpoint behind
        self.longest_update_seconds = 0.0
        self._boundary_at: float | None = None
        self._accumulate = int(lease.setting("train.accumulate", 1))
        self._phase, self._phase_at = Phase.START, time.monotonic()
        self._outbox: list[Event] = []
        self._waits: list[Event] = []  # each is noted once, and each complaint
        self._complaints: set[str] = set()
        self._asked: Request | None = None
        self._flushed_at = self._confirmed_at = awake_seconds()

    def start(self) -> None:
        """Command the trainer to run the job from its newest checkpoint that verifies."""
        assert self._provenance is not None
        self._keep_folder(was_there=False)
        self.trainer.jobs_run += 1
        self.trainer.send(
            command="run",
            config_json=self.lease.config_json,
            workdir=str(self.workdir),
            cache_dir=str(self.options.cache.resolve()),
            resume_from=[[str(self.runs / path), sha256] for path, sha256 in self.lease.checkpoints],
            checkpoint_seconds=self.options.checkpoint_seconds,
            keep_weights=self.options.keep_weights,
            source=self._provenance["source_sha256"],
            log_path=str(self.workdir / "trainer.log"),
        )

    # --- from the trainer ---------------------------------------------------------------------------------

    def listen(self) -> None:
        """Take what the trainer has sent, without waiting for more."""
        for message in self.trainer.receive(0.0):
            self._take(message)
        if self.trainer.ended and self.ending is None:
            code = self.trainer.kill()
            self.ending = Ending("failed", cause="infrastructure", message=_death(code), exit_code=code)

    def _take(self, message: dict[str, Any]) -> None:
        self._phase_at = time.monotonic()
        kind = message["event"]
        if kind == "stopped":
            outcome = "cancelled" if self._asked is Request.CANCEL else "preempted"
            self.ending = Ending(outcome, message="asked to stop")
        elif kind == "failed":
            self.ending = Ending("failed", message["cause"], message["message"], message["traceback"], 1)
        else:
            self._take_event(from_json(message))

    def _take_event(self, event: Event) -> None:
        if isinstance(event, Progressed):
            self._phase, self.step = event.phase, event.step
            if event.phase is Phase.STEP and event.step % self._accumulate == 0:
                self._time_update()
            self.display.progress(self.lease, event)
        elif isinstance(event, Finished):
            self.ending = Ending("done", results=event.results)
        elif isinstance(event, Waiting):
            self.display.note(f"{self.lease.label}: waiting: {event.reason}")
            if event not in self._waits:
                self._waits.append(event)
                self._outbox.append(event)
        else:
            self._outbox.append(event)
            self.advanced |= isinstance(event, Checkpointed)
            if isinstance(event, Resumed):
                self.step = event.step
                self.display.resumed(self.lease, event)
            elif isinstance(event, NotSaved):
                self.display.note(f"{self.lease.label}: checkpoint not saved: {event.reason}")

    def _time_update(self) -> None:
        """From boundary to boundary, evaluations and saves included: how long a request may have to wait."""
        now = time.monotonic()
        if self._boundary_at is not None:
            self.longest_update_seconds = max(self.longest_update_seconds, now - self._boundary_at)
        self._boundary_at = now

    def ask(self, request: Request) -> None:
        """Pass a request to the trainer, once; a later cancel overrides an earlier stop."""
        if self._asked in (None, Request.STOP) and self._asked is not request and self.ending is None:
            self._asked = request
            self.trainer.send(command="request", request=request)

    def watch(self) -> None:
        """End an attempt whose phase has been silent past its limit; its heartbeat does not excuse it."""
        silent = time.monotonic() - self._phase_at
        if self.ending is None and silent > self.options.phase_limits[self._phase]:
            code = self.trainer.kill()
            message = f"no sign of life for {silent:.0f} s in phase {self._phase} after step {self.step}"
            self.ending = Ending("failed", "stalled", message, None, code)

    # --- to the database ----------------------------------------------------------------------------------

    def flush_if_due(self) -> None:
        """Write the outbox and the heartbeat when it is time; fence ourselves when there is no answer.

        Raises:
            StoreUnreachable: the database file is not the one that was opened.
        """
        now = awake_seconds()
        due = FLUSH_SECONDS if self._outbox else self.options.lease_seconds * HEARTBEAT_SHARE
        if now - self._flushed_at < min(due, self.options.lease_seconds * HEARTBEAT_SHARE):
            return
        self._flushed_at = now
        self.store.check_identity()
        self._keep_folder(was_there=True)
        self._try(self._write_outbox)
        if not self.lost and awake_seconds() - self._confirmed_at > self.options.lease_seconds * FENCE_SHARE:
            self.ask(Request.STOP)

    def _try(self, transaction: Any) -> bool:
        """One try of a transaction; False when it could not be had now, or the lease is lost."""
        sent = len(self._outbox)
        try:
            superfluous, cancel = self.store.try_write(transaction)
        except StoreUnavailable as error:
            self.display.note(f"waiting: {error}")
            time.sleep(0.05)  # a full disk answers at once; a lock has waited already
            return False
        except LeaseLost as error:
            self.lost = True
            self.trainer.kill()
            self.display.note(f"{error}; dropped")
            return False
        self._confirmed_at = awake_seconds()
        self._provenance = None
        del self._outbox[:sent]
        self._remove(superfluous)
        if cancel:
            self.ask(Request.CANCEL)
        return True

    def _remove(self, paths: list[str]) -> None:
        """Delete files that no row points to any more; what cannot be deleted, `clean` finds later."""
        for path in paths:
            try:
                (self.runs / path).unlink(missing_ok=True)
            except OSError as error:
                self._complain(f"{error}")

    def _keep_folder(self, was_there: bool) -> None:
        """Make the attempt's folder, again where it was deleted; the job goes on without one too."""
        if was_there and self.workdir.is_dir():
            return
        deleted = was_there or not self.runs.is_dir()
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._complain(f"{error}; going on without checkpoints and logs")
            return
        if deleted:
            self._complain(f"{self.workdir} was deleted, and is made again")

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

    def _write_outbox(self, connection: sa.Connection) -> tuple[list[str], bool]:
        silent_seconds = time.monotonic() - self._phase_at
        cancel = jobs.heartbeat(connection, self.lease, self.options.lease_seconds, self.step, silent_seconds)
        if self._provenance is not None:
            log_path = str(self.workdir.relative_to(self.runs) / "trainer.log")
            records.describe(connection, self.lease, self._provenance, log_path, self.trainer.pid)
        superfluous: list[str] = []
        for event in self._outbox:
            if isinstance(event, Resumed):
                records.rewind(connection, self.lease, event)
            elif isinstance(event, Measured):
                records.record(connection, self.lease, event)
            elif isinstance(event, Waiting):
                records.waits(connection, self.lease, event)
            elif isinstance(event, NotSaved):
                records.not_saved(connection, self.lease, event)
            elif isinstance(event, Checkpointed):
                path = str(Path(event.path).relative_to(self.runs))
                superfluous += records.checkpointed(connection, self.lease, event, path)
        return superfluous, cancel

    def conclude(self) -> str | None:
        """Try to write the ending with whatever the outbox holds, in one transaction.

        Returns what became of the job: done, queued, failed, cancelled or lost; None where the database did
        not take it now, and it is to be tried again. Where the answer to a COMMIT never came, the fence then
        says that the attempt is over, and the result whose it is.

        Raises:
            StoreUnreachable: the database file is not the one that was opened.
            StoreRefused: it is damaged.
        """
        if not self.lost:
            self.store.check_identity()  # a result must not go into a file that nobody will find
            try:
                if self._try(self._write_ending):
                    return self._became
            except StoreRefused:  # damaged: no job is to blame
                raise
            except Exception as error:  # what cannot be recorded is a bug of this job, not of the queue
                text = f"{type(error).__name__}: {error}".splitlines()[0]
                self._outbox.clear()
                self.ending = Ending("failed", "bug", text, tracebacks.format_exc())
        if not self.lost:
            return None
        try:
            ours = self.store.try_write(lambda c: jobs.is_finished_by(c, self.lease))
        except StoreUnavailable:
            return None
        return "done" if ours else "lost"  # a connection may break after COMMIT: the row is there

    def _write_ending(self, connection: sa.Connection) -> tuple[list[str], bool]:
        superfluous, _ = self._write_outbox(connection)
        ending = self.ending
        assert ending is not None
        if ending.outcome == "done":
            jobs.finish(connection, self.lease, ending.results or {})
            if not self.options.keep_checkpoints:
                superfluous += records.forget_checkpoints(connection, self.lease.job_id)
            self._became = "done"
        elif ending.outcome == "preempted":
            jobs.release(connection, self.lease, ending.message or "")
            self._became = "queued"
        elif ending.outcome == "cancelled":
            jobs.end_cancelled(connection, self.lease)
            self._became = "cancelled"
        else:
            why = (ending.cause or "bug", ending.message or "", ending.traceback, ending.exit_code)
            self._became = jobs.fail(connection, self.lease, *why)
        return superfluous, False


def _death(exit_code: int) -> str:
    if exit_code == -9:
        return "the trainer was killed by signal 9; often the kernel's, when memory runs out"
    if exit_code < 0:
        return f"the trainer was ended by signal {-exit_code}"
    return f"the trainer exited with code {exit_code} in mid-run; its log says why"
