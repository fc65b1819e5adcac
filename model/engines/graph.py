"""Work on a CUDA device launched as one graph, not kernel by kernel: the host's share becomes one call.

A graph repeats what was captured: tensors at the addresses, and numbers of the host with the values, that
they had then. What changes from call to call lies in tensors that stay, and random numbers come from
generators that the graph knows: torch moves those on with each replay, as the work itself would. Who captures
an update: model/training/passes.py; who shows that replays repeat its bits: model/training/rehearsal.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Replay:
    """A captured function without arguments, which has run before: its kernels exist, its state is made."""

    def __init__(self, work: Callable[[], list[Tensor]], generators: Sequence[torch.Generator]) -> None:
        """
        Args:
            generators: that the work draws from, beside the device's default generator.

        Raises:
            RuntimeError: the work waits for the host, or there is no memory for the graph's own tensors.
        """
        self._graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):  # computes nothing yet
            self._found = work()

    def __call__(self) -> list[Tensor]:
        """Compute once more; the tensors found are overwritten by the next call."""
        self._graph.replay()
        return self._found
