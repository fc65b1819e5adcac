"""How far one PostgreSQL goes: 64 workers of empty jobs, a million queued jobs, 200 heartbeating workers.

    python benchmarks/scale.py [--largest 1000000] [--output docs/results/scale.md]

The server is a cluster of its own with PostgreSQL's default settings (synchronous to the disk), in a
temporary folder, on the same machine as its clients. A claim is the whole transaction, with its attempt and
its event; every claimed job is finished with a result. With --output the figures are written beside it too,
as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa

# Instead of this folder, where queue.py would hide the standard library's.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue import jobs
from runner.queue.store import Store, open_store
from runner.work.provenance import of_this_machine
from tests.postgres import Cluster, binaries

SIZES = (1_000, 100_000, 1_000_000)
WORKERS, PROCESSES = 64, 8
"""Each worker has a connection; they share processes, since 64 of Python's would measure the memory."""
HEARTBEATING, LEASE_SECONDS, BEAT_SECONDS = 200, 60.0, 10.0
SETTINGS = "max_connections = 300\n"
RESULT = {"val_loss": 1.0, "val_perplexity": 2.718}
GRID = {
    "name": "bench",
    "factors": {"noise_std": [0.0, 0.1, 0.5, 1.0, 2.0], "load_balancing_weight": [0.0, 0.01]},
    "seeds": [1],
}


@dataclass(frozen=True)
class Storm:
    """What all workers did at one size of the queue."""

    queued: int
    jobs: int
    per_second: float
    claim_median_seconds: float
    claim_p99_seconds: float
    finish_median_seconds: float
    finish_p99_seconds: float


@dataclass(frozen=True)
class Beats:
    """What heartbeats cost the server, in shares of one core."""

    workers: int
    seconds: float
    server_core_share: float
    median_seconds: float
    p99_seconds: float


