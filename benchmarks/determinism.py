"""Is the same run the same bits on this device: twice, in a fresh process, interrupted half-way, as a graph?

    python benchmarks/determinism.py [--device cuda:0] [--scale full] [--set steps=40] [--tokenizer FOLDER]
        [--json FILE]

Runs of one configuration, on the bundled text: in a fresh process; in another one a first, a second that
finds it used, and a third that is stopped at half its updates and resumed from its checkpoint; where updates
are replayed as a CUDA graph, a fourth whose kernels are launched one by one. Compared are all measured
values, the expert counts, the results without their times, and the final weights, by SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[0] = str(PROJECT)  # not this folder: a file here may be called as one of the standard library

from model.config import RunConfig  # noqa: E402
from model.events import Asked, Checkpointed, Event, Finished, Measured, Request, Resumed  # noqa: E402
from runner.design.grid_file import load_grid  # noqa: E402
from runner.design.scales import adjust  # noqa: E402
from runner.work.process import ALLOCATOR  # noqa: E402
from runner.work.provenance import of_this_machine  # noqa: E402

ENVIRONMENT = {**ALLOCATOR, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOKENIZERS_PARALLELISM": "false"}
"""As a trainer process has it (runner/work/process.py)."""


def main() -> None:
    """Compare, print and exit 1 where anything differs."""
    options = parsed()
    if options.child:
        print(json.dumps(child(options)))
        return
    fresh, used = spawn("fresh", options), spawn("used", options)
    environment, step = fresh.pop("environment"), used.pop("resumed from step")
    del used["environment"]
    first = used["first"]
    report = {
        "about": about(options, environment),
        "same seed twice": used["second"] == first,
        "fresh = reused process": fresh["first"] == used["second"],
        "interrupted = uninterrupted": used["interrupted"] == first,
        "graph = kernel by kernel": used["by kernel"] == first if "by kernel" in used else None,
        "resumed from step": step,
        "digests": {"fresh": fresh["first"], **used},
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    sys.exit(not all(value for value in report.values() if isinstance(value, bool)))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", default="full", choices=["smoke", "small", "full"])
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--tokenizer")
    parser.add_argument("--cache-dir", type=Path, default=Path("data_cache"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def spawn(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The runs of one process, in the environment that a trainer has."""
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"determinism: the {name} process ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def child(options: argparse.Namespace) -> dict[str, Any]:
    """The digests of one process's runs, and the numeric environment."""
    import torch

    torch.set_num_threads(options.threads)
    config = configuration(options)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        first = run(config, place / "1", options)
        environment = next(event.environment for event in first if isinstance(event, Resumed))
        found: dict[str, Any] = {"first": digest(first, place / "1"), "environment": environment}
        if options.child == "used":
            found["second"] = digest(run(config, place / "2", options), place / "2")
            events, step = interrupted(config, place / "3", options)
            found |= {"interrupted": digest(events, place / "3"), "resumed from step": step}
            if "as one graph" in environment["engine"]:
                by_kernel = config.with_values({"engine": "triton"})
                found["by kernel"] = digest(run(by_kernel, place / "4", options), place / "4")
    return found


def configuration(options: argparse.Namespace) -> RunConfig:
    """A run of `factorial` with noise, short, on the bundled text."""
    from model.text.corpus import resolve

    named = any(assignment.startswith(("steps=", "train.steps=")) for assignment in options.assignments)
    chosen = [*options.assignments, *([] if named else ["steps=40", "eval_every=20"])]
    grid = adjust(load_grid("factorial"), options.scale, chosen, "42")
    small = options.scale == "smoke"
    data, vocabulary = resolve(
        "bundled", options.tokenizer, small, grid.base.data, options.cache_dir, lambda text: None
    )
    model = replace(grid.base.model, vocab_size=vocabulary)
    chosen: RunConfig = replace(grid.base, data=data, model=model)
    return chosen.with_values({"noise_std": 0.1, "seed": 42})


def run(config: RunConfig, workdir: Path, options: argparse.Namespace, **more: Any) -> list[Event]:
    from model.training.loop import train

    return list(
        train(
            config,
            workdir,
            cache_dir=options.cache_dir,
            device=options.device,
            checkpoint_seconds=1e9,
            keep_weights=True,
            **more,
        )
    )


def interrupted(config: RunConfig, workdir: Path, options: argparse.Namespace) -> tuple[list[Event], int]:
    """All events of a run that is stopped at half its updates and resumed; and the step of that."""
    from model.training.loop import train

    events: list[Event] = []
    asked, half = Asked(), config.train.steps // 2
    for event in train(
        config,
        workdir,
        cache_dir=options.cache_dir,
        device=options.device,
        asked=asked,
        checkpoint_seconds=1e9,
    ):
        events.append(event)
        if event.step >= half:
            asked.ask(Request.STOP)
    saved = [event for event in events if isinstance(event, Checkpointed)]
    resume = [(event.path, event.sha256) for event in reversed(saved)]
    return events + run(config, workdir, options, resume_from=resume), saved[-1].step


def digest(events: list[Event], workdir: Path) -> dict[str, str]:
    """SHA-256 of what was measured, of the results, and of the weights; clocks left out."""
    measured = [
        (e.step, e.split, {k: v for k, v in e.values.items() if k != "tokens_per_second"}, e.expert_counts)
        for e in events
        if isinstance(e, Measured)
    ]
    clocks = ("seconds", "per_second", "peak_memory")
    results = [
        {name: value for name, value in e.results.items() if not any(clock in name for clock in clocks)}
        for e in events
        if isinstance(e, Finished)
    ]
    assert len(results) == 1, f"{len(results)} results"
    rows = sorted(measured, key=lambda row: row[:2])
    texts = {"measured": json.dumps(rows), "results": json.dumps(results)}
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    return {**hashes, "weights": digest_of_weights(workdir / "weights.safetensors")}


def digest_of_weights(path: Path) -> str:
    """SHA-256 over names and contents; not of the file, whose header has no order of its own."""
    from safetensors.numpy import load_file

    whole = hashlib.sha256()
    for name, array in sorted(load_file(path).items()):
        whole.update(name.encode())
        whole.update(array.tobytes())
    return whole.hexdigest()


def about(options: argparse.Namespace, environment: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", "benchmarks/determinism.py", *sys.argv[1:]]),
        "scale": options.scale,
        "numeric_environment": environment,
        "packages": of_this_machine()["packages"],
    }


if __name__ == "__main__":
    main()
