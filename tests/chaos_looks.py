"""A seeded storm over looks: `python tests/chaos_looks.py --rounds 30 --seed 1`; part of `make chaos`.

One night a round, of the toy program (tests/toy.py), from the same database: a study of five looks, and
another that has some of its runs already. One worker or two, and their trainers, are killed: at a random
moment, at the moment when a block is complete, or before a random statement of a look, its COMMIT included.
Each round must end as the undisturbed night did: the same looks, jobs and bits, nothing lost, nothing twice.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa

PROJECT = Path(__file__).resolve().parent.parent
sys.path[0] = str(PROJECT)  # not this folder: its `queue` would be the library's

from reports.output.looks import next_look  # noqa: E402
from runner.design import grid_file, scales  # noqa: E402
from runner.design.enqueue import enqueue  # noqa: E402
from runner.queue import jobs, looks, sqlite  # noqa: E402
from runner.queue.store import open_store  # noqa: E402
from runner.work import worker as supervisor  # noqa: E402
from runner.work.options import Options  # noqa: E402
from runner.work.progress import Display  # noqa: E402
from tests import toy  # noqa: E402
from tests.conftest import TINY_GRID, results_bits, rows  # noqa: E402

LOOKED = """
[[claims]]
name = "Noise is nearly nothing"
kind = "equivalent"
compare = { noise_std = 0.5 }
margin = 1e6

[[claims]]
name = "Noise harms"
kind = "greater"
compare = { noise_std = 0.5 }

