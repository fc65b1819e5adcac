"""What the project still wants from a GPU, in pieces: is it right, how fast, `factorial`, `factorial-long`.

    python benchmarks/results_gpu.py [--minutes 25] [--output results-gpu] [--tokenizer FOLDER]
        [--device cuda:0] [--scale full] [--seeds 42..44] [--set KEY=VALUE] [--updates N]
        [--stop-after factorial]

In this order, each once: the kernels, the bits and the waits of an update (card_check.json), the same run
compared bit for bit, fresh, reused and interrupted (determinism.json), a training step timed beside what
people would use instead (train_step.json), `factorial`, then as much of `factorial-long` as the time allows,
both on the bundled text with SmolLM's vocabulary. The same line again goes on where the time ended; it exits
75 while anything is left. What is to be brought back lies in the output folder itself: a few small files and
one archive. What it goes on from, databases and checkpoints, is in its folder `work`; where that is gone, the
archive serves.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[0] = str(PROJECT)  # not this folder: a file here may be called as one of the standard library

from benchmarks.results import PACKED, PREEMPTED, Study, pack, run, unpack  # noqa: E402

STUDIES = ("factorial", "factorial-long")
ARCHIVE = "results-gpu.tar.gz"
TOKENIZERS = (Path("../shared/assets/smollm-tokenizer"), Path("shared/assets/smollm-tokenizer"))
"""Where SmolLM's tokenizer may lie beside a checkout; elsewhere it is named."""
AGAINST = "loop,grouped,compiled,published,nondeterministic,transformers"
PACKING_SECONDS = 75.0
"""Kept back at the end for the reports and the archive."""
LEAST_SECONDS = 60.0
"""With less than this left a study is not gone on with: starting alone would take it."""


@dataclass(frozen=True)
class Plan:
    """Everything that the steps need to know."""

    output: Path
    device: str
    scale: str
    tokenizer: str
    seeds: str | None
    assignments: tuple[str, ...]
    threads: int
    updates: int
    """That a step is timed over; 0 for the script's own number."""
    ends_at: float
    """On the monotonic clock."""

    @property
    def left_seconds(self) -> float:
        return self.ends_at - PACKING_SECONDS - time.monotonic()

    @property
    def settings(self) -> list[str]:
        """As the scripts and `enqueue` take them."""
        return [word for assignment in self.assignments for word in ("--set", assignment)]

    def folder(self, grid: str) -> Path:
        """Where a study's database and checkpoints are."""
        made = self.output / "work" / grid
        made.mkdir(parents=True, exist_ok=True)
        return made

    def study(self, grid: str) -> Study:
        # The seeds given are factorial's: the long one declares its own, and time is what limits it.
        seeds = self.seeds if grid == STUDIES[0] else None
        return Study(grid, self.scale, seeds, "bundled", self.tokenizer, self.assignments)


def main() -> None:
    """Do what the time allows, pack what there is, and say what is left."""
    options = parsed()
    plan = planned(options)
    restore(plan)
    wanted = STUDIES[: STUDIES.index(options.stop_after) + 1]
    failed = []
    try:
        for name, step in MEASUREMENTS.items():
            if not (plan.output / name).exists():
                failed += step(plan, plan.output / name)
        left = [grid for grid in wanted if not work(plan, grid)]
    finally:  # whatever broke, what was measured before comes back
        print(keep(plan))
    for line in failed:
        print(f"failed: {line}; the same command tries it again")
    if left:
        print(f"left: {', '.join(left)}; the same command goes on")
    sys.exit(PREEMPTED if left else int(bool(failed)))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--output", type=Path, default=Path("results-gpu"))
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--scale", default="full", choices=["smoke", "small", "full"])
    parser.add_argument("--seeds", help="of factorial; default: the grid's three")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--updates", type=int, default=0, help="that a step is timed over")
    parser.add_argument("--stop-after", choices=STUDIES, default=STUDIES[-1])
    return parser.parse_args()


