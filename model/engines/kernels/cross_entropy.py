"""Cross-entropy of a chunk of logits, and its gradient in their place.

loss_n = log Σ_v exp(l_nv) - l_n,target, and ∂loss_n / ∂l_nv = softmax(l_n)_v - [v = target]. One program a
row: a first pass keeps a running maximum and sum (Milakov & Gimelshein 2018, algorithm 3), a second one
writes the gradient over the logits that it reads.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 8_192, 16
"""Columns at a time, and who takes them: of nine pairs the fastest on an H100 (docs/performance.md)."""


def softmax_gradient(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """losses_N in float32; the logits, contiguous, become the gradient of their sum."""
    rows, width = logits_NV.shape
    losses_N = torch.empty(rows, dtype=torch.float32, device=logits_NV.device)
    block = min(BLOCK, triton.next_power_of_2(width))
    _cross_entropy[(rows,)](logits_NV, targets_N, losses_N, width, BLOCK=block, num_warps=WARPS)
    return losses_N


@triton.jit
def _cross_entropy(logits_ptr, targets_ptr, losses_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * width
    target = tl.load(targets_ptr + row)
    of_target = tl.load(logits_ptr + target).to(tl.float32)
    # Lane by lane, brought together once. Not -inf: a lane that saw nothing would make it NaN.
    largest = tl.full((BLOCK,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + column, mask=column < width, other=-3.0e38).to(tl.float32)
        larger = tl.maximum(largest, logits)
        total = total * tl.exp(largest - larger) + tl.exp(logits - larger)
        largest = larger
    top = tl.max(largest, 0)
    total_of_row = tl.sum(total * tl.exp(largest - top), 0)
    tl.store(losses_ptr + row, top + tl.log(total_of_row) - of_target)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + column, mask=column < width, other=0.0).to(tl.float32)
        gradient = tl.exp(logits - top) / total_of_row - (column == target).to(tl.float32)
        tl.store(logits_ptr + column, gradient, mask=column < width)
