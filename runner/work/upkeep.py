"""The trainer that a slot keeps ready: started before a job is claimed, replaced when it is worn or dies.

Nothing here waits. `prepare` and `check` start or ask; `hear`, called again and again, brings the answer. If
none will come, or several trainers in a row have died before they answered, `hear` raises `Unfit`.
"""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.events import Phase
from runner.work.options import Night
from runner.work.process import TrainerProcess
from runner.work.signals import awake_seconds

START_AGAIN_SECONDS = (1.0, 4.0, 16.0)
"""Pauses before the next start, one for each trainer in a row that died before it answered. When one more
dies, the device is unfit."""
JOBS_PER_TRAINER = 100
"""After this many jobs a fresh process: slow leaks stay small, and importing is paid once in a hundred."""
MEMORY_GROWTH = 2.0
"""Ratio of a trainer's memory to what it held after its first job. Above it, the process is replaced."""
NOT_NOW = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENOMEM)
"""What passes: the run folder's disk is full, read-only or away while a copy of the source is missing there,
or the machine has no room for one more process. The worker waits."""


class Unfit(Exception):
    """No trainer can be had on this device; the message says what the last one did."""


class Upkeep:
    """One device's trainer: none, starting, ready, checking the device, or dead and soon to be followed."""

    def __init__(self, device: str, owner: str, night: Night) -> None:
        self.night, self.display = night, night.display
        self.trainer: TrainerProcess | None = None
        self.said: dict[str, Any] = {}
        """What the trainer said of itself when it was ready: its device, the versions, the environment."""
        self._asked_for, self._owner = device, owner
        self._awaited: tuple[str, float] | None = None  # (event, until when)
        self._start_at: float | None = None  # not before: the last one died
        self._deaths = 0
        self._warm = ""

    @property
    def device(self) -> str:
        """Chosen once: after a card or its driver is lost, `auto` must not become a night on the CPU."""
        return str(self.said.get("device", self._asked_for))

    @property
    def hears(self) -> bool:
        """Whether an answer is awaited."""
        return self._awaited is not None

    @property
    def pending(self) -> bool:
        """Whether an answer is awaited, or the pause after a death."""
        return self.hears or self._start_at is not None

    def prepare(self, program: Mapping[str, Any] | None = None) -> bool:
        """Whether a trainer is ready for a job of the program; starts one if none is, or another is due.

        One for a program that opens the device itself has done so before a job is claimed, so that a crash
        while importing costs no job anything; it serves many jobs. Any other serves one: what a program does
        to its process reaches no other run. None asks for the one that there was.

        Raises:
            OSError: it cannot be started; one of `NOT_NOW` if log, source or process have no place now.
        """
        source = self.night.source.keep(self.night.runs)  # whole before each job: a trainer imports late, too
        warm = self._warm if program is None else self.night.warm(program)
        if self.trainer is not None and (
            warm != self._warm or (not self.hears and _worn(self.trainer, warm))
        ):
            self.end()
        self._warm = warm
        if self.trainer is None:
            options = self.night.options
            self.trainer = TrainerProcess(
                self.device, options.threads, self._log_path(), options.trainer_command, source, warm
            )
            self._await("ready")
        return not self.hears

    def serves(self, program: Mapping[str, Any]) -> bool:
        """Whether the trainer that is ready may run a job of the program."""
        return self.night.warm(program) == self._warm

    def exchange(self, program: Mapping[str, Any]) -> None:
        """Another trainer at once, for a job already in hand: its commands wait until it has started."""
        self.end()
        self.prepare(program)
        self._awaited = None

    def check(self) -> None:
        """Ask for the known-answer check as soon as a trainer is ready for it."""
        if self.prepare() and self.trainer is not None:
            self.trainer.send(command="check")
            self._await("checked")

    def hear(self) -> dict[str, Any] | None:
        """The awaited answer once it is there; None before.

        Raises:
            Unfit: it will not come, and no other trainer is started.
        """
        if self._start_at is not None and awake_seconds() >= self._start_at:
            self._start_at = None
        if self.trainer is None or self._awaited is None:
            return None
        event, until = self._awaited
        for message in self.trainer.receive(0.0):
            if message["event"] == event:
                self._awaited = None
                if event == "ready":
                    self.said = {key: value for key, value in message.items() if key != "event"}
                return message
        if self.trainer.ended:
            code = self.trainer.kill()
            how = f"the trainer ended with code {code} before it was {event}: {self.trainer.last_words()}"
            self.trainer = self._awaited = None
            self._pause(how)
        elif awake_seconds() > until:
            self.end()
            raise Unfit(f"the trainer was not {event} within {self._start_limit_seconds:.0f} s")
        return None

    def proven(self) -> None:
        """The trainer has done what it was started for: the deaths before it do not count any more."""
        self._deaths = 0

    def end(self) -> None:
        """End the trainer, whatever it is doing."""
        trainer, self.trainer, self._awaited = self.trainer, None, None
        if trainer is None:
            return
        trainer.kill()
        with contextlib.suppress(OSError):
            if not trainer.log_path.stat().st_size:  # it had nothing to say outside of its jobs
                trainer.log_path.unlink()

    def _pause(self, how: str) -> None:
        if self._deaths == len(START_AGAIN_SECONDS):
            raise Unfit(how)
        seconds = START_AGAIN_SECONDS[self._deaths]
        self._deaths += 1
        self._start_at = awake_seconds() + seconds
        self.display.note(f"{self._asked_for}: {how}; starting another in {seconds:.0f} s")

    @property
    def _start_limit_seconds(self) -> float:
        return self.night.options.phase_limits[Phase.START]

    def _await(self, event: str) -> None:
        self._awaited = (event, awake_seconds() + self._start_limit_seconds)

    def _log_path(self) -> Path:
        """Of what belongs to no job: in the run folder, or while that is lost, in the temporary one."""
        path = self.night.runs / f"worker-{self._owner}.log"
        try:
            self.night.runs.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            path = Path(tempfile.gettempdir()) / path.name
            self.display.note(f"run folder: {error}; the trainer's log is {path}")
        return path


def _worn(trainer: TrainerProcess, warm: str) -> bool:
    if trainer.jobs_run == 1:
        trainer.first_memory_bytes = trainer.memory_bytes()
    grown = trainer.memory_bytes() > MEMORY_GROWTH * trainer.first_memory_bytes > 0
    served = trainer.jobs_run >= (JOBS_PER_TRAINER if warm else 1)
    return trainer.ended or trainer.exit_code is not None or served or grown
