"""Products of sorted rows with their experts' matrices, whose bounds lie on the device: no host waits.

products: y_s = W_e(s) · x_s, a program a tile of one expert's rows; which tile it is, it finds out by adding
up the experts' tiles, and programs beyond the last do nothing. outer: dW_e += Σ_s a_s · b_sᵀ over an
expert's rows, a program a tile of the matrix, summed in float32 in the order of the rows. Tiles are fixed,
not tuned: another tile would sum in another order. The products of float32 are float32's, not TF32's.

Shapes: S rows sorted by expert, E experts, O and I widths out and in.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engines.kernels.masks import INTERPRETED

TILES = {
    torch.bfloat16: {"ROWS": 128, "OUT": 128, "IN": 32, "num_warps": 4, "num_stages": 4},
    torch.float32: {"ROWS": 64, "OUT": 64, "IN": 32, "num_warps": 4, "num_stages": 2},
}
"""64 kB of shared memory, which every card from capability 8.0 has."""


def products(x_SI: Tensor, weights_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """x · Wᵀ with each expert's matrix on its own rows, in the dtype of x: (S, O). W may have any strides."""
    size, (n_experts, width, depth) = len(x_SI), weights_EOI.shape
    shape = TILES[x_SI.dtype]
    y_SO = torch.empty(size, width, dtype=x_SI.dtype, device=x_SI.device)
    across = triton.cdiv(width, shape["OUT"])
    most = size // shape["ROWS"] + min(n_experts, size)  # each expert's last tile may be begun
    _products[(most * across,)](
        x_SI, weights_EOI, y_SO, ends_E, n_experts, width, depth, *weights_EOI.stride(), across,
        MULTIPLY=_multiplied(x_SI.dtype), **shape,
    )  # fmt: skip
    return y_SO


def add_outer(into_EOI: Tensor, a_SO: Tensor, b_SI: Tensor, ends_E: Tensor) -> None:
    """into += aᵀ · b over each expert's rows; `into` is float32 and contiguous."""
    n_experts, width, depth = into_EOI.shape
    shape = TILES[a_SO.dtype]
    grid = (triton.cdiv(width, shape["ROWS"]), triton.cdiv(depth, shape["OUT"]), n_experts)
    _add_outer[grid](into_EOI, a_SO, b_SI, ends_E, width, depth, MULTIPLY=_multiplied(a_SO.dtype), **shape)


def _multiplied(dtype: torch.dtype) -> tl.dtype:
    """What tiles are multiplied as: the interpreter has no products of bf16."""
    return tl.float32 if INTERPRETED or dtype == torch.float32 else tl.bfloat16


@triton.jit
def _products(
    x_ptr, w_ptr, y_ptr, ends_ptr, n_experts, width, depth, of_expert, of_row, of_column, across,
    MULTIPLY: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) // across
    expert = -1
    begin = 0
    end = 0
    passed = 0
    start = 0
    for e in range(n_experts):
        stop = tl.load(ends_ptr + e)
        tiles = tl.cdiv(stop - start, ROWS)
        here = (tile >= passed) & (tile < passed + tiles)
        expert = tl.where(here, e, expert)
        begin = tl.where(here, start + (tile - passed) * ROWS, begin)
        end = tl.where(here, stop, end)
        passed += tiles
        start = stop
    if expert >= 0:
        row = begin + tl.arange(0, ROWS)
        out = (tl.program_id(0) % across) * OUT + tl.arange(0, OUT)
        w_ptr += expert.to(tl.int64) * of_expert
        x_at = row.to(tl.int64)[:, None] * depth
        total = tl.zeros((ROWS, OUT), tl.float32)
        for at in range(0, depth, IN):
            inner = at + tl.arange(0, IN)
            x = tl.load(
                x_ptr + x_at + inner[None, :], mask=(row < end)[:, None] & (inner < depth)[None, :], other=0.0
            )
            w = tl.load(
                w_ptr + out[None, :] * of_row + inner[:, None] * of_column,
                mask=(out < width)[None, :] & (inner < depth)[:, None],
                other=0.0,
            )
            total = tl.dot(x.to(MULTIPLY), w.to(MULTIPLY), total, input_precision="ieee")
        inside = (row < end)[:, None] & (out < width)[None, :]
        tl.store(y_ptr + row.to(tl.int64)[:, None] * width + out[None, :], total, mask=inside)


@triton.jit
def _add_outer(
    into_ptr, a_ptr, b_ptr, ends_ptr, width, depth,
    MULTIPLY: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(2)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends_ptr + expert)
    o = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * OUT + tl.arange(0, OUT)
    total = tl.zeros((ROWS, OUT), tl.float32)
    for at in range(start, end, IN):
        row = at + tl.arange(0, IN)
        beyond = row.to(tl.int64)[:, None]
        a = tl.load(
            a_ptr + beyond * width + o[None, :], mask=(row < end)[:, None] & (o < width)[None, :], other=0.0
        )
        b = tl.load(
            b_ptr + beyond * depth + i[None, :], mask=(row < end)[:, None] & (i < depth)[None, :], other=0.0
        )
        total = tl.dot(tl.trans(a.to(MULTIPLY)), b.to(MULTIPLY), total, input_precision="ieee")
    place = into_ptr + expert.to(tl.int64) * width * depth + o[:, None] * depth + i[None, :]
    inside = (o < width)[:, None] & (i < depth)[None, :]
    tl.store(place, tl.load(place, mask=inside, other=0.0) + total, mask=inside)
