"""Memory of a run: what fits, by estimate, and its peak. Reads and resets this process's own counters.

Who asks: model/training/state.py, model/training/setting.py.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from model.config import RunConfig
from model.engines.head import CHUNK

USABLE = 0.9
"""Of a device's memory: the driver, the libraries' workspaces and what is between blocks take the rest."""


def that_fits(
    config: RunConfig, device: torch.device, precision: str, attention: str, together: int
) -> tuple[int, int]:
    """(steps, windows) of a pass: the most, up to `together` steps, whose estimate a GPU's memory holds.

    A function of the configuration and the card, never of what is free: a run that is repeated is cut in the
    same pieces. `train.micro_batch`, and a CPU, are taken as they are.
    """
    train = config.train
    if device.type != "cuda" or train.windows_at_once < train.batch_size:
        return together, train.windows_at_once
    room = USABLE * torch.cuda.get_device_properties(device).total_memory
    steps = [n for n in range(together, 0, -1) if train.accumulate % n == 0]
    windows = [n for n in range(train.batch_size - 1, 0, -1) if train.batch_size % n == 0]
    ways = [(n, train.batch_size) for n in steps] + [(1, n) for n in windows]
    fitting = (way for way in ways if estimated_bytes(config, way[0] * way[1], precision, attention) <= room)
    return next(fitting, ways[-1])


def estimated_bytes(config: RunConfig, windows: int, precision: str, attention: str) -> float:
    """What an update takes at its peak on a GPU: model/config.py, `estimated_bytes`."""
    width = 2 if precision == "bf16" else 4
    return config.estimated_bytes(windows, width, CHUNK["cuda"], attention == "math")


def reset_peak_memory(device: torch.device) -> None:
    """Start counting anew, so that a reused process does not report an earlier run's peak.

    On the CPU this needs Linux; elsewhere the peak stays that of the whole process.
    """
    if device.type == "cuda":  # started: model/engines/device.py, `prepare`; before that this would raise
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    except OSError:
        return


def peak_of(device_name: str) -> int:
    """The peak of a device by its name."""
    return peak_memory_bytes(torch.device(device_name))


def peak_memory_bytes(device: torch.device) -> int:
    """CUDA: the most that tensors held at once (max_memory_allocated); CPU: the process's peak resident set.

    The two are not comparable: the second counts the interpreter and the libraries too.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024  # the kernel counts in KiB
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