[looks]
seeds = [3, 4, 5, 6, 8]
"""
"""The first claim is decided at once; of losses that are hashes, the second never."""
HAD = "45,48"
"""Seeds that the other study has: the block of the first look whole, and half of the last."""
KILLS = (4, 10)
"""In a round."""
STATEMENTS = 40
"""A worker is killed before one of so many: a look that takes two runs over has 38, COMMIT included."""


def prepared(folder: Path) -> Path:
    """A database with the study queued, and the runs that it will take over done."""
    path = folder / "looked.toml"
    path.write_text(TINY_GRID + LOOKED)
    sizes = ("train.steps=200", "train.eval_every=100")
    looked = scales.adjust(grid_file.load_grid(str(path)), assignments=sizes, seeds="42..44")
    path.write_text(TINY_GRID)
    pilot = scales.adjust(grid_file.load_grid(str(path)), assignments=sizes, seeds=HAD)
    store = open_store(str(folder / "jobs.db"), create=True)
    store.write(lambda c: enqueue(c, "pilot", pilot))
    store.close()
    finish(begin(folder))
    store = open_store(str(folder / "jobs.db"))
    store.write(lambda c: enqueue(c, "looked", looked, max_failures=50))
    store.close()
    return folder / "jobs.db"


def begin(folder: Path, strike: int = 0) -> int:
    """A worker in a process of its own, forked, so that it has imported what it needs; returns its id.

    It is killed before the statement of this number, counted in the transactions of its looks; 0: never.
    """
    child = os.fork()
    if not child:
        code = 99
        try:
            os.setpgid(0, 0)
            with (folder / "workers.log").open("ab") as log:
                os.dup2(log.fileno(), 2)
            code = _work(folder, strike)
        finally:
            os._exit(code)
    return child


def _work(folder: Path, strike: int) -> int:
    jobs.BACKOFF_SECONDS = supervisor.POLL_SECONDS = 0.1
    store, make, count = open_store(str(folder / "jobs.db")), looks.make, itertools.count(1)
    looking = False

    def struck(*_: Any) -> None:
        if looking and next(count) == strike:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(*arguments: Any, **named: Any) -> looks.Made | None:
        nonlocal looking
        looking = True
        return make(*arguments, **named)

    def over(_: Any) -> None:
        nonlocal looking
        struck()
        looking = False

    sa.event.listen(store.engine, "before_cursor_execute", struck)
    sa.event.listen(store.engine, "commit", over)
    looks.make = watched
    options = Options(
        runs=folder / "runs",
        trainer_command=(sys.executable, toy.__file__),
        lease_seconds=1,
        checkpoint_seconds=0.02,
    )
    return supervisor.Worker(store, options, Display(), next_look).run()


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


class Night:
    """One round: a copy of the prepared database, its workers, and what befalls them."""

    def __init__(self, database: Path, folder: Path, rng: random.Random) -> None:
        folder.mkdir()
        shutil.copy(database, folder)
        self.folder, self.rng = folder, rng
        self.size, self.kills = rng.choice((1, 2)), rng.randint(*KILLS)
        self.crew: set[int] = set()
        self.armed: set[int] = set()  # those that a statement of a look kills
        self.done: Counter[str] = Counter()

    def rage(self) -> None:
        """Until a worker finds that nothing is left, and those beside it find the same."""
        drained = False
        while self.crew or not drained:
            while not drained and len(self.crew) < self.size:
                self.hire()
            if self.kills > 0 and not drained and not self.crew & self.armed:
                self.rng.choice((self.soon, self.at_a_look, self.trainer))()
            time.sleep(0.02)
            drained |= self.reaped()

    def hire(self) -> None:
        armed = self.kills > 0 and self.rng.random() < 0.5
        child = begin(self.folder, self.rng.randint(1, STATEMENTS) if armed else 0)
        self.crew.add(child)
        if armed:
            self.armed.add(child)

    def reaped(self) -> bool:
        """Whether one of the workers that have ended since did so because nothing was left."""
        drained = False
        for child in list(self.crew):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self.crew.remove(child)
                code = os.waitstatus_to_exitcode(status)
                if code not in (0, -signal.SIGKILL):
                    raise SystemExit((self.folder / "workers.log").read_text()[-2000:])
                drained |= code == 0
                if code and child in self.armed:
                    self.count("inside a look")
        return drained

    # --- kills --------------------------------------------------------------------------------------------

    def soon(self) -> None:
        """A worker, at any moment."""
        time.sleep(self.rng.uniform(0.0, 3.0))
        self.kill("at any moment")

    def at_a_look(self) -> None:
        """A worker, a moment after no job of a block is open."""
        deadline = time.monotonic() + 10
        while self.open_jobs() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(self.rng.uniform(0.0, 1.0))
        self.kill("when a look is due")

    def trainer(self) -> None:
        """One that a worker has started, at a job or waiting for one."""
        time.sleep(self.rng.uniform(0.0, 2.0))
        for child in sorted(self.crew):
            with contextlib.suppress(OSError):  # the worker, or its trainer, has ended
                for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split()[:1]:
                    os.kill(int(pid), signal.SIGKILL)
                    self.count("a trainer")
                    return

    def kill(self, when: str) -> None:
        child = self.rng.choice(sorted(self.crew))
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(child, signal.SIGKILL)
            self.count(when)

    def count(self, what: str) -> None:
        self.done[what] += 1
        self.kills -= 1

    def open_jobs(self) -> int:
        return int(self.read("SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')")[0][0])

    def read(self, statement: str) -> list[tuple[Any, ...]]:
        """By a connection of its own, which no worker is forked with."""
        with contextlib.closing(sqlite.driver().connect(str(self.folder / "jobs.db"), timeout=60)) as shell:
            return list(shell.execute(statement))


def kept(folder: Path) -> dict[str, Any]:
    """What a night left that must not depend on what befell it."""
    store = open_store(str(folder / "jobs.db"))
    names = ("id", "study_id", "config_hash", "cell", "seed", "status")
    made = ("number", "seeds", "reason", "claims", "jobs")
    events = [json.loads(event["detail"]) for event in rows(store, "events", kind=looks.KIND)]
    attempts = rows(store, "attempts")
    with store.read() as connection:
        whole = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
    found = {
        "jobs": [[job[name] for name in names] for job in rows(store, "jobs")],
        "looks": [[look[name] for name in made] for look in rows(store, "looks")],
        "events of looks": [(event["number"], event["jobs"]) for event in events],
        "finished": sorted(attempt["job_id"] for attempt in attempts if attempt["outcome"] == "done"),
        "attempts without an end": [each["id"] for each in attempts if each["outcome"] is None],
        "taken over": sorted(each["job_id"] for each in attempts if "taken over" in (each["message"] or "")),
        "design": [study["grid"] for study in rows(store, "studies")],
        "results, metrics and counts": results_bits(store),
        "integrity_check": whole,
    }
    store.close()
    return found


def struck_looks(folder: Path, seed: int, rounds: int) -> list[str]:
    """Storm over so many nights; prints what was done, returns what ended otherwise than undisturbed."""
    rng, found, done, pairs = random.Random(f"looks {seed}"), [], Counter[str](), 0
    for name in ("first", "calm"):
        (folder / name).mkdir(parents=True)
    database = prepared(folder / "first")
    shutil.copy(database, folder / "calm")
    finish(begin(folder / "calm"))
    calm = kept(folder / "calm")
    assert len(calm["looks"]) == 5  # else the storm has nothing to strike
    assert len(calm["taken over"]) == 4
    for number in range(rounds):
        night = Night(database, folder / f"round-{number}", rng)
        night.rage()
        done += night.done
        pairs += night.size == 2
        left = kept(night.folder)
        found += [f"looks, round {number}: other {what}" for what in calm if left[what] != calm[what]]
        shutil.rmtree(night.folder, ignore_errors=True)  # a trainer may not have seen yet that it is alone
    print(f"looks: {rounds} nights of five, {pairs} with two workers; killed: {dict(done)}")
    return found


def main() -> None:
    """Storm for so many rounds, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = struck_looks(Path(folder), options.seed, options.rounds)
    print("\n".join(found) or "every look once, in order; every job and bit as undisturbed")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
