"""Residual sum, dropout and RMSNorm in one pass: s = x + dropout(y), and s / sqrt(mean(s²) + eps) · gain.

Zhang & Sennrich 2019, eq. 4. Backward, with u = s / rms and g = dnormed · gain:
ds = dstream + (g - u · mean(g · u)) / rms, dy = dropout's mask · ds, dgain = Σ_rows dnormed · u.
Kept for it: the stream, which the next layer keeps too, and 1 / rms.

Shapes: N rows, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.engines.kernels.masks import LANES, Drop, kept


def add_norm(x: Tensor, y: Tensor, gain_D: Tensor, eps: float, p: float) -> tuple[Tensor, Tensor]:
    """x + dropout(y) and its RMSNorm, both in the dtype of x; x and y (…, D)."""
    return _AddNorm.apply(x, y, gain_D, eps, p)


class _AddNorm(Function):
    @staticmethod
    def forward(ctx, x, y, gain_D, eps, p):
        x, y = x.contiguous(), y.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        groups = triton.cdiv(rows, LANES)
        drop = Drop(p, x.device)
        stream, normed = torch.empty_like(x), torch.empty_like(x)
        inverse_N = torch.empty(rows, dtype=torch.float32, device=x.device)
        _forward[(groups,)](
            x, y, gain_D, drop.key, stream, normed, inverse_N, rows, width, drop.level, drop.scale, eps,
            DROPS=drop.key is not None, BLOCK=triton.next_power_of_2(width),
        )  # fmt: skip
        ctx.drop, ctx.of_y = drop, y.dtype
        ctx.save_for_backward(stream, inverse_N, gain_D)
        return stream, normed

    @staticmethod
    @once_differentiable
    def backward(ctx, dstream, dnormed):
        stream, inverse_N, gain_D = ctx.saved_tensors
        rows, width, drop = len(inverse_N), stream.shape[-1], ctx.drop
        groups = triton.cdiv(rows, LANES)
        dx, dy = torch.empty_like(stream), torch.empty_like(stream, dtype=ctx.of_y)
        shares_GD = torch.empty(groups, width, dtype=torch.float32, device=stream.device)
        _backward[(groups,)](
            dstream.contiguous(), dnormed.contiguous(), stream, inverse_N, gain_D, drop.key,
            dx, dy, shares_GD, rows, width, drop.level, drop.scale,
            DROPS=drop.key is not None, BLOCK=triton.next_power_of_2(width),
        )  # fmt: skip
        return dx, dy, shares_GD.sum(0).to(gain_D.dtype), None, None


@triton.jit
def _forward(
    x_ptr, y_ptr, gain_ptr, key_ptr, stream_ptr, normed_ptr, inverse_ptr, rows, width, level, scale, eps,
    DROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    row = group * 8 + tl.arange(0, 8)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    at = row.to(tl.int64) * width + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(gain_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    if DROPS:
        y = tl.where(kept(key_ptr, group, column, width, level), y * scale, 0.0)
    stream = x + y
    inverse = 1.0 / tl.sqrt(tl.sum(stream * stream, 1, keep_dims=True) / width + eps)
    tl.store(stream_ptr + at, stream, mask=inside)
    tl.store(normed_ptr + at, stream * inverse * gain, mask=inside)
    tl.store(inverse_ptr + row, inverse, mask=row < rows)


@triton.jit
def _backward(
    dstream_ptr, dnormed_ptr, stream_ptr, inverse_ptr, gain_ptr, key_ptr, dx_ptr, dy_ptr, shares_ptr,
    rows, width, level, scale, DROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    row = group * 8 + tl.arange(0, 8)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    at = row.to(tl.int64) * width + column
    dstream = tl.load(dstream_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dnormed = tl.load(dnormed_ptr + at, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.load(inverse_ptr + row, mask=row < rows, other=0.0)
    unit = tl.load(stream_ptr + at, mask=inside, other=0.0).to(tl.float32) * inverse
    gain = tl.load(gain_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    dunit = dnormed * gain
    along = tl.sum(dunit * unit, 1, keep_dims=True) / width
    dx = dstream + (dunit - unit * along) * inverse
    dy = dx
    if DROPS:
        dy = tl.where(kept(key_ptr, group, column, width, level), dx * scale, 0.0)
    tl.store(dx_ptr + at, dx, mask=inside)
    tl.store(dy_ptr + at, dy, mask=inside)
    one = tl.arange(0, BLOCK)
    tl.store(shares_ptr + group * width + one, tl.sum(dnormed * unit, 0), mask=one < width)
