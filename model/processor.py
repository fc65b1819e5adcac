"""The CPU's name: what a result's bits may depend on, and what a report says of a machine. No torch."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The CPU's model name, by which kernels choose their path; the architecture where none is told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
