"""The CPU's name and its instructions: what a result's bits may depend on. No torch."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
VECTORS = (
    *("fma", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16"),
    *("asimd", "bf16", "sve", "sve2", "svebf16"),
)
"""What kernels of floating-point numbers choose by, as Linux names it on x86 and on ARM."""


def processor() -> str:
    """The CPU's model name, by which kernels choose their path; the architecture where none is told."""
    return _first("model name") or platform.machine()


def instructions() -> str:
    """Which of VECTORS the CPU offers here; empty where none is told.

    Under one model name a cloud's machines may offer more or fewer.
    """
    told = (_first("flags") or _first("Features")).split()
    return " ".join(name for name in VECTORS if name in told)


def _first(key: str) -> str:
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key)
    return next(values, "")
