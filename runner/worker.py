"""The supervisor: claims jobs, keeps a trainer process, heartbeats, watches, and serves signals.

It never imports torch: a native call that holds the GIL in the trainer cannot stop its heartbeat. One job at
a time: runner/running.py has the attempt in hand, this file decides what comes next.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from model.events import Phase, Request
from runner import jobs, provenance
from runner.display import Display
from runner.process import TrainerProcess
from runner.running import PHASE_LIMIT_SECONDS, RunningJob
from runner.schema import workers
from runner.status import Backlog, backlog
from runner.stopping import Stop, awake_seconds
from runner.store import Store, StoreUnavailable, now

DRAINED, UNREACHABLE, UNHEALTHY, PREEMPTED = 0, 69, 70, 75
"""Exit codes; sysexits.h gives 69 (unavailable), 70 (internal), 75 (try again later)."""

QUICK_FAILURES = 3
"""So many in a row, each within `QUICK_SECONDS` and without a checkpoint, and the device is tested."""
QUICK_SECONDS = 60.0
JOBS_PER_TRAINER = 100
"""Then a fresh process: slow leaks stay small, and importing is paid once in a hundred jobs."""
MEMORY_GROWTH = 2.0
"""Times what the process held after its first job; past that it is replaced."""
POLL_SECONDS = 2.0
FULL = (errno.ENOSPC, errno.EDQUOT)
"""A full disk under the run folder: a new trainer's log has to wait for room."""


@dataclass(frozen=True)
class Options:
    """What `work` was asked for."""

    device: str = "auto"
    threads: int = 1
    jobs: int | None = None
    wait: bool = False
    time_limit_seconds: float | None = None
    checkpoint_seconds: float = 120.0
    lease_seconds: float = 60.0
    runs: Path = Path("runs")
    cache: Path = Path("data_cache")
    keep_checkpoints: bool = False
    keep_weights: bool = False
    phase_limits: dict[Phase, float] = field(default_factory=lambda: dict(PHASE_LIMIT_SECONDS))
    trainer_command: tuple[str, ...] | None = None


class Unhealthy(Exception):
    """The device or the trainer cannot work; the message says how that was found."""