def main() -> None:
    """Measure, and print (or write) a page; `--storm` is the part of one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each storm, and twice of heartbeats")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--storm", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.storm:
        print(json.dumps(work(os.environ["JOBS_DB"], options.storm, options.seconds)))
        return
    programs = binaries()
    if programs is None:
        sys.exit("no PostgreSQL here: install Debian's package postgresql")
    cluster = Cluster(programs, SETTINGS)
    try:
        db = cluster.database()
        sizes = [size for size in SIZES if size <= options.largest] or [options.largest]
        enqueued, storms = [], []
        for size in sizes:
            enqueued.append((size, grow(db, size)))
            storms.append(storm(db, size, options.seconds))
        beats = heartbeats(db, cluster.folder, 2 * options.seconds)
        version = scalar(db, "SHOW server_version")
    finally:
        cluster.remove()
    page = render(storms, enqueued, beats, str(version))
    if options.output:
        options.output.write_text(page)
        figures = {"storms": [asdict(each) for each in storms], "heartbeats": asdict(beats)}
        options.output.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print(page, end="")


def grow(db: str, size: int) -> float:
    """Bring the queue to so many queued jobs, a study at a time as enqueue does; returns the seconds."""
    store, base = open_store(db), grid_file.parse_grid(GRID)
    began = time.perf_counter()
    while (missing := size - int(str(scalar(db, "SELECT COUNT(*) FROM jobs WHERE status = 'queued'")))) > 0:
        first = int(scalar(db, "SELECT COALESCE(MAX(seed), 0) FROM jobs")) + 1
        last = first + max(1, min(missing, 100_000) // 10) - 1
        grid = scales.adjust(base, seeds=f"{first}..{last}")
        store.write(lambda c, grid=grid, first=first: enqueue(c, f"bench-{first}", grid))
    seconds = time.perf_counter() - began
    store.close()
    return seconds


def storm(db: str, queued: int, seconds: float) -> Storm:
    """Let all workers claim and finish for so long, or until nothing is queued."""
    command = [sys.executable, __file__, "--storm", str(WORKERS // PROCESSES), "--seconds", str(seconds)]
    started = [
        subprocess.Popen(command, env={**os.environ, "JOBS_DB": db}, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    found = [json.loads(process.communicate()[0]) for process in started]
    claims = sorted(value for each in found for value in each["claims"])
    finishes = sorted(value for each in found for value in each["finishes"])
    busy = max(each["ended"] for each in found) - min(each["began"] for each in found)
    return Storm(
        queued,
        len(claims),
        len(claims) / busy,
        statistics.median(claims),
        p99(claims),
        statistics.median(finishes),
        p99(finishes),
    )


def work(db: str, workers: int, seconds: float) -> dict[str, object]:
    """The part of one process: so many workers, each with a connection of its own, in threads."""
    claims: list[float] = []
    finishes: list[float] = []
    stores = [open_store(db) for _ in range(workers)]
    began = time.time()

    def one(store: Store, me: jobs.Worker) -> None:
        while time.time() < began + seconds:
            start = time.perf_counter()
            lease = store.write(lambda c: jobs.claim(c, me))
            if lease is None:
                return
            claims.append(time.perf_counter() - start)
            start = time.perf_counter()
            store.write(lambda c, lease=lease: jobs.finish(c, lease, RESULT))
            finishes.append(time.perf_counter() - start)

    threads = [
        threading.Thread(target=one, args=(store, jobs.Worker(f"{os.getpid()}-{number}", "here", 1, "cpu")))
        for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"claims": claims, "finishes": finishes, "began": began, "ended": time.time()}


def heartbeats(db: str, cluster: Path, seconds: float) -> Beats:
    """Each of the workers holds a job and beats every ten seconds, as `work` does, one after another."""
    grow(db, HEARTBEATING)
    stores = [open_store(db) for _ in range(HEARTBEATING)]
    leases = []
    for number, store in enumerate(stores):
        me = jobs.Worker(f"beat-{number}", "here", 1, "cpu", lease_seconds=3600.0)
        leases.append(store.write(lambda c, me=me: jobs.claim(c, me)))
    took: list[float] = []
    before, began = server_seconds(cluster), time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        store, lease = stores[len(took) % HEARTBEATING], leases[len(took) % HEARTBEATING]
        start = time.perf_counter()
        store.check_identity()
        store.write(lambda c, lease=lease: jobs.heartbeat(c, lease, LEASE_SECONDS, 1))  # type: ignore[arg-type]
        took.append(time.perf_counter() - start)
        due = len(took) * BEAT_SECONDS / HEARTBEATING
        time.sleep(max(0.0, due - (time.perf_counter() - began)))
    share = (server_seconds(cluster) - before) / passed
    for store in stores:
        store.close()
    return Beats(HEARTBEATING, passed, share, statistics.median(took), p99(sorted(took)))


def server_seconds(cluster: Path) -> float:
    """Processor time of the server's processes that are alive: the first one and its children."""
    first = (cluster / "data" / "postmaster.pid").read_text().split()[0]
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it ended meanwhile
            continue
        if first in (stat.parent.name, fields[1]):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def render(storms: list[Storm], enqueued: list[tuple[int, float]], beats: Beats, version: str) -> str:
    """The page."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines = [
        "# One PostgreSQL and many workers",
        "",
        f"{of_this_machine()['processor']}, {os.cpu_count()} cores for server and clients together; "
        f"load {load} at the end; Python {platform.python_version()}, PostgreSQL {version} as it comes. "
        f"Made by `python {shlex.join(sys.argv)}`, {time.strftime('%Y-%m-%d')}.",
        "",
        f"{WORKERS} workers of empty jobs, each claiming and finishing one after another:",
        "",
        "| queued jobs | jobs a second | claim, median | claim, p99 | finish, median | finish, p99 |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in storms:
        claim = f"{1e3 * each.claim_median_seconds:.1f} ms | {1e3 * each.claim_p99_seconds:.1f} ms"
        finish = f"{1e3 * each.finish_median_seconds:.1f} ms | {1e3 * each.finish_p99_seconds:.1f} ms"
        lines.append(f"| {each.queued:,} | {each.per_second:,.0f} | {claim} | {finish} |")
    filled = ", ".join(f"to {size:,} queued jobs in {seconds:.1f} s" for size, seconds in enqueued)
    beat = f"{1e3 * beats.median_seconds:.1f} ms in the median, {1e3 * beats.p99_seconds:.1f} ms at p99"
    return "\n".join(
        [
            *lines,
            "",
            f"Enqueue: {filled}.",
            "",
            f"Heartbeats: {beats.workers} workers, one each {BEAT_SECONDS:.0f} s, for {beats.seconds:.0f} s: "
            f"the server takes {beats.server_core_share:.1%} of one core; a heartbeat takes {beat}.",
            "",
        ]
    )


def scalar(db: str, statement: str) -> object:
    engine = sa.create_engine(db, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        return connection.exec_driver_sql(statement).scalar()


def p99(ordered: list[float]) -> float:
    return ordered[int(0.99 * len(ordered))]


if __name__ == "__main__":
    main()
