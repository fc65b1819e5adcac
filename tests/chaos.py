"""A seeded storm over a real study: `make chaos MINUTES=10 SEED=1`. Prints what it did and what it found.

Workers are killed, stopped for longer than their leases, asked to leave, and robbed of their trainers; newest
checkpoints are damaged; the disk under the database is locked for a while. Then the queue is drained, and
everything is compared, bit for bit, with the same study undisturbed. After it each program of examples/ has
its worker and trainer killed ten times, and a study with looks goes through thirty nights of kills
(tests/chaos_looks.py). Exit 0: nothing lost, nothing twice.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[0] = str(PROJECT)  # not this folder: its `queue` would be the library's

from runner.queue import sqlite  # noqa: E402
from runner.queue.store import Store, open_store  # noqa: E402
from tests.chaos_looks import struck_looks  # noqa: E402
from tests.conftest import TINY_GRID, command, environment, results_bits, rows  # noqa: E402
from tests.programs.test_examples import STEPS, night, queued  # noqa: E402

WORKERS = 2
KILLS = 10
"""Of each example's worker and trainer."""
LEASE = ("--lease-seconds", "3", "--checkpoint-seconds", "0.3")


class Storm:
    """One folder, one queue, two workers, and a random generator that decides what befalls them."""

    def __init__(self, folder: Path, cache: Path, seeds: int, rng: random.Random) -> None:
        self.folder, self.cache, self.rng = folder, cache, rng
        self.done: Counter[str] = Counter()
        self.workers: list[subprocess.Popen[bytes]] = []
        (folder / "tiny.toml").write_text(TINY_GRID)
        sizes = ("--set=train.steps=400", "--set=train.eval_every=100", "--max-failures", "50")
        corpus = ("--corpus", "bundled", "--seeds", f"1..{seeds}")
        subprocess.run(
            command("enqueue", "--grid", "tiny.toml", *corpus, *sizes, cache_dir=cache),
            cwd=folder,
            env=environment(),
            check=True,
        )
        self.store = open_store(str(folder / "jobs.db"))

    def start_missing(self) -> None:
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < WORKERS:
            self.workers.append(self.work())

    def work(self) -> subprocess.Popen[bytes]:
        with (self.folder / "workers.log").open("ab") as log:
            arguments = command("work", *LEASE, cache_dir=self.cache)
            return subprocess.Popen(
                arguments, cwd=self.folder, env=environment(), stdout=subprocess.DEVNULL, stderr=log
            )

    def rage(self, seconds: float) -> None:
        """Let something happen every few seconds until the time is up or nothing is left to disturb."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.drained():
            self.start_missing()
            time.sleep(self.rng.uniform(0.2, 4.0))
            fault = self.rng.choice(
                [self.kill, self.kill_trainer, self.ask, self.stop, self.damage, self.lock]
            )
            fault()
            self.done[fault.__name__] += 1
        for worker in self.workers:
            worker.kill()
            worker.wait()

    def drained(self) -> bool:
        return all(job["status"] == "done" for job in rows(self.store, "jobs"))

    # --- faults -------------------------------------------------------------------------------------------

    def kill(self) -> None:
        self.rng.choice(self.workers).kill()

    def ask(self) -> None:
        self.rng.choice(self.workers).send_signal(
            self.rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        )

    def kill_trainer(self) -> None:
        open_attempts = [a for a in rows(self.store, "attempts", outcome=None) if a["provenance"]]
        for attempt in open_attempts[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(attempt["pid"], signal.SIGKILL)

    def stop(self) -> None:
        worker = self.rng.choice(self.workers)
        worker.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.5, 5.0))  # shorter or longer than the lease
        worker.send_signal(signal.SIGCONT)

    def damage(self) -> None:
        files = sorted(rows(self.store, "checkpoints"), key=lambda file: file["id"])
        for file in files[-1:]:
            path = self.folder / "runs" / self.store.database_id / file["path"]
            with contextlib.suppress(OSError):
                data = bytearray(path.read_bytes())
                data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
                path.write_bytes(data)
        self.kill_trainer()  # so that somebody reads it before it is superseded

    def lock(self) -> None:
        shell = sqlite.driver().connect(self.store.path, isolation_level=None)
        with contextlib.suppress(sqlite.driver().OperationalError):
            shell.execute("BEGIN IMMEDIATE")
            time.sleep(self.rng.uniform(0.1, 4.0))
            shell.execute("ROLLBACK")
        shell.close()


def drain(storm: Storm) -> int:
    """Work what is left, undisturbed; returns how many workers that took."""
    for tries in range(1, 20):
        if storm.work().wait() == 0:
            return tries
    raise SystemExit("the queue could not be drained")


def findings(store: Store, calm_bits: str) -> list[str]:
    """Everything that is not as it should be."""
    found = []
    jobs, results, attempts = (rows(store, table) for table in ("jobs", "results", "attempts"))
    if bad := [job["id"] for job in jobs if job["status"] != "done"]:
        found.append(f"not done: {bad}")
    if len(results) != len(jobs):
        found.append(f"{len(results)} results for {len(jobs)} jobs")
    done_twice = Counter(a["job_id"] for a in attempts if a["outcome"] == "done")
    if twice := [job_id for job_id, times in done_twice.items() if times != 1]:
        found.append(f"finished more than once: {twice}")
    if left_open := [a["id"] for a in attempts if a["outcome"] is None]:
        found.append(f"attempts without an end: {left_open}")
    if results_bits(store) != calm_bits:
        found.append("results, metrics or counts differ from the undisturbed study")
    with store.read() as connection:
        if (check := connection.exec_driver_sql("PRAGMA integrity_check").scalar()) != "ok":
            found.append(f"integrity_check: {check}")
    return found


def struck_examples(folder: Path, rng: random.Random) -> list[str]:
    """The examples whose results are not those of an undisturbed night after ten kills at random steps."""
    found = []
    for name, steps in STEPS.items():
        queue = queued(folder / name, name)
        calm = night(queue, folder / f"{name}-calm", [])
        strikes = sorted(rng.sample(range(2, steps), KILLS))
        if night(queue, folder / f"{name}-struck", strikes) != calm:
            found.append(f"examples/{name}.py, killed at steps {strikes}: other results")
    return found


def main() -> None:
    """Storm for the given minutes, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30, help="nights of a study with looks")
    parser.add_argument("--seeds-per-study", type=int, default=20, help="two jobs each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        rng = random.Random(options.seed)
        storm, calm = (
            Storm(Path(tempfile.mkdtemp(dir=folder)), cache, options.seeds_per_study, rng) for _ in range(2)
        )
        storm.rage(options.minutes * 60)
        workers = drain(storm)
        drain(calm)
        found = findings(storm.store, results_bits(calm.store))
        outcomes = Counter(f"{a['outcome']}/{a['cause']}" for a in rows(storm.store, "attempts"))
        refused = len(rows(storm.store, "events", kind="checkpoint refused"))
        print(f"storm of seed {options.seed}: {dict(storm.done)}")
        print(f"attempts: {dict(outcomes)}; checkpoints refused: {refused}; {workers} workers to drain")
        found += struck_examples(Path(folder), rng)
        print(f"examples: {', '.join(STEPS)}, worker and trainer killed {KILLS} times each")
        found += struck_looks(Path(folder) / "looks", options.seed, options.rounds)
        print("found: " + ("nothing lost, nothing twice, every bit as undisturbed" if not found else ""))
        for line in found:
            print(f"  {line}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
