"""Rotary embedding and the packing of queries, keys and values, both ways (Su et al. 2021, eq. 34).

One projection's row (3, H, C) becomes three rows (H, C), the pairs (x0, x1), (x2, x3) … of q and k turned by
their position's angles; backward is the same kernel with rows the other way round and the angles' signs
changed. In float32 whatever comes; the tables are float32.

Shapes: B batch, T time, H heads, C channels of a head, D = H · C.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def turned(qkv_BT3HC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q and k turned, and v: (B, H, T, C) each, in memory (B, T, H, C)."""
    return _Turn.apply(qkv_BT3HC, cos_TC, sin_TC)


class _Turn(Function):
    @staticmethod
    def forward(ctx, qkv_BT3HC, cos_TC, sin_TC):
        b, t, _, h, c = qkv_BT3HC.shape
        packed = qkv_BT3HC.new_empty(3, b, t, h, c)
        _launch(qkv_BT3HC.contiguous().unbind(2), packed.unbind(), cos_TC, sin_TC, (3, 1), 1.0)
        ctx.save_for_backward(cos_TC, sin_TC)
        return tuple(part.transpose(1, 2) for part in packed.unbind())

    @staticmethod
    @once_differentiable
    def backward(ctx, *dparts_BHTC):
        b, h, t, c = dparts_BHTC[0].shape
        dqkv_BT3HC = dparts_BHTC[0].new_empty(b, t, 3, h, c)
        dparts = [part.transpose(1, 2).contiguous() for part in dparts_BHTC]
        _launch(dparts, dqkv_BT3HC.unbind(2), *ctx.saved_tensors, (1, 3), -1.0)
        return dqkv_BT3HC, None, None


def _launch(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    cos_TC: Tensor,
    sin_TC: Tensor,
    strides: tuple[int, int],
    sign: float,
) -> None:
    """From three (B, T, H, C) to three others, a program a row (H, C); `strides` from row to row, in rows.

    Not read from the tensors: of an axis of length 1 a stride may say anything.
    """
    b, t, h, c = sources[0].shape
    _turn[(b * t,)](
        *sources, *targets, cos_TC, sin_TC, t, c // 2, h * c // 2,
        strides[0] * h * c, strides[1] * h * c, sign, BLOCK=triton.next_power_of_2(h * c // 2),
    )  # fmt: skip


@triton.jit
def _turn(
    q_ptr, k_ptr, v_ptr, q_out, k_out, v_out, cos_ptr, sin_ptr, time, head_pairs, pairs,
    row_in, row_out, sign, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    angle = (row % time) * head_pairs + pair % head_pairs
    cos = tl.load(cos_ptr + angle, mask=pair < pairs, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=pair < pairs, other=0.0) * sign
    both = 2 * pair[:, None] + tl.arange(0, 2)[None, :]
    inside = both < 2 * pairs
    source, target = row * row_in + both, row * row_out + both
    tl.store(q_out + target, _rotated(tl.load(q_ptr + source, mask=inside, other=0.0), cos, sin), mask=inside)
    tl.store(k_out + target, _rotated(tl.load(k_ptr + source, mask=inside, other=0.0), cos, sin), mask=inside)
    tl.store(v_out + target, tl.load(v_ptr + source, mask=inside, other=0.0), mask=inside)


@triton.jit
def _rotated(pairs, cos, sin):
    even, odd = tl.split(pairs.to(tl.float32))
    return tl.join(even * cos - odd * sin, odd * cos + even * sin)
