"""What ended a job, sorted into the causes that decide whether it is tried again (runner/queue/attempts.py).

Runs in the trainer process.
"""

from __future__ import annotations

import errno
import re

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|out of memory|OUT_OF_MEMORY|ALLOC_FAILED|cudaErrorMemoryAllocation"
)
"""torch's allocator has an exception of its own; the driver and the libraries (cuBLAS, cuDNN) only say so."""


OWN = ("bad_config", "bug", "diverged", "oom", "device", "infrastructure")
"""Causes that an exception may say of itself."""


def cause_of(error: BaseException) -> tuple[str, str]:
    """(cause, one line) of what ended a job; the causes are runner.queue.schema.CAUSES.

    An exception of the program's own may say its `cause`, and in `remedy` what follows from it.
    """
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    own = getattr(error, "cause", None)
    if own in OWN:
        remedy = getattr(error, "remedy", "")
        return own, f"{error}; {remedy}" if remedy else str(error) or line
    # Frameworks are known by their words alone: none is imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom", line
    if OUT_OF_MEMORY.search(str(error)):
        return "oom", line
    if "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError":
        return "device", line
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return "infrastructure", f"{line}; free some room on the disk"
    if isinstance(error, (ConnectionError, TimeoutError)):
        return "infrastructure", line
    return "bug", line
