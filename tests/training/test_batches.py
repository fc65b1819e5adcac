"""Batches gathered on the device are the host's, step by step, and are not fetched one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.text.windows import BatchOrder, SoundOrder
from model.training import batches
from model.training.batches import Batches, DeviceBatches

T, B = 8, 3


class Text:
    """A hundred tokens in windows of eight: eleven windows an epoch, so that batches span epochs."""

    seq_len = T
    train_tokens = (np.arange(100, dtype=np.uint16) * 7) % 64

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._order = BatchOrder(SoundOrder(len(self.train_tokens), T, 42), B)

    def starts(self, step: int) -> np.ndarray:
        self.asked.append(step)
        return self._order.starts(step)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        windows = self.train_tokens[self._order.starts(step)[:, None] + np.arange(T + 1)].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]


@pytest.mark.parametrize("count", [1, 2])
def test_batches_on_the_device_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(batches, "AHEAD_STEPS", 5)
    text, cpu = Text(), torch.device("cpu")
    host, device = Batches(text, cpu), DeviceBatches(text, cpu)  # type: ignore[arg-type]
    for step in [*range(0, 24, count), 6]:  # and back, as a resumed run may
        for found, due in zip(device.steps(step, count), host.steps(step, count), strict=True):
            assert torch.equal(found, due)
            assert found.dtype == torch.int64
            assert found.is_contiguous()
    assert len(text.asked) < 24 + 3 * 5  # each window once or so, in blocks
