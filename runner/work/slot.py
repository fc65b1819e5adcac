"""One device of a worker: the job in its hands, and whether the device is still to be trusted with another.

To the database a slot is a worker of its own: its own owner, lease, row and failures. Nothing here waits for
a trainer: the supervisor (runner/work/worker.py) listens to all slots at once and calls `step` on each. How
the slot comes by a trainer that is ready: runner/work/upkeep.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import sqlalchemy as sa

from model.events import Request
from runner.queue import jobs
from runner.queue.attempts import Ending
from runner.queue.schema import workers
from runner.queue.store import StoreUnavailable, now
from runner.queue.where import counted
from runner.work.options import Night
from runner.work.running import RunningJob
from runner.work.signals import awake_seconds
from runner.work.upkeep import NOT_NOW, Unfit, Upkeep

UNHEALTHY = 70
"""Exit code; sysexits.h: internal."""
QUICK_FAILURES = 3
"""When this many jobs in a row fail, each within `QUICK_SECONDS` and without a checkpoint, the device is
tested."""
QUICK_SECONDS = 60.0


class State(Enum):
    """What a slot is doing.

    FREE ──take──► RUNNING ──the job is over──► FREE, or SUSPECT after `QUICK_FAILURES` in a row
    SUSPECT ──the check passes──► FREE ──its trainers die──► BROKEN
    SUSPECT ──the check fails──► BROKEN ──the database has noted it──► OUT
    """

    FREE = auto()
    """Without a job; its trainer is ready, starting, or still to be started."""
    RUNNING = auto()
    SUSPECT = auto()
    """Jobs failed here at once: the device's known-answer check decides whether it is to blame."""
    BROKEN = auto()
    """The device is to blame, and the database does not know yet."""
    OUT = auto()
    """Out of work for the rest of this worker's night."""


@dataclass(frozen=True)
class Concluded:
    """A job that has left its slot."""

    lease: jobs.Lease
    ending: Ending | None
    became: str
    seconds: float


