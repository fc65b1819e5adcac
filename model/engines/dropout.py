"""Which entries dropout keeps, drawn fast on a CPU.

Draws from torch's default generator and nothing else. Who uses it: model/engines/cpu.py and
model/engines/cpu_experts.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


class Keep:
    """Which entries dropout keeps: 16 random bits each, so p is rounded to a multiple of 1 / 65,536.

    The bits are numpy's SFC64 stream of a seed that is drawn from torch's default generator: a function of
    the dropout stream alone, whose state a checkpoint has. torch's bernoulli_ took 15 times as long.
    """

    def __init__(self, shape: tuple[int, ...], p: float) -> None:
        level = min(round(p * 65_536), 65_535)
        self.threshold = level - 32_768
        self.scale = 65_536 / (65_536 - level)
        """1 / (1 - p), for the rounded p: the mean stays exact."""
        count = math.prod(shape)
        words = np.random.SFC64(int(torch.randint(2**63 - 1, ()))).random_raw(-(-count // 4))
        self.bits = torch.from_numpy(words.view(np.int16)[:count]).view(shape)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """1 where kept, 0 elsewhere, in the dtype that it will be multiplied with: other types are slow."""
        return torch.ge(self.bits, self.threshold, out=torch.empty(self.bits.shape, dtype=dtype))
