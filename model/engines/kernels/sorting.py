"""Assignments sorted by expert: a stable counting sort over E, without atomics, in two launches.

Count each block's assignments by expert; then an assignment's place is the assignments of smaller experts,
plus those of its expert in earlier blocks, plus those before it in its own (Knuth 1998, algorithm 5.2D).

Shapes: S assignments, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

COUNTERS = 8_192
"""Comparisons of a block with every expert that a program holds at one time."""


class Sorted(NamedTuple):
    """Where assignments are, all int32 but the counts."""

    inverse_S: Tensor
    """The place of each assignment."""
    ends_E: Tensor
    """Where each expert's places end."""
    counts_E: Tensor
    """int64, as every engine hands them on."""


def by_expert(experts_S: Tensor, n_experts: int) -> Sorted:
    """The sorted order of assignments to experts 0 … E - 1; equal ones stay in their order."""
    size, device = len(experts_S), experts_S.device
    across = triton.next_power_of_2(n_experts)
    block = max(64, COUNTERS // across)
    blocks = triton.cdiv(size, block)
    inverse_S = torch.empty(size, dtype=torch.int32, device=device)
    ends_E = torch.empty(n_experts, dtype=torch.int32, device=device)
    counts_E = torch.empty(n_experts, dtype=torch.int64, device=device)
    by_block = torch.empty(blocks, n_experts, dtype=torch.int32, device=device)
    _count[(blocks,)](experts_S, by_block, size, n_experts, BLOCK=block, ACROSS=across)
    _place[(blocks,)](
        experts_S, by_block, inverse_S, ends_E, counts_E, size, blocks, n_experts,
        BLOCK=block, BLOCKS=triton.next_power_of_2(blocks),
    )  # fmt: skip
    return Sorted(inverse_S, ends_E, counts_E)


@triton.jit
def _count(experts_ptr, by_block_ptr, size, n_experts, BLOCK: tl.constexpr, ACROSS: tl.constexpr):
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(experts_ptr + at, mask=at < size, other=-1).to(tl.int32)
    every = tl.arange(0, ACROSS)
    counts = tl.sum((expert[:, None] == every[None, :]).to(tl.int32), 0)
    tl.store(by_block_ptr + block * n_experts + every, counts, mask=every < n_experts)


@triton.jit
def _place(
    experts_ptr, by_block_ptr, inverse_ptr, ends_ptr, counts_ptr, size, blocks, n_experts,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(experts_ptr + at, mask=at < size, other=-1).to(tl.int32)
    every = tl.arange(0, BLOCKS)
    begin = 0
    for e in range(n_experts):
        counts = tl.load(by_block_ptr + every * n_experts + e, mask=every < blocks, other=0)
        count = tl.sum(counts, 0)
        mine = expert == e
        place = begin + tl.sum(tl.where(every < block, counts, 0), 0) + tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(inverse_ptr + at, place, mask=mine)
        begin += count
        tl.store(ends_ptr + e, begin, mask=block == 0)  # every block knows the totals: the first writes them
        tl.store(counts_ptr + e, count.to(tl.int64), mask=block == 0)
