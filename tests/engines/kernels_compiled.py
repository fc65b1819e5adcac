"""The Triton kernels built for a card that is not here: run by test_triton.py in a process of its own.

Triton's compiler and NVIDIA's assembler need no card: a driver that only says which one there is stands in,
and every launch builds its kernel instead of starting it. Checked is that it builds, in both precisions at
full scale's widths, and fits the shared memory that a block of that card has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from model.config import ModelConfig
from model.engines import self_check
from model.engines.kernels import sorting
from model.engines.self_check import COMPARISONS, PRECISIONS, Sizes

CPU = torch.device("cpu")
CAPABILITY, SHARED_BYTES = 89, 101_376
"""An RTX 4090's, and a block's most there, the least of all from 8.0 (CUDA C++ Programming Guide)."""
FULL = ModelConfig(vocab_size=49_152)
SIZES = Sizes(
    48, FULL.d_model, FULL.d_ff, FULL.n_heads, FULL.n_experts, FULL.top_k, FULL.vocab_size, FULL.dropout
)


class Driver:
    """Says what card there is."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


def test_every_kernel_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    run, built = JITFunction.run, {}

    def build(self: Any, *arguments: Any, grid: Any, warmup: bool, **more: Any) -> Any:
        made = run(self, *arguments, grid=grid, warmup=True, **more)
        built[self.fn.__module__, self.fn.__name__, made.hash] = made
        return made

    def routed(sizes: Sizes, device: torch.device) -> Any:
        """What the sort would say, which nothing computes here: the reference reads it."""
        chosen = torch.arange(sizes.tokens * sizes.top_k).remainder(sizes.experts).view(sizes.tokens, -1)
        sorting.by_expert(chosen.flatten(), sizes.experts)
        each = chosen.numel() // sizes.experts
        ends = torch.arange(1, sizes.experts + 1, dtype=torch.int32) * each
        return chosen, sorting.Sorted(torch.arange(chosen.numel(), dtype=torch.int32), ends, ends.long())

    monkeypatch.setattr(JITFunction, "run", build)
    monkeypatch.setattr(self_check, "_routed", routed)
    driver.set_active(Driver())
    for compare in COMPARISONS.values():
        for dtype in PRECISIONS:
            for _ in compare(SIZES, dtype, CPU):
                pass
    assert len({name for _, name, _ in built}) == 11
    assert all(made.asm["cubin"] for made in built.values())
    largest = max(made.metadata.shared for made in built.values())
    assert largest <= SHARED_BYTES, f"{largest} bytes of {triton.__version__}'s kernels"
