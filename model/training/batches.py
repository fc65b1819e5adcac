"""A run's training batches on its device: on a GPU the tokens lie there, a batch is index arithmetic.

A copy from ordinary memory makes the host wait for the device, in every pass. Which windows make a batch:
model/text/windows.py. Who asks: model/training/update.py.

Shapes: B windows, T time, S steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.text.dataset import Dataset

AHEAD_STEPS = 256
"""Steps whose windows are sent to a GPU in one copy."""


class Batches:
    """The batches by step, as tensors."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.data, self.device = data, device

    def steps(self, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of `count` steps from `step`, one after the other: (count · B, T) int64."""
        arrays = zip(*(self.data.batch(step + ahead) for ahead in range(count)), strict=True)
        inputs_BT, targets_BT = (torch.from_numpy(np.concatenate(each)) for each in arrays)
        return inputs_BT, targets_BT


class DeviceBatches(Batches):
    """The same batches, gathered where the tokens are."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        super().__init__(data, device)
        self.tokens = torch.tensor(np.asarray(data.train_tokens).astype(np.int64), device=device)
        self.columns = torch.arange(data.seq_len + 1, device=device)
        self.first_step = 0
        self.starts_SB = torch.empty(0, 0, dtype=torch.int64)

    def steps(self, step: int, count: int) -> tuple[Tensor, Tensor]:
        if not self.first_step <= step <= self.first_step + len(self.starts_SB) - count:
            ahead = [self.data.starts(step + n) for n in range(max(AHEAD_STEPS, count))]
            self.first_step, self.starts_SB = step, torch.from_numpy(np.stack(ahead)).to(self.device)
        at = step - self.first_step
        starts_B1 = self.starts_SB[at : at + count].flatten().unsqueeze(1)
        windows = self.tokens[starts_B1 + self.columns]
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def batches_on(device: torch.device, data: Dataset) -> Batches:
    """The kind for a device."""
    return (DeviceBatches if device.type == "cuda" else Batches)(data, device)
