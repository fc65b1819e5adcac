"""What ended a job, sorted into the causes that decide whether it is tried again (runner/queue/attempts.py).

Runs in the trainer process, and imports torch there.
"""

from __future__ import annotations

import errno
import json
import re

from model.config import ConfigError

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|out of memory|OUT_OF_MEMORY|ALLOC_FAILED|cudaErrorMemoryAllocation"
)
"""torch's allocator has an exception of its own; the driver and the libraries (cuBLAS, cuDNN) only say so."""


def cause_of(error: BaseException, device: str) -> tuple[str, str]:
    """(cause, one line) of what ended a job; the causes are runner.queue.schema.CAUSES."""
    import torch

    from model.text.cache import CacheDamaged
    from model.training.memory import peak_memory_bytes
    from model.training.update import Diverged

    line = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, (ConfigError, json.JSONDecodeError)):
        return "bad_config", str(error)
    if isinstance(error, Diverged):
        return "diverged", str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or OUT_OF_MEMORY.search(str(error)):
        peak = peak_memory_bytes(torch.device(device)) / 1e9
        remedy = "set train.micro_batch (windows at a time) below train.batch_size, or use another device"
        return "oom", f"{line}; peak {peak:.2f} GB on {device}; {remedy}"
    if isinstance(error, CacheDamaged):
        return "infrastructure", f"{error}; they are prepared anew at the next attempt"
    if "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError":
        return "device", line
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return "infrastructure", f"{line}; free some room on the disk"
    if isinstance(error, (ConnectionError, TimeoutError)):
        return "infrastructure", line
    return "bug", line
