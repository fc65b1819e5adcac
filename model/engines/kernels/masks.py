"""Which entries dropout keeps, by Philox: never stored, drawn again on the way back.

Entry (row, column) has 16 bits of its own: lane row % 8 of the 128 bits of Philox4x32-10 (Salmon et al. 2011)
at the counter (row // 8) · width + column, under a key that is drawn from the device's default generator. So
the mask is a function of the dropout stream alone, and p is rounded as on a CPU (model/engines/dropout.py).
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run on a CPU, without being compiled; triton looks once, when it is imported."""
LANES = 8
"""Rows that share a counter: a kernel with dropout takes this many rows at a time."""


class Drop:
    """What a kernel needs of one dropout: a key on the device, and its rounded probability."""

    def __init__(self, p: float, device: torch.device) -> None:
        self.level = min(round(p * 65_536), 65_535)
        """Bits below it are dropped; 0 drops nothing."""
        self.scale = 65_536 / (65_536 - self.level)
        self.key: Tensor | None = torch.randint(2**63 - 1, (1,), device=device) if self.level else None


@triton.jit
def kept(key_ptr, group, column, width, level):
    """Whether (8, C) entries are kept: the 8 rows of a group, and columns (1, C)."""
    first, second, third, fourth = tl.randint4x(tl.load(key_ptr), group * width + column)
    lane = tl.arange(0, 8)[:, None]
    word = tl.where(lane < 4, tl.where(lane < 2, first, second), tl.where(lane < 6, third, fourth))
    bits = (word >> ((lane % 2) * 16).to(tl.uint32)) & 0xFFFF
    return bits.to(tl.int32) >= level
