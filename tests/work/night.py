"""A folder with a queue, and real commands that work it: with the toy program, or with the real one.

What a test waits for stands still at a gate until the test goes on: nothing is caught in passing.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.design.enqueue import enqueue
from runner.design.grid_file import load_grid
from runner.design.scales import adjust
from runner.queue import looks
from runner.queue.store import open_store
from runner.work.options import Options
from runner.work.progress import Display
from runner.work.worker import Worker
from tests import toy, warm
from tests.conftest import TEXT, TINY_GRID, command, environment, results_bits, rows
from tests.injection import NO_SUMMARY, TOY, gate_at, inject

SIZES = ("--set=train.steps=120", "--set=train.eval_every=60", "--seeds", "42")


class Night:
    """Two jobs of 120 steps in a queue of their own, and the commands to work them."""

    def __init__(self, folder: Path, cache_dir: Path, database: str = "", toy: bool = False) -> None:
        self.folder, self.cache_dir, self.database, self.toy = folder, cache_dir, database, toy
        self.started: list[subprocess.Popen[str]] = []
        (folder / "tiny.toml").write_text(TINY_GRID)
        if not toy:
            done = self.run("enqueue", "--grid", "tiny.toml", "--corpus", "bundled", *SIZES)
            assert done.returncode == 0, done.stderr
        self.store = open_store(database or str(folder / "jobs.db"), create=toy)
        if toy:
            self.enqueue()

    def enqueue(self, study: str = "tiny", seeds: str = "42", steps: int = 120) -> None:
        """Add runs of the toy program, which needs no text."""
        sizes = (f"train.steps={steps}", f"train.eval_every={steps // 2}")
        grid = adjust(load_grid(str(self.folder / "tiny.toml")), assignments=sizes, seeds=seeds)
        self.store.write(lambda c: enqueue(c, study, grid))

    # --- processes ----------------------------------------------------------------------------------------

    def inject(self, fault: str = "", name: str = "fault", **parts: str) -> dict[str, str]:
        """The environment that makes processes run a fault, without a summary, and the toy in its night."""
        return inject(self.folder / name, (TOY if self.toy else "") + NO_SUMMARY + fault, **parts)

    def start(self, *arguments: str, **env: Any) -> subprocess.Popen[str]:
        if arguments[0] == "work" and "PYTHONPATH" not in env:
            env |= self.inject(name="usual")
        options = {"preexec_fn": env.pop("preexec_fn")} if "preexec_fn" in env else {}
        process = warm.Command(
            command(*arguments, cache_dir=self.cache_dir),
            cwd=self.folder,
            env={**environment(self.database), **env},
            **TEXT,
            **options,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        if not env and arguments[0] != "work":
            words = command(*arguments, cache_dir=self.cache_dir)
            return warm.run(words, cwd=self.folder, env=environment(self.database), **TEXT)
        process = self.start(*arguments, **env)
        out, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def drain(self, decide: looks.Decide | None = None) -> int:
        """Work what is left, undisturbed, in this process where the program is the toy; the exit code."""
        if not self.toy:
            return self.run("work").returncode
        options = Options(runs=self.folder / "runs", trainer_command=(sys.executable, toy.__file__))
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = [signal.getsignal(number) for number in numbers]
        try:
            return Worker(self.store, options, Display(), decide).run()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)

    def work_until_drained(self, *arguments: str, tries: int = 6, **env: str) -> list[int]:
        codes: list[int] = []
        while 0 not in codes:
            assert len(codes) < tries, codes
            codes.append(self.run("work", "--lease-seconds", "2", *arguments, **env).returncode)
        return codes

    def end(self) -> None:
        """Leave nothing behind."""
        for process in self.started:
            process.kill()
            process.communicate()
        self.store.close()

    # --- gates --------------------------------------------------------------------------------------------

    def work_to_gate(
        self,
        *arguments: str,
        step: int = 20,
        name: str = "gate",
        trainers: int = 1,
        fault: str = "",
        **env: Any,
    ) -> subprocess.Popen[str]:
        """A worker whose trainers stand still at a step of their jobs, with all before it in the database."""
        worker = self.start("work", *arguments, **self.inject(gate_at(step) + fault, name), **env)
        self.wait_at_gate(name, trainers, worker, step)
        return worker

    def at_gate(self, name: str = "gate") -> list[Path]:
        return list((self.folder / name).glob("at-*"))

    def wait_at_gate(
        self,
        name: str = "gate",
        trainers: int = 1,
        worker: subprocess.Popen[str] | None = None,
        step: int = 20,
    ) -> None:
        """Wait until so many trainers stand there, and the database knows how far they are."""

        def told() -> bool:
            if worker is not None and worker.poll() is not None and len(self.at_gate(name)) < trainers:
                raise AssertionError(f"ended before the gate: {worker.communicate()}")
            running = rows(self.store, "jobs", status="running")
            described = [a for a in rows(self.store, "attempts", outcome=None) if a["provenance"]]
            far = [job for job in running if job["progress_step"] >= step - (1 if self.toy else 2)]
            return min(len(self.at_gate(name)), len(described), len(far)) >= trainers

        wait_for(told, f"{trainers} trainers at step {step}")

    def open_gate(self, name: str = "gate") -> None:
        (self.folder / name / "go").touch()

    def stop_at_gate(
        self, worker: subprocess.Popen[str], number: int = signal.SIGTERM, name: str = "gate"
    ) -> None:
        """Ask a worker to stop while its trainers stand still; they go on when they have heard of it."""
        trainers = len(self.at_gate(name))
        worker.send_signal(number)
        self.go_on_when_asked(name, trainers)

    def go_on_when_asked(self, name: str = "gate", trainers: int = 1) -> None:
        """Open a gate as soon as the trainers there have been asked for something."""
        wait_for(
            lambda: len(list((self.folder / name).glob("asked-*"))) == trainers, f"{trainers} trainers asked"
        )
        self.open_gate(name)

    @staticmethod
    def wait_for_word(worker: subprocess.Popen[str], word: str) -> None:
        assert worker.stderr is not None
        while word not in (line := worker.stderr.readline()):
            assert line, f"the worker never said {word!r}"

    @staticmethod
    def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        wait_for(condition, what, seconds)

    def saved(self, job_id: int = 1) -> list[int]:
        """The steps of a job's checkpoints."""
        return sorted(file["step"] for file in rows(self.store, "checkpoints", job_id=job_id))

    def trainer(self, job_id: int = 1) -> int:
        """The process of a job's latest attempt."""
        return int(rows(self.store, "attempts", job_id=job_id)[-1]["pid"])

    def assert_undisturbed(self, bits: str, results: int = 2) -> None:
        assert {job["status"] for job in rows(self.store, "jobs")} == {"done"}
        assert len(rows(self.store, "results")) == results
        assert results_bits(self.store) == bits
        if "://" not in self.database:
            with self.store.read() as connection:
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Poll until the condition holds; the time is only how long a failing test takes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
