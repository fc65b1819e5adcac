"""Rows to the experts and back by the inverse permutation: sums in a fixed order, never a scatter-add.

spread: x_S[inverse(n, k)] = x_n. combine: y_n = Σ_k weight_nk · y_S[inverse(n, k)]; without weights it is
spread's backward. Its own: dy_S[inverse(n, k)] = weight_nk · dout_n, dweight_nk = dout_n · y_S[…].

Shapes: N tokens, K top-k, S = N · K, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def spread(x_ND: Tensor, inverse_S: Tensor, dtype: torch.dtype) -> Tensor:
    """Each token's row at its K places, in a dtype: (S, D)."""
    tokens, width = x_ND.shape
    x_SD = torch.empty(len(inverse_S), width, dtype=dtype, device=x_ND.device)
    _spread[(tokens,)](x_ND, inverse_S, x_SD, width, K=len(inverse_S) // tokens, **_shape(width))
    return x_SD


def combine(y_SD: Tensor, inverse_S: Tensor, weights_NK: Tensor | None, tokens: int) -> Tensor:
    """The sum of each token's rows, weighted or not, in float32: (N, D)."""
    width = y_SD.shape[1]
    y_ND = torch.empty(tokens, width, dtype=torch.float32, device=y_SD.device)
    _combine[(tokens,)](
        y_SD, inverse_S, weights_NK, y_ND, width,
        K=len(inverse_S) // tokens, WEIGHTED=weights_NK is not None, **_shape(width),
    )  # fmt: skip
    return y_ND


def combine_backward(
    dout_ND: Tensor, y_SD: Tensor, inverse_S: Tensor, weights_NK: Tensor
) -> tuple[Tensor, Tensor]:
    """dy_SD in the dtype of y, and dweights_NK."""
    dy_SD, dweights_NK = torch.empty_like(y_SD), torch.empty_like(weights_NK)
    tokens, width = dout_ND.shape
    _combine_backward[(tokens,)](
        dout_ND, y_SD, inverse_S, weights_NK, dy_SD, dweights_NK, width,
        K=weights_NK.shape[1], **_shape(width),
    )  # fmt: skip
    return dy_SD, dweights_NK


def _shape(width: int) -> dict[str, int]:
    """A row is a program's; a narrow one keeps two warps busy."""
    return {"BLOCK": triton.next_power_of_2(width), "num_warps": 2 if width <= 1_024 else 4}


@triton.jit
def _spread(x_ptr, inverse_ptr, out_ptr, width, K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * width + column, mask=column < width, other=0.0).to(tl.float32)
    for k in range(K):
        place = tl.load(inverse_ptr + token * K + k).to(tl.int64)
        tl.store(out_ptr + place * width + column, x, mask=column < width)


@triton.jit
def _combine(
    y_ptr, inverse_ptr, weights_ptr, out_ptr, width,
    K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(K):
        place = tl.load(inverse_ptr + token * K + k).to(tl.int64)
        y = tl.load(y_ptr + place * width + column, mask=column < width, other=0.0).to(tl.float32)
        if WEIGHTED:
            y = y * tl.load(weights_ptr + token * K + k).to(tl.float32)
        total += y
    tl.store(out_ptr + token * width + column, total, mask=column < width)


@triton.jit
def _combine_backward(
    dout_ptr, y_ptr, inverse_ptr, weights_ptr, dy_ptr, dweights_ptr, width,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    dout = tl.load(dout_ptr + token * width + column, mask=column < width, other=0.0).to(tl.float32)
    for k in range(K):
        place = tl.load(inverse_ptr + token * K + k).to(tl.int64)
        y = tl.load(y_ptr + place * width + column, mask=column < width, other=0.0).to(tl.float32)
        weight = tl.load(weights_ptr + token * K + k).to(tl.float32)
        tl.store(dweights_ptr + token * K + k, tl.sum(dout * y, 0))
        tl.store(dy_ptr + place * width + column, dout * weight, mask=column < width)
