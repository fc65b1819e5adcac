"""One device of a worker: its trainer process, and the job that this trainer has in hand.

To the database a slot is a worker of its own: its own owner, lease, row and failures. Nothing here waits for
a trainer: the supervisor (runner/work/worker.py) listens to all slots at once and calls `step` on each.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from model.events import Phase, Request
from runner.queue import jobs
from runner.queue.attempts import Ending
from runner.queue.schema import workers
from runner.queue.store import Store, StoreUnavailable, now
from runner.work.options import Options
from runner.work.process import TrainerProcess
from runner.work.progress import Display
from runner.work.running import RunningJob
from runner.work.signals import awake_seconds
from runner.work.source import Source

UNHEALTHY = 70
"""Exit code; sysexits.h: internal."""
QUICK_FAILURES = 3
"""So many in a row, each within `QUICK_SECONDS` and without a checkpoint, and the device is tested."""
QUICK_SECONDS = 60.0
START_AGAIN_SECONDS = (1.0, 4.0, 16.0)
"""Waited before each new start of a trainer that died before it answered; then the device is unhealthy."""
JOBS_PER_TRAINER = 100
"""Then a fresh process: slow leaks stay small, and importing is paid once in a hundred jobs."""
MEMORY_GROWTH = 2.0
"""Times what the process held after its first job; past that it is replaced."""
NOT_NOW = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""The run folder's disk is full, read-only or away: a copy of the source that is missing waits for it."""


@dataclass(frozen=True)
class Concluded:
    """A job that has left its slot."""

    lease: jobs.Lease
    ending: Ending | None
    became: str
    seconds: float