def planned(options: argparse.Namespace) -> Plan:
    began = time.monotonic()
    found = [options.tokenizer] if options.tokenizer else [str(path) for path in TOKENIZERS if path.is_dir()]
    if not found:
        sys.exit(
            "error: SmolLM's tokenizer is not beside this checkout; give its folder, or where the hub can be "
            "reached HuggingFaceTB/SmolLM-135M: make results-gpu TOKENIZER=FOLDER"
        )
    if options.device.startswith("cuda") and not has_gpu():
        sys.exit(f"error: --device {options.device}: no GPU is seen here; run this where one is")
    options.output.mkdir(parents=True, exist_ok=True)
    return Plan(
        output=options.output.resolve(),
        device=options.device,
        scale=options.scale,
        tokenizer=found[0],
        seeds=options.seeds,
        assignments=tuple(options.assignments),
        threads=options.threads,
        updates=options.updates,
        ends_at=began + 60 * options.minutes,
    )


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def check_card(plan: Plan, target: Path) -> list[str]:
    """The kernels against the plain formulas, and an update without waits; findings are no failure."""
    words = ["--device", plan.device, "--scale", plan.scale, "--threads", str(plan.threads)]
    return script("card_check.py", [*words, "--json", str(target)], target)


def time_a_step(plan: Plan, target: Path) -> list[str]:
    """A training step on the device, beside what people would use instead."""
    words = ["--device", plan.device, "--scale", plan.scale, "--rounds", "1"]
    words += ["--updates", str(plan.updates)] if plan.updates else []
    words += ["--against", AGAINST if plan.device != "cpu" else "", *plan.settings]
    words += ["--threads", str(plan.threads), "--json", str(target)]
    return script("train_step.py", words, target)


def compare_bits(plan: Plan, target: Path) -> list[str]:
    """Same seed twice, fresh and reused, interrupted and not; a difference is a finding, not a failure."""
    words = ["--device", plan.device, "--scale", plan.scale, "--threads", str(plan.threads)]
    words += ["--tokenizer", plan.tokenizer, "--cache-dir", str(plan.output / "work/data_cache")]
    return script("determinism.py", [*words, *plan.settings, "--json", str(target)], target)


MEASUREMENTS = {
    "card_check.json": check_card,
    "determinism.json": compare_bits,
    "train_step.json": time_a_step,
}
"""What is measured before the studies, by the file that it leaves."""


def script(name: str, words: list[str], target: Path) -> list[str]:
    """Run one of the scripts beside this one; without its file it has failed, which costs only it."""
    print(f"$ python benchmarks/{name} {' '.join(words)}", file=sys.stderr, flush=True)
    path = str(PROJECT / "benchmarks" / name)
    code = subprocess.run([sys.executable, path, *words], stdout=sys.stderr, check=False).returncode
    if not target.exists():
        return [f"benchmarks/{name} ended with {code} and left no {target.name}"]
    return []


def work(plan: Plan, grid: str) -> bool:
    """Go on with a study while there is time; True when it is done."""
    folder, study = plan.folder(grid), plan.study(grid)
    cache = ["--cache-dir", "../data_cache"]
    run([*study.enqueue(folder), *cache], folder)
    if plan.left_seconds < LEAST_SECONDS:
        return False
    limit = f"{plan.left_seconds:.0f}s"
    words = ["work", "--device", plan.device, "--threads", str(plan.threads), "--time-limit", limit, *cache]
    return run(words, folder) == 0


def keep(plan: Plan) -> str:
    """Pack each study, and all of it in one archive; returns what there is, a line a study."""
    said = []
    kept = plan.output / "work/kept"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for grid in STUDIES:
        if (plan.folder(grid) / "jobs.db").exists():
            study = plan.study(grid)
            commands = [study.enqueue(), ["work", "--device", plan.device, "--threads", str(plan.threads)]]
            said.append(pack(study.name, commands, plan.folder(grid), kept / grid))
            report = kept / grid / "report.md"
            if report.exists():
                shutil.copy(report, plan.output / f"{grid}.md")
    beside = plan.output / f".{ARCHIVE}"
    with tarfile.open(beside, "w:gz") as archive:
        archive.add(kept, arcname=".")
    beside.replace(plan.output / ARCHIVE)
    return "\n".join(said)


def restore(plan: Plan) -> None:
    """Where the work folder is gone, as on another machine, take the databases from the archive.

    Checkpoints are not in it: a run that was under way begins anew.
    """
    archive = plan.output / ARCHIVE
    if not archive.exists():
        return
    with tarfile.open(archive) as packed:
        for grid in STUDIES:
            names = [name for name in packed.getnames() if name.endswith(f"{grid}/{PACKED}")]
            for name in names:
                content = packed.extractfile(name)
                assert content is not None
                unpack(content.read(), plan.folder(grid))


if __name__ == "__main__":
    main()
