"""How long the report of a large study takes: 10,000 finished runs with 50 evaluations each, by default.

    python benchmarks/report.py [--runs 10000] [--evaluations 50] [--keep FILE]

Makes the database (a minute or so, not counted), then writes each format in a process of its own and prints
seconds and peak memory. The target is 15 s and 1 GB on two cores for the markdown.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

LAYERS, EXPERTS = 6, 8
FACTORS = {"noise_std": [i / 20 for i in range(10)], "load_balancing_weight": [i / 1000 for i in range(10)]}


def build(path: Path, runs: int, evaluations: int) -> None:
    """100 conditions; series and counts are made by SQLite itself, from formulas."""
    from runner.queue.store import open_store
    from tests import report_fixtures as made

    seeds = runs // 100
    store = open_store(str(path), create=True)

    def fill(connection: object) -> None:
        study = made.add_study(connection, "large", grid={"factors": FACTORS, "seeds": list(range(seeds))})
        for cell in made.cells(FACTORS):
            for seed in range(seeds):
                loss = 4.5 + 0.01 * ((seed * 37) % 11) + 0.2 * cell["noise_std"] + 0.001 * ((seed * 13) % 7)
                job = made.add_job(connection, study, cell, seed)
                made.add_attempt(connection, job)
                made.add_result(connection, job, val_loss=loss)
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "
        for split, names in (
            ("train", ("aux_loss", "gradient_norm", "loss")),
            (
                "val",
                ("accuracy", "loss", "noisy_agreement", "perplexity", "router_entropy", "top1_probability"),
            ),
        ):
            listed = " UNION ALL ".join(f"SELECT '{name}' AS name" for name in names)
            connection.exec_driver_sql(
                "INSERT INTO metrics (job_id, step, split, name, value) "
                + numbers.format(evaluations)
                + f"SELECT jobs.id, 8 * i, '{split}', name, 8.0 - 0.05 * i + jobs.seed * 0.001 "
                f"FROM jobs, n, ({listed}) ORDER BY 1, 2, 4"
            )
        counted = (
            f", l(layer) AS (SELECT 0 UNION ALL SELECT layer + 1 FROM l WHERE layer < {LAYERS - 1})"
            f", e(expert) AS (SELECT 0 UNION ALL SELECT expert + 1 FROM e WHERE expert < {EXPERTS - 1}) "
        )
        connection.exec_driver_sql(
            "INSERT INTO expert_counts (job_id, step, split, layer, expert, tokens) "
            + numbers.format(evaluations)
            + counted
            + "SELECT jobs.id, 8 * i, 'val', layer, expert, 1000 + (seed * 7 + expert * 31 + layer) % 97 "
            "FROM jobs, n, l, e ORDER BY 1, 2, 4, 5"
        )

    store.write(fill)
    store.close()


def measure(path: Path, arguments: list[str]) -> None:
    """Run the command as a user does; print its seconds and its peak memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        command = [sys.executable, str(PROJECT / "cli.py"), "report", "--db", str(path), *arguments]
        code = subprocess.run(command, stdout=out, check=False).returncode
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{' '.join(arguments) or 'markdown to stdout'}: exit {code}, {seconds:.1f} s, "
        f"{used.ru_utime - before:.1f} s of CPU, "
        f"{used.ru_maxrss / 1024:,.0f} MB at most so far"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--keep", type=Path, help="make or reuse this database")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.keep or Path(folder) / "large.db"
        if not path.exists():
            build(path, chosen.runs, chosen.evaluations)
        print(f"{path}: {path.stat().st_size / 1e6:,.0f} MB")
        measure(path, [])
        measure(path, ["--format", "json"])
        measure(path, ["--output", str(Path(folder) / "markdown")])
        measure(path, ["--output", str(Path(folder) / "html"), "--format", "html"])


if __name__ == "__main__":
    main()
