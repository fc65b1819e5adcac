"""Peak memory of a run, on whichever device it used. Reads and resets this process's own counters.

Who asks: model/training/state.py.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Start counting anew, so that a reused process does not report an earlier run's peak.

    On the CPU this needs Linux; elsewhere the peak stays that of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    except OSError:
        return


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
