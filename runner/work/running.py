"""One attempt in hand: what its trainer says and is asked, until there is an ending.

What is to be written of it goes through its outbox (runner/work/outbox.py). The attempt ends with the job
done, failed, released or cancelled, or with the lease lost.
"""

from __future__ import annotations

import time
import traceback as tracebacks
from collections.abc import Mapping
from typing import Any

from model.events import (
    Checkpointed,
    Event,
    Finished,
    NotSaved,
    Phase,
    Progressed,
    Request,
    Resumed,
    Waiting,
    from_json,
)
from runner.queue.attempts import Ending
from runner.queue.errors import StoreRefused, StoreUnreachable
from runner.queue.jobs import Lease
from runner.work.options import Night
from runner.work.outbox import Outbox
from runner.work.process import TrainerProcess


class RunningJob:
    """A claimed job and the trainer that works on it; `listen` until `ending`, then `conclude`."""

    def __init__(
        self, night: Night, lease: Lease, trainer: TrainerProcess, device: Mapping[str, Any]
    ) -> None:
        """`device` is what the trainer said of itself and its device."""
        self.night, self.display, self.options = night, night.display, night.options
        self.lease, self.trainer = lease, trainer
        self.ending: Ending | None = None
        self.step = 0
        self.advanced = False  # it has left a checkpoint behind
        self.longest_update_seconds = 0.0
        program = {"program_sha256": lease.program["hash"]} if lease.program.get("hash") else {}
        self._outbox = Outbox(night, lease, {**night.machine, **device, **program}, trainer.pid)
        self._boundary_at: float | None = None
        self._update = _steps_between(lease)
        self._phase, self._phase_at = Phase.START, time.monotonic()
        self._asked: Request | None = None

    @property
    def lost(self) -> bool:
        """Whether the job is another's now."""
        return self._outbox.lost

    def start(self) -> None:
        """Command the trainer to run the job from its newest checkpoint that verifies."""
        self._outbox.keep_folder(first=True)
        workdir = self._outbox.workdir
        self.trainer.jobs_run += 1
        self.trainer.send(
            command="run",
            config_json=self.lease.config_json,
            workdir=str(workdir),
            cache_dir=str(self.options.cache.resolve()),
            program=str(self.night.program(self.lease.program)),
            program_hash=self.lease.program.get("hash", ""),
            resume_from=[[str(self.night.runs / path), *rest] for path, *rest in self.lease.checkpoints],
            checkpoint_seconds=self.options.checkpoint_seconds,
            keep_weights=self.options.keep_weights,
            source=self.night.machine["source_sha256"],
            log_path=str(workdir / "trainer.log"),
        )

    def attend(self) -> None:
        """Take what the trainer has sent, write what is due, and end what is silent; without waiting.

        What cannot be taken or written is a bug of this job alone: the worker has others.
        """
        try:
            self.listen()
            self.flush_if_due()
            self.watch()
        except (StoreRefused, StoreUnreachable):
            raise
        except Exception as error:
            self.trainer.kill()
            self._blame(error)

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
        if kind == "ready":  # it was started for this job
            return
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
            if event.phase is Phase.STEP and event.step % self._update == 0:
                self._time_update()
            self.display.progress(self.lease, event)
            return
        if isinstance(event, Finished):
            self.ending = Ending("done", results=event.results)
            return
        self._outbox.add(event)
        self.advanced |= isinstance(event, Checkpointed)
        if isinstance(event, Resumed):
            self.step = event.step
            self.display.resumed(self.lease, event)
        elif isinstance(event, NotSaved):
            self.display.note(f"{self.lease.label}: checkpoint not saved: {event.reason}")
        elif isinstance(event, Waiting):
            self.display.note(f"{self.lease.label}: waiting: {event.reason}")

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
        silent = self._silent_seconds
        limit = self.lease.program.get("stalled_seconds") or self.options.phase_limits[self._phase]
        if self.ending is None and silent > limit:
            code = self.trainer.kill()
            message = f"no sign of life for {silent:.0f} s in phase {self._phase} after step {self.step}"
            self.ending = Ending("failed", "stalled", message, None, code)

    # --- to the database ----------------------------------------------------------------------------------

    def flush_if_due(self) -> None:
        """Write what there is and the heartbeat when it is time; stop ourselves if there is no answer."""
        if not self._outbox.due:
            return
        if self._outbox.flush(self.step, self._silent_seconds):
            self.ask(Request.CANCEL)
        self._end_if_lost()
        if not self.lost and self._outbox.unanswered:
            self.ask(Request.STOP)

    def conclude(self) -> str | None:
        """Try to write the ending.

        Returns what became of the job: done, queued, failed, cancelled or lost; None if the database did not
        take it now, and it is to be tried again.
        """
        if not self.lost:
            self.night.store.check_identity()  # a result must not go into a file that nobody will find
            assert self.ending is not None
            try:
                became = self._outbox.conclude(self.ending, self.step, self._silent_seconds)
            except StoreRefused:  # damaged: no job is to blame
                raise
            except Exception as error:  # what cannot be recorded is a bug of this job, not of the queue
                self._blame(error)
                return None
            if not self.lost:
                return became
            self._end_if_lost()
        return self._outbox.whose()

    def _blame(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        self._outbox.drop()
        self.ending = Ending("failed", "bug", text, "".join(tracebacks.format_exception(error)))

    @property
    def _silent_seconds(self) -> float:
        return time.monotonic() - self._phase_at

    def _end_if_lost(self) -> None:
        if self.lost and not self.trainer.ended:
            self.trainer.kill()


def _steps_between(lease: Lease) -> int:
    """The steps between two points where it can stop, by the program's PACE; 1 where that is no number."""
    told = lease.setting(lease.program.get("pace", {}).get("update", ""), 1)
    return max(1, told) if isinstance(told, int) else 1


def _death(exit_code: int) -> str:
    if exit_code == -9:
        return "the trainer was killed by signal 9; often the kernel's, when memory runs out"
    if exit_code < 0:
        return f"the trainer was ended by signal {-exit_code}"
    return f"the trainer exited with code {exit_code} in mid-run; its log says why"
