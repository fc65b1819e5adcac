"""What nvidia-smi says of the GPUs of this machine; nothing where there is none. Imports no torch."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

_FIELDS = ("index", "name", "utilization.gpu", "memory.used", "memory.total", "driver_version")
_MIB = 1 << 20
TIMEOUT_SECONDS = 5.0
"""Longer than this no driver that works takes."""


@dataclass(frozen=True)
class Gpu:
    """One card at one moment."""

    index: str
    name: str
    busy: str
    """Percent of the last second, or nvidia-smi's word for unknown."""
    used_bytes: int
    total_bytes: int
    driver: str


def gpus(program: str = "nvidia-smi") -> list[Gpu]:
    """Every GPU of this machine; an empty list if the driver does not answer."""
    if shutil.which(program) is None:
        return []
    try:
        done = subprocess.run(
            [program, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return [_gpu(row) for row in rows if len(row) == len(_FIELDS)]


def _gpu(row: list[str]) -> Gpu:
    def mebibytes(text: str) -> int:
        return int(text) * _MIB if text.isdigit() else 0

    return Gpu(row[0], row[1], row[2], mebibytes(row[3]), mebibytes(row[4]), row[5])
