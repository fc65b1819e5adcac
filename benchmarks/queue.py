"""How fast the queue is: claims at 1,000 to 1,000,000 queued jobs, enqueue, status, a cold start.

    python benchmarks/queue.py [--largest 1000000] [--output docs/results/queue.md]

Everything happens in a folder of its own, on the disk where --folder is. A claim is the whole transaction,
synchronous to the disk, with its attempt and its event; each claimed job is given back at once.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue import jobs
from runner.queue.backlog import backlog
from runner.queue.sqlite import driver, journal
from runner.queue.store import Store, open_store
from runner.work.provenance import of_this_machine

SIZES = (1_000, 100_000, 1_000_000)
CLAIMS = 300
GRID = {
    "name": "bench",
    "factors": {"noise_std": [0.0, 0.1, 0.5, 1.0, 2.0], "load_balancing_weight": [0.0, 0.01]},
    "seeds": [1],
}
CLI = Path(__file__).resolve().parent.parent / "cli.py"


def main() -> None:
    """Measure, and print (or write) a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--folder", type=Path, default=None, help="default: a temporary folder")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        page = measure(Path(folder) / "jobs.db", [size for size in SIZES if size <= options.largest])
    if options.output:
        options.output.write_text(page)
    print(page, end="")


def measure(path: Path, sizes: list[int]) -> str:
    """The page for one database that grows from size to size."""
    rows, enqueued = [], ""
    for size in sizes:
        seconds = grow(path, size)
        enqueued += f"{size:,} jobs in {seconds:.1f} s. "
        store = open_store(str(path))
        latencies = sorted(claims(store))
        look = [timed(lambda store=store: read(store, backlog)) for _ in range(3)]
        store.close()
        commands = [command(path, "status") for _ in range(3)]
        rows.append((size, latencies, statistics.median(look), statistics.median(commands)))
    command(
        path.with_name("few.db"), "status", fill=10
    )  # fills it; the modules' bytecode is there from now on
    starts = sorted(command(path.with_name("few.db"), "status") for _ in range(9))
    lines = [
        "| queued jobs | claim, median | claim, p99 | backlog | `cli.py status` |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for size, latencies, look_seconds, status_seconds in rows:
        median, p99 = statistics.median(latencies), latencies[int(0.99 * len(latencies))]
        claim = f"{1e3 * median:.2f} ms | {1e3 * p99:.2f} ms"
        lines.append(f"| {size:,} | {claim} | {look_seconds:.3f} s | {status_seconds:.2f} s |")
    return "\n".join([*head(), "", *lines, "", f"Enqueue: {enqueued.strip()}", "", start_line(starts), ""])


def head() -> list[str]:
    """What this was measured on."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        "# The queue's speed",
        "",
        f"{of_this_machine()['processor']}, {os.cpu_count()} cores, load {load} while measuring; "
        f"Python {platform.python_version()}, SQLite {driver().sqlite_version}, journal {journal()[0]}; "
        f"{CLAIMS} claims each. Made by `python {shlex.join(sys.argv)}`, {time.strftime('%Y-%m-%d')}.",
    ]


def start_line(seconds: list[float]) -> str:
    """From the start of Python to the end of the command."""
    least, median = seconds[0], statistics.median(seconds)
    return f"Start: `python cli.py status` with 10 jobs takes {least:.2f} s at best, {median:.2f} s median."


def grow(path: Path, size: int) -> float:
    """Bring the database to so many queued jobs, block by block as enqueue does; returns the seconds."""
    store = open_store(str(path), create=True)
    began = time.perf_counter()
    base = grid_file.parse_grid(GRID)
    with store.read() as connection:
        there = connection.scalar(sa.text("SELECT COUNT(*) FROM jobs")) or 0
    while there < size:
        more = min(size - there, 100_000)
        first, last = there // 10 + 1, (there + more) // 10
        name, grid = f"bench-{first}", scales.adjust(base, seeds=f"{first}..{last}")
        there += store.write(lambda c, name=name, grid=grid: enqueue(c, name, grid))
    seconds = time.perf_counter() - began
    store.close()
    return seconds


def claims(store: Store) -> list[float]:
    """Seconds of each claim; the job goes back unharmed."""
    me = jobs.Worker("worker", "here", 1, "cpu")
    found = []
    for _ in range(CLAIMS):
        began = time.perf_counter()
        lease = store.write(lambda c: jobs.claim(c, me))
        found.append(time.perf_counter() - began)
        assert lease is not None
        store.write(lambda c, lease=lease: jobs.release(c, lease, "benchmark"))
    return found


def read(store: Store, look: Callable[[sa.Connection], object]) -> object:
    with store.read() as connection:
        return look(connection)


def command(path: Path, *words: str, fill: int = 0) -> float:
    """Seconds of a command from its start to its end."""
    if fill and not path.exists():
        grow(path, fill)
    return timed(
        lambda: subprocess.run(
            [sys.executable, str(CLI), *words, "--db", str(path)], check=True, stdout=subprocess.DEVNULL
        )
    )


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
