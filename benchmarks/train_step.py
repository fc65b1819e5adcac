"""How long a training step takes, beside the plain loop over experts and transformers' Mixtral.

    python benchmarks/train_step.py [--device cpu] [--scale smoke|small|full]
        [--against loop,grouped,compiled,published,nondeterministic,transformers] [--batch-size N]
        [--set KEY=VALUE] [--updates 8] [--rounds 3] [--threads 2] [--json FILE]

Each alternative runs in a process of its own, in turns (A B C A B C); what is printed is the median over the
rounds of each process's median over its updates. CPU seconds are printed beside: they suffer less where other
work shares the cores. MFU is against the speed of one large matrix product, which is measured first.
On random tokens: no corpus is needed, and routing is as uneven as at the start of a run.
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
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[0] = str(PROJECT)  # not this folder: a file here may be called as one of the standard library

import torch  # noqa: E402

from benchmarks.alternatives import PHASES, Clock, mixtral, ours  # noqa: E402
from model.config import RunConfig  # noqa: E402
from model.engines.cpu_experts import choose  # noqa: E402
from model.engines.device import multiplies_bf16, precision_of, prepare  # noqa: E402
from model.program import SCALES  # noqa: E402
from model.training.memory import peak_memory_bytes  # noqa: E402
from runner.work.process import ALLOCATOR  # noqa: E402

ENGINES = {
    "fp32": "auto", "bf16": "auto", "by kernel": "triton", "nondeterministic": "auto", "grouped": "grouped",
    "compiled": "compiled", "loop": "plain", "published": "plain",
}  # fmt: skip
"""train.engine of each alternative; bf16 on a GPU and under that name, else fp32. Published: its formulas and
its fp16, and determinism not asked for, as its code had it."""
LOOP_ALLOCATORS = ("loop", "loop-malloc")
EXPERTS = ("eager", "grouped_mm", "grouped_mm compiled")
"""How transformers can compute experts; the fastest is the alternative. Compiled on a GPU only. Not
batched_mm, which copies an expert's weights for every token: minutes for an update of the smallest model."""
WARM_UP_UPDATES = 2


def main() -> None:
    """Run every alternative in turns and print the table."""
    options = parsed()
    if options.child:
        print(json.dumps(child(options)))
        return
    names = ["fp32", "bf16"] if options.device == "cpu" else ["bf16", "by kernel"]
    if not multiplies_bf16(torch.device(options.device)):
        names.remove("bf16")  # minutes an update, and nobody's choice
    against = options.against.split(",")
    loops = LOOP_ALLOCATORS if options.device == "cpu" else LOOP_ALLOCATORS[:1]
    names += loops if "loop" in against else ()
    names += [name for name in ("grouped", "compiled", "published", "nondeterministic") if name in against]
    if "transformers" in against:
        names += [f"transformers {way}" for way in EXPERTS if options.device != "cpu" or "comp" not in way]
    names += [name for name in against if name.startswith("transformers ")]  # one of its ways alone
    ceiling = spawn("ceiling", options)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for _ in range(options.rounds):
        for name in [name for name in names if name not in failed]:
            try:
                rounds[name].append(spawn(name, options))
            except ChildProcessError as error:  # the others' times are still worth having
                failed[name] = f"{error}"
                print(f"{name}: {error}", file=sys.stderr)
            rows = {each: median_of(results) for each, results in rounds.items() if results}
            report = {"about": about(options), "ceiling": ceiling, "rows": rows, "rounds": rounds}
            report["failed"] = failed
            if options.json:  # each time: a lent card may be gone before the last
                Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    print_table(report)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", default="smoke", choices=["smoke", "small", "full"])
    parser.add_argument(
        "--against",
        default="loop,transformers",
        help="of loop, grouped, compiled, published, nondeterministic, transformers",
    )
    parser.add_argument("--batch-size", type=int, default=0, help="windows a step; 0: the scale's own")
    parser.add_argument("--set", action="append", default=[], dest="assignments", metavar="KEY=VALUE")
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def configuration(options: argparse.Namespace) -> RunConfig:
    """The scale's run, with the vocabulary of the bundled corpus at that scale."""
    values = dict({"full": {}, **SCALES}[options.scale])
    values |= {"vocab_size": {"smoke": 4_096, "small": 8_192, "full": 49_152}[options.scale]}
    values |= {"batch_size": options.batch_size} if options.batch_size else {}
    assigned = (assignment.partition("=") for assignment in options.assignments)
    return RunConfig().with_values(values | {key: json.loads(value) for key, _, value in assigned})


