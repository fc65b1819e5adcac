"""How long a whole small study takes, by phase: what the trainer did, and what the queue added.

    python benchmarks/study.py [--scale smoke] [--seeds 42..44] [--threads N] [--set KEY=VALUE] [--json FILE]

Enqueues, works and reports in a folder of its own, each as a user would call it. The trainer's clocks are in
the results: training, first steps, evaluation, waiting (data, start-up, checkpoints). What is left of the
attempts' time is events and recording; what is left of `work` is starting the supervisor and the trainer, and
the queue. Beside them: the CPU time of the supervisor itself, the trainer's not included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
CLOCKS = {
    "training": "training_seconds",
    "first steps": "compile_seconds",
    "evaluation": "evaluation_seconds",
    "waiting: data, start-up, checkpoints": "waiting_seconds",
}


def main() -> None:
    """Run one study and print where its time went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grid", default="factorial")
    parser.add_argument("--scale", default="smoke", choices=["smoke", "small", "full"])
    parser.add_argument("--seeds")
    parser.add_argument("--threads")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--cache-dir", default=str(PROJECT / "data_cache"), help="kept between studies")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print_table(report)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds by command and by phase."""
    database = folder / "jobs.db"
    extra = [word for value in options.assignments for word in ("--set", value)]
    extra += ["--seeds", options.seeds] if options.seeds else []
    threads = ["--threads", options.threads] if options.threads else []
    cache = ["--cache-dir", options.cache_dir]
    load_before = os.getloadavg()
    measured = {
        "enqueue": command(
            folder,
            "enqueue",
            "--grid",
            options.grid,
            "--scale",
            options.scale,
            "--corpus",
            "bundled",
            *extra,
            *cache,
        ),
        "work": command(folder, "work", *threads, *cache),
        "report": command(folder, "report"),
    }
    seconds = {name: wall for name, (wall, _) in measured.items()}
    phases, jobs, attempts = recorded(database)
    phases["events and recording"] = attempts - sum(phases.values())
    phases["supervisor, trainer's start, queue"] = seconds["work"] - attempts
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": " ".join(["python", "benchmarks/study.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average_before": load_before,
        "jobs": jobs,
        "seconds": seconds,
        "supervisor_cpu_seconds": measured["work"][1],
        "work_by_phase": phases,
    }


def command(folder: Path, *words: str) -> tuple[float, float]:
    """Wall-clock seconds of one command, which must succeed, and CPU seconds of its process alone."""
    began, cpu_seconds = time.perf_counter(), 0.0
    with (folder / "stderr").open("w+") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "cli.py"), *words, "--db", "jobs.db"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        while process.poll() is None:
            cpu_seconds = max(cpu_seconds, cpu_seconds_of(process.pid))
            time.sleep(0.1)
        if process.returncode:
            stderr.seek(0)
            sys.exit(f"cli.py {words[0]} ended with {process.returncode}:\n{stderr.read()[-3000:]}")
    return time.perf_counter() - began, cpu_seconds


def cpu_seconds_of(pid: int) -> float:
    """User and system time of a process, without its children's (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def recorded(database: Path) -> tuple[dict[str, float], int, float]:
    """Seconds by the trainers' clocks, the jobs done, and the seconds that attempts lasted."""
    with sqlite3.connect(database) as connection:
        total = "SELECT sum(value) FROM measures WHERE name = ?"
        clocks = [connection.execute(total, (name,)).fetchone()[0] for name in CLOCKS.values()]
        (jobs,) = connection.execute("SELECT count(*) FROM results").fetchone()
        (attempts,) = connection.execute("SELECT sum(ended_at - started_at) FROM attempts").fetchone()
    return dict(zip(CLOCKS, clocks, strict=True)), jobs, attempts


def print_table(report: dict[str, Any]) -> None:
    """Markdown, with each phase's share of `work`."""
    work = report["seconds"]["work"]
    print(json.dumps({k: v for k, v in report.items() if k != "work_by_phase"}, indent=1))
    print("| phase | seconds | a run | share of work |\n| --- | --- | --- | --- |")
    for name, seconds in report["work_by_phase"].items():
        print(f"| {name} | {seconds:.1f} | {seconds / report['jobs']:.2f} | {seconds / work:.1%} |")
    cpu = report["supervisor_cpu_seconds"]
    print(f"| CPU time of the supervisor | {cpu:.1f} | {cpu / report['jobs']:.2f} | {cpu / work:.1%} |")
    print(f"| work | {work:.1f} | {work / report['jobs']:.2f} | 100% |")


if __name__ == "__main__":
    main()