class Slot:
    """A device at work."""

    def __init__(self, device: str, night: Night) -> None:
        self.night, self.store, self.display = night, night.store, night.display
        self.owner = str(uuid.uuid4())
        self.state = State.FREE
        self.running: RunningJob | None = None  # while RUNNING
        self._upkeep = Upkeep(device, self.owner, night)
        self._began_at = 0.0
        self._failed_quickly: list[int] = []  # jobs in a row; while SUSPECT or BROKEN, those it is judged by
        self._broken_because = ""

    # --- what the supervisor asks -------------------------------------------------------------------------

    @property
    def free(self) -> bool:
        """Whether it could take a job, now or once it has a trainer."""
        return self.state is State.FREE and not self._upkeep.pending

    @property
    def busy(self) -> bool:
        """Whether a job, or the blame for some, is undecided here."""
        return self.state in (State.RUNNING, State.SUSPECT, State.BROKEN)

    @property
    def out(self) -> bool:
        return self.state is State.OUT

    @property
    def warm(self) -> bool:
        """Whether it has a trainer already."""
        return self._upkeep.trainer is not None

    @property
    def events_fd(self) -> int | None:
        """The pipe to select() on, or None: a closed pipe is always readable and would spin the loop."""
        trainer, expected = self._upkeep.trainer, self.running is not None or self._upkeep.hears
        return trainer.events_fd if trainer and expected and not trainer.ended else None

    # --- a job --------------------------------------------------------------------------------------------

    def prepare(self, program: Mapping[str, Any]) -> bool:
        """Whether a trainer is ready for a job of this program; see `Upkeep.prepare`."""
        return self._upkeep.prepare(program)

    def claim(self, connection: sa.Connection) -> jobs.Lease | None:
        """Take the next job for this slot, which is on the list of workers from then on."""
        device, lease_seconds = self._upkeep.device, self.night.options.lease_seconds
        me = jobs.Worker(self.owner, socket.gethostname(), os.getpid(), device, lease_seconds)
        known = connection.scalar(sa.select(workers.c.id).where(workers.c.id == me.owner))
        if known is None:
            row = {"id": me.owner, "host": me.host, "pid": me.pid, "device": me.device}
            connection.execute(workers.insert().values(started_at=now(), heartbeat_at=now(), **row))
        return jobs.claim(connection, me)

    def take(self, lease: jobs.Lease) -> None:
        """Start on a job that `claim` has brought."""
        if not self._upkeep.serves(lease.program):  # another worker was quicker with the job it is ready for
            self._upkeep.exchange(lease.program)
        trainer = self._upkeep.trainer
        assert trainer is not None
        self._began_at = awake_seconds()
        self.display.claimed(lease)
        self.state = State.RUNNING
        self.running = RunningJob(self.night, lease, trainer, self._upkeep.said)
        self.running.start()

    def step(self) -> Concluded | None:
        """Take what the trainer has said and do what is due, without waiting; returns a job that is over."""
        if self.running is not None:
            return self._run_on(self.running)
        try:
            if self._upkeep.pending:
                self._hear()
            elif self.state is State.SUSPECT:
                self._check_device()
        except Unfit as error:
            self.state, self._broken_because = State.BROKEN, str(error)
        if self.state is State.BROKEN:
            self._leave_work()
        return None

    def _run_on(self, running: RunningJob) -> Concluded | None:
        if running.ending is None and not running.lost:
            running.attend()
            if running.ending is None and not running.lost:
                return None
        became = running.conclude()
        if became is None:
            return None
        self.running = None
        seconds = awake_seconds() - self._began_at
        if became != "done":
            self._upkeep.end()  # after any failure, cancellation or lost lease: a fresh process
        self.state = State.SUSPECT if self._casts_doubt(running, seconds) else State.FREE
        return Concluded(running.lease, running.ending, became, seconds)

    def give_back(self, why: str) -> None:
        """Release the job in hand, without what is not recorded yet, if the database still takes that."""
        self._upkeep.end()
        if (running := self.running) is not None:
            with contextlib.suppress(Exception):  # the job's lease runs out, and another takes it
                self.store.try_write(lambda c: jobs.release(c, running.lease, why))

    def ask_to_stop(self) -> None:
        """Let a job save and come back; a trainer that is only starting, or checking, is ended."""
        if self.running is not None:
            self.running.ask(Request.STOP)
        elif self.state is not State.BROKEN:
            if self.state is State.SUSPECT:  # untested: those jobs stay charged, and are tried again
                self.state, self._failed_quickly = State.FREE, []
            self._upkeep.end()

    # --- the device ---------------------------------------------------------------------------------------

    def _casts_doubt(self, running: RunningJob, seconds: float) -> bool:
        """Whether this was one quick failure too many: a bad card must not burn the queue."""
        ending = running.ending
        failed_here = ending is not None and ending.cause in ("device", "infrastructure", "bug", "oom")
        quick = failed_here and seconds < QUICK_SECONDS and not running.advanced
        self._failed_quickly = [*self._failed_quickly, running.lease.job_id] if quick else []
        return len(self._failed_quickly) >= QUICK_FAILURES

    def _check_device(self) -> None:
        """Ask for the known-answer check, in a fresh trainer."""
        try:
            self._upkeep.check()
        except OSError as error:
            if error.errno not in NOT_NOW:
                raise
            self.display.note(f"waiting: {error}")

    def _hear(self) -> None:
        message = self._upkeep.hear()
        if message is None:
            return
        if message["event"] == "checked" and not message["ok"]:
            raise Unfit(message["message"])
        if self.state is State.SUSPECT and message["event"] == "checked":
            self.state, self._failed_quickly = State.FREE, []
        if self.state is State.FREE:
            self._upkeep.proven()

    def _leave_work(self) -> None:
        """Take the slot out of work: its quick failures are given back, its row is signed off."""
        blamed = self._failed_quickly if len(self._failed_quickly) >= QUICK_FAILURES else []

        def transaction(connection: sa.Connection) -> None:
            jobs.uncharge(connection, self.owner, blamed)
            self._sign(connection, UNHEALTHY)

        try:
            self.store.try_write(transaction)
        except StoreUnavailable as error:
            self.display.note(f"waiting: {error}")
            return
        self.state, reason = State.OUT, self._broken_because
        self._upkeep.end()
        if blamed:
            reason = (
                f"{counted(len(blamed), 'job')} failed at once, as did the device's own check ({reason}); "
                "back in the queue. Check the device, then run `python cli.py work` again"
            )
        self.display.note(f"unhealthy: {self._upkeep.device}: {reason}")

    # --- the end ------------------------------------------------------------------------------------------

    def end_group(self) -> None:
        """SIGKILL to the trainer and what it started, without waiting: safe in a signal handler."""
        if (trainer := self._upkeep.trainer) is not None:
            trainer.end_group()

    def end_trainer(self) -> None:
        """End the trainer, whatever it is doing."""
        self._upkeep.end()

    def sign_off(self, code: int) -> None:
        """Note in its row that the slot is not at work any more, unless it says so already."""
        if not self.out:
            self.store.write(lambda c: self._sign(c, code), 5.0)

    def _sign(self, connection: sa.Connection, code: int) -> None:
        signed = sa.update(workers).where(workers.c.id == self.owner)
        connection.execute(signed.values(stopped_at=now(), exit_code=code))