class Worker:
    """One supervisor; `run` until the queue is drained or it is asked to stop."""

    def __init__(self, store: Store, options: Options, display: Display) -> None:
        self.store, self.options, self.display = store, options, display
        self.owner = str(uuid.uuid4())
        self.runs = (options.runs / store.database_id).resolve()
        self.jobs_done = 0
        self.studies: list[str] = []  # worked on, in order
        self._trainer: TrainerProcess | None = None
        self._ready: dict[str, Any] = {}
        self._machine = provenance.of_this_machine()
        self._stop = Stop(options.time_limit_seconds, self._end_group)
        self._quick: list[int] = []
        self._pace: list[tuple[float, int]] = []  # (seconds, steps) of the finished jobs

    # --- the night ----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work the queue; returns the exit code.

        Raises:
            StoreUnreachable: the database went away.
        """
        self._stop.catch_signals()
        self.runs.mkdir(parents=True, exist_ok=True)
        self.display.start()
        code = UNREACHABLE
        try:
            code = self._work()
        except Unhealthy as error:
            self.display.note(f"unhealthy: {error}")
            code = UNHEALTHY
        finally:
            self.display.stop()
            self._end_trainer()
            with contextlib.suppress(Exception):  # the exit code matters more than this row
                self._sign_off(code)
        return code

    def _work(self) -> int:
        while not self._stop.asked and self.jobs_done != self.options.jobs:
            try:
                left = self._backlog()
                if left.empty and not self.options.wait:
                    return DRAINED
                trainer = self._ready_trainer() if left.due else None
                claimed = self.store.write(self._claim, POLL_SECONDS) if trainer is not None else None
            except (StoreUnavailable, OSError) as error:
                if isinstance(error, OSError) and error.errno not in FULL:
                    raise
                self.display.note(f"waiting: {error}")
                self._stop.pause(POLL_SECONDS)
                continue
            if trainer is not None and claimed is not None:
                self._run_job(trainer, claimed)
            elif not left.due:
                self._wait(left)
        return self._exit_code()

    def _claim(self, connection: sa.Connection) -> jobs.Claim | None:
        me = self._identity()
        known = connection.scalar(sa.select(workers.c.id).where(workers.c.id == me.owner))
        if known is None:
            row = {"id": me.owner, "host": me.host, "pid": me.pid, "device": me.device}
            connection.execute(workers.insert().values(started_at=now(), heartbeat_at=now(), **row))
        return jobs.claim(connection, me)

    def _run_job(self, trainer: TrainerProcess, claimed: jobs.Claim) -> None:
        began = awake_seconds()
        self.display.claimed(claimed)
        running = RunningJob(
            self.store,
            claimed,
            trainer,
            self.display,
            self.options.lease_seconds,
            self.runs,
            self.options.phase_limits,
            {**self._machine, **self._ready},
            self.options.keep_checkpoints,
        )
        running.start(self.options.cache, self.options.checkpoint_seconds, self.options.keep_weights)
        while running.ending is None and not running.lost:
            running.listen(0.2, self._stop.wake_fd)
            self._stop.clear_wake()
            running.flush_if_due()
            running.watch()
            slowest = max(self._stop.slowest_update_seconds, running.longest_update_seconds)
            self._stop.slowest_update_seconds = slowest
            if self._stop.asked:
                self.display.note("stopping: finishing the update and saving (again to leave at once)")
                running.ask(Request.STOP)
        became = running.conclude()
        self.jobs_done += 1
        if claimed.study not in self.studies:
            self.studies.append(claimed.study)
        self._account(running, became, awake_seconds() - began)

    def _account(self, running: RunningJob, became: str, seconds: float) -> None:
        """Say what became of the job, and decide whether the process and the device are still trusted."""
        ending, claimed = running.ending, running.claimed
        if became == "done" and ending is not None and ending.results is not None:
            self._pace.append((seconds, claimed.total_steps))
            perplexity = ending.results["val_perplexity"]
            self.display.note(f"{claimed.label}: done in {seconds:.0f} s, val perplexity {perplexity:.2f}")
        elif ending is not None and ending.outcome == "failed":
            self.display.note(f"{claimed.label}: {ending.cause}: {ending.message} → {became}")
        else:
            self.display.note(f"{claimed.label}: {became}")
        self.display.idle()
        if became != "done":
            self._end_trainer()  # after any failure, cancellation or lost lease: a fresh process
        failed_here = ending is not None and ending.cause in ("device", "infrastructure", "bug", "oom")
        quick = failed_here and seconds < QUICK_SECONDS and not running.advanced
        self._quick = [*self._quick, claimed.job_id] if quick else []
        if len(self._quick) >= QUICK_FAILURES:
            self._check_device()

    def _check_device(self) -> None:
        """The canary, after failures that look like the machine's: a bad card must not burn the queue.

        Raises:
            Unhealthy: it failed; the jobs are back in the queue, uncharged.
        """
        failed, self._quick = self._quick, []
        try:
            trainer = self._ready_trainer()
            if trainer is None:
                return
            trainer.send(command="check")
            answer = self._await(trainer, "checked", self.options.phase_limits[Phase.START])
            if answer["ok"]:
                return
            reason = answer["message"]
        except InterruptedError:  # asked to stop: the jobs stay charged, and are tried again
            return
        except Unhealthy as error:
            reason = str(error)
        self.store.write(lambda c: jobs.uncharge(c, self.owner, failed))
        raise Unhealthy(
            f"{len(failed)} jobs failed at once and the device's known-answer check did too ({reason}); "
            "they are back in the queue. Check the device, then run `python cli.py work` again"
        )

    # --- the trainer process ------------------------------------------------------------------------------

    def _ready_trainer(self) -> TrainerProcess | None:
        """A trainer that has imported torch and named its device; None when asked to stop meanwhile.

        It is ready before a job is claimed, so that a crash while importing costs no job anything.

        Raises:
            Unhealthy: it did not start.
        """
        trainer = self._trainer
        if trainer is not None and self._worn(trainer):
            self._end_trainer()
        if self._trainer is None:
            log_path = self.runs / f"worker-{self.owner}.log"
            options = self.options
            self._trainer = TrainerProcess(options.device, options.threads, log_path, options.trainer_command)
            try:
                ready = self._await(self._trainer, "ready", options.phase_limits[Phase.START])
            except InterruptedError:
                self._end_trainer()
                return None
            self._ready = {key: value for key, value in ready.items() if key != "event"}
        return self._trainer

    def _await(self, trainer: TrainerProcess, event: str, limit_seconds: float) -> dict[str, Any]:
        deadline = awake_seconds() + limit_seconds
        while awake_seconds() < deadline:
            for message in trainer.receive(0.2, self._stop.wake_fd):
                if message["event"] == event:
                    return message
            self._stop.clear_wake()
            if self._stop.asked:
                raise InterruptedError
            if trainer.ended:
                code = trainer.kill()
                self._trainer = None
                last = (trainer.log_path.read_text(errors="replace").strip() or "no output").splitlines()[-1]
                raise Unhealthy(f"the trainer ended with code {code} before it was {event}: {last}")
        self._end_trainer()
        raise Unhealthy(f"the trainer was not {event} within {limit_seconds:.0f} s")

    def _worn(self, trainer: TrainerProcess) -> bool:
        if trainer.jobs_run == 1:
            trainer.first_memory_bytes = trainer.memory_bytes()
        grown = trainer.memory_bytes() > MEMORY_GROWTH * trainer.first_memory_bytes > 0
        return trainer.ended or trainer.exit_code is not None or trainer.jobs_run >= JOBS_PER_TRAINER or grown

    def _end_group(self) -> None:
        if self._trainer is not None:
            self._trainer.end_group()

    def _end_trainer(self) -> None:
        if self._trainer is not None:
            self._trainer.kill()
            if not self._trainer.log_path.stat().st_size:  # it had nothing to say outside of its jobs
                self._trainer.log_path.unlink()
            self._trainer = None

    # --- waiting and leaving ---------------------------------------------------------------------------

    def _backlog(self) -> Backlog:
        self.store.check_identity()
        with self.store.read() as connection:
            left = backlog(connection)
        pace = sum(seconds for seconds, _ in self._pace) / max(1, sum(steps for _, steps in self._pace))
        self.display.queue(left.jobs, left.steps * pace / max(1, left.workers) if self._pace else None)
        return left

    def _wait(self, left: Backlog) -> None:
        if left.running:
            self.display.note(f"waiting for {left.running} running jobs of other workers, or their leases")
        elif left.later:
            self.display.note(f"waiting for {left.later} jobs that are backing off after a failure")
        elif left.empty:
            self.display.note("the queue is empty; waiting for jobs (Ctrl-C ends)")
        self._stop.pause(POLL_SECONDS)

    def _exit_code(self) -> int:
        if self._stop.signal == signal.SIGINT or self.jobs_done == self.options.jobs:
            return DRAINED
        if self._stop.asked:
            with self.store.read() as connection:
                return DRAINED if backlog(connection).empty and self._stop.signal is None else PREEMPTED
        return DRAINED

    # --- who we are ---------------------------------------------------------------------------------------

    def _identity(self) -> jobs.Worker:
        device = str(self._ready.get("device", self.options.device))
        return jobs.Worker(self.owner, socket.gethostname(), os.getpid(), device, self.options.lease_seconds)

    def _sign_off(self, code: int) -> None:
        if code == UNREACHABLE:
            return
        signed = sa.update(workers).where(workers.c.id == self.owner)
        self.store.write(lambda c: c.execute(signed.values(stopped_at=now(), exit_code=code)), 5.0)
