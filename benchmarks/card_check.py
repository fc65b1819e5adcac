"""Is the fast path right on this card: its kernels, the bits of an update, and no wait for the host?

    python benchmarks/card_check.py [--device cuda:0] [--scale full] [--threads N] [--json FILE]

Each Triton kernel against the plain formulas, in the scale's own widths and both precisions; which engine
that makes `auto`; a tiny update twice, bit for bit; an update of the whole model under
torch.cuda.set_sync_debug_mode("error"), which raises where anything waits for the device. Exit 1 where
something is found. Elsewhere than on a CUDA device what needs one is null.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[0] = str(PROJECT)  # not this folder: a file here may be called as one of the standard library

import torch  # noqa: E402

from model.config import RunConfig  # noqa: E402
from model.engines import choice  # noqa: E402
from model.engines.device import prepare  # noqa: E402
from model.program import SCALES  # noqa: E402
from model.training import rehearsal, setting  # noqa: E402
from runner.work.provenance import of_this_machine  # noqa: E402


def main() -> None:
    """Look, print and exit 1 where something is not as it should be."""
    options = parsed()
    torch.set_num_threads(options.threads)
    device = prepare(options.device)
    config = RunConfig().with_values({**{"full": {}, **SCALES}[options.scale], "vocab_size": 49_152})
    kernels = kernels_off(config, device) if device.type == "cuda" else None
    found = setting.settle(config, device)
    report = {
        "about": about(options, device),
        "kernels that are off": kernels,
        "engine": found.computing,
        "remarks": found.remarks,
        "replayed as a graph": found.replays,
        "update twice": rehearsal.twice(config, found.engine, found.precision, device),
        "waits for the host": waits(config, found, device) if device.type == "cuda" else None,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    sys.exit(
        int(any(report[name] for name in ("kernels that are off", "update twice", "waits for the host")))
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--scale", default="full", choices=["smoke", "small", "full"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def kernels_off(config: RunConfig, device: torch.device) -> dict[str, str]:
    """Every comparison that fails, not the first alone: what is off, or what building it said."""
    try:
        from model.engines import self_check
    except ImportError as error:
        return {"all": f"{error}"}
    off = {}
    for name in self_check.COMPARISONS:
        try:
            said = self_check.wrong(device, config.model, only=name)
        except Exception as error:  # each kernel's own trouble, beside the others'
            said = choice.in_a_line(error)
        if said:
            off[name] = said
    return off


def waits(config: RunConfig, found: setting.Setting, device: torch.device) -> str:
    """What in an update at full size waits for the device; empty where nothing does."""
    update, _ = rehearsal.prepared(config, found.engine, found.precision, device)
    update()  # what is built, is built now
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        update()
    except RuntimeError as error:
        return choice.in_a_line(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def about(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", "benchmarks/card_check.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "packages": of_this_machine()["packages"],
    }


if __name__ == "__main__":
    main()