class Slot:
    """A device at work: `free` for a job, `busy` with one, starting its trainer, waiting to, or `out`."""

    def __init__(
        self,
        device: str,
        store: Store,
        options: Options,
        display: Display,
        runs: Path,
        machine: dict[str, Any],
        source: Source,
    ) -> None:
        self.device, self.store, self.options, self.display = device, store, options, display
        self.runs = runs
        self.owner = str(uuid.uuid4())
        self.running: RunningJob | None = None
        self.out = False
        self._machine, self._source = machine, source
        self._trainer: TrainerProcess | None = None
        self._ready: dict[str, Any] = {}
        self._awaited: tuple[str, float] | None = None  # (event, until when)
        self._began_at = 0.0
        self._quick: list[int] = []
        self._suspects: list[int] = []  # failed at once: the device is being tested
        self._broken = ""  # why, until the database knows
        self._deaths = 0  # of trainers, in a row, before they answered
        self._start_at: float | None = None  # not before: the last one died

    # --- what the supervisor asks -------------------------------------------------------------------------

    @property
    def free(self) -> bool:
        """Whether it could take a job, now or once it has a trainer."""
        return not (self.out or self.busy or self.starting or self._start_at is not None)

    @property
    def busy(self) -> bool:
        """Whether a job, or the blame for some, is undecided here."""
        return not self.out and bool(self.running or self._suspects or self._broken)

    @property
    def warm(self) -> bool:
        """Whether it has a trainer already."""
        return self._trainer is not None

    @property
    def starting(self) -> bool:
        return self._awaited is not None

    @property
    def events_fd(self) -> int | None:
        """What to listen to; None where nothing is expected, so that a closed pipe wakes nobody for ever."""
        expected = self.running is not None or self.starting
        return self._trainer.events_fd if self._trainer and expected and not self._trainer.ended else None

    # --- a job --------------------------------------------------------------------------------------------

    def prepare(self) -> bool:
        """Whether a trainer is ready; starts one where there is none.

        It has imported torch and named its device before a job is claimed, so that a crash while importing
        costs no job anything.

        Raises:
            OSError: it cannot be started; `NOT_NOW` where its log and its source have no place.
        """
        source = self._source.keep(self.runs)  # whole before each job: a trainer imports late, too
        if self._trainer is not None and not self.starting and self._worn(self._trainer):
            self.end_trainer()
        if self._trainer is None:
            # Chosen once: after a card or its driver is lost, `auto` must not become a night on the CPU.
            options, device = self.options, self._ready.get("device", self.device)
            self._trainer = TrainerProcess(
                device, options.threads, self._log_path(), options.trainer_command, source
            )
            self._await("ready")
        return not self.starting

    def _log_path(self) -> Path:
        """Of what belongs to no job: in the run folder, or while that is lost, in the temporary one."""
        path = self.runs / f"worker-{self.owner}.log"
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            path = Path(tempfile.gettempdir()) / path.name
            self.display.note(f"run folder: {error}; the trainer's log is {path}")
        return path

    def claim(self, connection: sa.Connection) -> jobs.Lease | None:
        """Take the next job for this slot, which is on the list of workers from then on."""
        device = str(self._ready.get("device", self.device))
        me = jobs.Worker(self.owner, socket.gethostname(), os.getpid(), device, self.options.lease_seconds)
        known = connection.scalar(sa.select(workers.c.id).where(workers.c.id == me.owner))
        if known is None:
            row = {"id": me.owner, "host": me.host, "pid": me.pid, "device": me.device}
            connection.execute(workers.insert().values(started_at=now(), heartbeat_at=now(), **row))
        return jobs.claim(connection, me)

    def take(self, lease: jobs.Lease) -> None:
        """Start on a job that `claim` has brought."""
        assert self._trainer is not None
        self._began_at = awake_seconds()
        self.display.claimed(lease)
        provenance = {**self._machine, **self._ready}
        self.running = RunningJob(
            self.store, lease, self._trainer, self.display, self.options, self.runs, provenance
        )
        self.running.start()

    def step(self) -> Concluded | None:
        """Take what the trainer has said and do what is due, without waiting; a job that is over is returned.

        Raises:
            StoreUnreachable: the database went away.
        """
        if self.running is not None:
            return self._run_on(self.running)
        if self._start_at is not None and awake_seconds() >= self._start_at:
            self._start_at = None
        if self.starting:
            self._hear()
        elif self._start_at is not None:
            pass  # the other slots work on meanwhile
        elif self._suspects and not self._broken:
            self._test_device()
        if self._broken and not self.out:
            self._leave_work()
        return None

    def _run_on(self, running: RunningJob) -> Concluded | None:
        if running.ending is None and not running.lost:
            running.listen()
            running.flush_if_due()
            running.watch()
            if running.ending is None and not running.lost:
                return None
        became = running.conclude()
        if became is None:
            return None
        self.running = None
        seconds = awake_seconds() - self._began_at
        if became != "done":
            self.end_trainer()  # after any failure, cancellation or lost lease: a fresh process
        self._distrust(running, seconds)
        return Concluded(running.lease, running.ending, became, seconds)

    def give_back(self, why: str) -> None:
        """Release the job in hand, without what is not recorded yet, if the database still takes that."""
        running = self.running
        self.end_trainer()
        if running is not None:
            with contextlib.suppress(Exception):  # the job's lease runs out, and another takes it
                self.store.try_write(lambda c: jobs.release(c, running.lease, why))

    def ask_to_stop(self) -> None:
        """Let a job save and come back; a trainer that is only starting, or tested, is ended."""
        if self.running is not None:
            self.running.ask(Request.STOP)
        elif not self._broken:
            self._suspects = []  # untested: those jobs stay charged, and are tried again
            self.end_trainer()

    # --- the device ---------------------------------------------------------------------------------------

    def _distrust(self, running: RunningJob, seconds: float) -> None:
        """Note a failure that looks like the machine's: a bad card must not burn the queue."""
        ending = running.ending
        failed_here = ending is not None and ending.cause in ("device", "infrastructure", "bug", "oom")
        quick = failed_here and seconds < QUICK_SECONDS and not running.advanced
        self._quick = [*self._quick, running.lease.job_id] if quick else []
        if len(self._quick) >= QUICK_FAILURES:
            self._suspects, self._quick = self._quick, []

    def _test_device(self) -> None:
        """The canary, in a fresh trainer."""
        try:
            if self.prepare() and self._trainer is not None:
                self._trainer.send(command="check")
                self._await("checked")
        except OSError as error:
            if error.errno not in NOT_NOW:
                raise
            self.display.note(f"waiting: {error}")

    def _await(self, event: str) -> None:
        self._awaited = (event, awake_seconds() + self.options.phase_limits[Phase.START])

    def _hear(self) -> None:
        """Take the awaited answer, or note why it will not come."""
        assert self._trainer is not None
        assert self._awaited is not None
        trainer, (event, until) = self._trainer, self._awaited
        for message in trainer.receive(0.0):
            if message["event"] == event:
                self._awaited = None
                self._answered(message)
                return
        if trainer.ended:
            self._bury(f"the trainer ended with code {trainer.kill()} before it was {event}")
        elif awake_seconds() > until:
            self._broken = (
                f"the trainer was not {event} within {self.options.phase_limits[Phase.START]:.0f} s"
            )
            self.end_trainer()

    def _bury(self, how: str) -> None:
        """Let another follow a trainer that died, a little later; after several the device is broken."""
        assert self._trainer is not None
        how = f"{how}: {self._trainer.last_words()}"
        self._trainer = self._awaited = None
        if self._deaths == len(START_AGAIN_SECONDS):
            self._broken = how
            return
        seconds = START_AGAIN_SECONDS[self._deaths]
        self._deaths += 1
        self._start_at = awake_seconds() + seconds
        self.display.note(f"{self.device}: {how}; starting another in {seconds:.0f} s")

    def _answered(self, message: dict[str, Any]) -> None:
        if message["event"] == "ready":
            self._ready = {key: value for key, value in message.items() if key != "event"}
            self._deaths = 0 if not self._suspects else self._deaths
        elif message["ok"]:
            self._suspects, self._deaths = [], 0
        else:
            self._broken = str(message["message"])

    def _leave_work(self) -> None:
        """Take the slot out of work: its quick failures are given back, its row is signed off."""

        def transaction(connection: sa.Connection) -> None:
            jobs.uncharge(connection, self.owner, self._suspects)
            self._sign(connection, UNHEALTHY)

        try:
            self.store.try_write(transaction)
        except StoreUnavailable as error:
            self.display.note(f"waiting: {error}")
            return
        count, reason = len(self._suspects), self._broken
        self.out, self._suspects = True, []
        self.end_trainer()
        if count:
            reason = (
                f"{count} jobs failed at once and the device's known-answer check did too ({reason}); "
                "they are back in the queue. Check the device, then run `python cli.py work` again"
            )
        self.display.note(f"unhealthy: {self._ready.get('device', self.device)}: {reason}")

    # --- the trainer process ------------------------------------------------------------------------------

    def _worn(self, trainer: TrainerProcess) -> bool:
        if trainer.jobs_run == 1:
            trainer.first_memory_bytes = trainer.memory_bytes()
        grown = trainer.memory_bytes() > MEMORY_GROWTH * trainer.first_memory_bytes > 0
        return trainer.ended or trainer.exit_code is not None or trainer.jobs_run >= JOBS_PER_TRAINER or grown

    def end_group(self) -> None:
        """SIGKILL to the trainer and what it started, without waiting: safe in a signal handler."""
        if self._trainer is not None:
            self._trainer.end_group()

    def end_trainer(self) -> None:
        """End the trainer, whatever it is doing."""
        trainer, self._trainer, self._awaited = self._trainer, None, None
        if trainer is None:
            return
        trainer.kill()
        with contextlib.suppress(OSError):
            if not trainer.log_path.stat().st_size:  # it had nothing to say outside of its jobs
                trainer.log_path.unlink()

    def sign_off(self, code: int) -> None:
        """Note in its row that the slot is not at work any more, where it does not say so yet."""
        if not self.out:
            self.store.write(lambda c: self._sign(c, code), 5.0)

    def _sign(self, connection: sa.Connection, code: int) -> None:
        signed = sa.update(workers).where(workers.c.id == self.owner)
        connection.execute(signed.values(stopped_at=now(), exit_code=code))