def spawn(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One alternative in a fresh process; `loop` keeps the allocator's defaults, as anyone's script would.

    Raises:
        ChildProcessError: it failed; the message is the end of its stderr.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    if name != "loop" and not name.startswith("transformers"):
        environment |= ALLOCATOR
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildProcessError(f"failed: {done.stderr.strip()[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def child(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one alternative in this process."""
    torch.set_num_threads(options.threads)
    device = prepare(options.device)
    if options.child == "ceiling":
        return measured_ceiling(device, times=2 * options.updates)
    config = configuration(options)
    if options.child.startswith("transformers"):
        update = mixtral(config, device, *options.child.split()[1:])
    else:
        named = {"bf16": "bf16", "published": "fp16"}
        precision = named.get(options.child) or precision_of("auto", device)
        engine = ENGINES[options.child.removesuffix("-malloc")]
        deterministic = options.child not in ("nondeterministic", "published")
        update = ours(config, device, engine, precision, deterministic)
    seconds: dict[str, list[float]] = {phase: [] for phase in (*PHASES, "step", "cpu")}
    for number in range(WARM_UP_UPDATES + options.updates):
        cpu, began = time.process_time(), time.perf_counter()
        phases = update(number)
        if number >= WARM_UP_UPDATES:
            total = time.perf_counter() - began
            found = {**phases, "step": total, "cpu": time.process_time() - cpu}
            for name, value in found.items():
                seconds[name].append(value / config.train.accumulate)
    result = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    return {**result, "peak_memory_gb": peak_memory_bytes(device) / 1e9}


def measured_ceiling(device: torch.device, times: int) -> dict[str, Any]:
    """The device's best of so many times on one large product, in GFLOP/s, and on a copy, in GB/s."""
    size = 2_048 if device.type == "cpu" else 8_192
    found: dict[str, Any] = {}
    for name, dtype, fast in (
        ("fp32", torch.float32, True), ("fp32 BLAS", torch.float32, False), ("bf16", torch.bfloat16, True),
    ):  # fmt: skip
        library = choose(fast and device.type == "cpu")
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found[f"{name} GFLOP/s"] = 2 * size**3 / best_of(lambda a=a, b=b: a @ b, device, times) / 1e9
        found["library"] = library if name == "fp32" else found["library"]
    x = torch.randn(2**26, device=device)
    y = torch.empty_like(x)
    found["copy GB/s"] = 2 * x.nbytes / best_of(lambda: y.copy_(x), device, times) / 1e9  # read and written
    return found


def best_of(work: Callable[[], Any], device: torch.device, times: int) -> float:
    """Seconds of the fastest of several calls: a ceiling is what the device can do undisturbed.

    No further call after ten seconds: a processor without bf16 takes that for one.
    """
    clock, seconds = Clock(device), []
    while len(seconds) < times and clock.seconds["forward"] < 10.0:
        before = clock.seconds["forward"]
        clock.time("forward", work)
        seconds.append(clock.seconds["forward"] - before)
    return min(seconds)


def flops_per_token(config: RunConfig) -> float:
    """Forward and backward: 6 for each weight a token meets, and causal attention."""
    model = config.model
    weights = model.active_parameters - model.d_model * (2 * model.n_layers + 1)
    return 6.0 * weights + 6.0 * model.n_layers * model.d_model * config.train.seq_len


def median_of(results: list[dict[str, Any]]) -> dict[str, float]:
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def about(options: argparse.Namespace) -> dict[str, Any]:
    from model.processor import processor

    config = configuration(options)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "benchmarks/train_step.py", *sys.argv[1:]]),
        "device": processor() if options.device == "cpu" else torch.cuda.get_device_name(options.device),
        "accelerator": options.device != "cpu",
        "threads": options.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "scale": options.scale,
        "tokens_per_step": config.train.tokens_per_step,
        "mflop_per_token": flops_per_token(config) / 1e6,
    }


def print_table(report: dict[str, Any]) -> None:
    """Markdown: a row an alternative, with its ratio to ours in fp32 by wall clock and by CPU time."""
    facts, rows, ceiling = report["about"], report["rows"], report["ceiling"]
    print(json.dumps({**facts, **ceiling}, indent=1))
    tokens = facts["tokens_per_step"]
    base = rows.get("fp32") or rows["bf16"]
    print(
        "| alternative | ms/step | forward | backward | optimizer | tokens/s | MFU | CPU ms/step | ", end=""
    )
    print("times ours (wall) | times ours (CPU) | peak GB |\n|" + " --- |" * 11)
    for name, row in rows.items():
        in_bf16 = name == "bf16" or facts["accelerator"]
        peak = ceiling["bf16 GFLOP/s" if in_bf16 else "fp32 GFLOP/s"]
        share = facts["mflop_per_token"] * tokens / row["step"] / peak
        phases = " | ".join(f"{row[phase]:.1f}" for phase in PHASES)
        print(
            f"| {name} | {row['step']:.1f} | {phases} | {tokens / row['step'] * 1e3:,.0f} | {share:.0%} "
            f"| {row['cpu']:.1f} | {row['step'] / base['step']:.2f} | {row['cpu'] / base['cpu']:.2f} "
            f"| {row['peak_memory_gb']:.2f} |"
        )


if __name__ == "__main__":
    main()
