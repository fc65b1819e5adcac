"""SiLU and dropout in one pass: a = mask · h · sigmoid(h) / (1 - p) (Elfwing et al. 2018, eq. 3).

Backward makes `a` again, which the second product's gradient needs, beside dh = mask · da / (1 - p) ·
sigmoid(h) · (1 + h · (1 - sigmoid(h))): only h is kept.

Shapes: S rows, F width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engines.kernels.masks import LANES, Drop, kept

BLOCK = 512
"""Columns at a time."""


def silu_dropout(h_SF: Tensor, drop: Drop) -> Tensor:
    """dropout(silu(h)) in the dtype of h."""
    a_SF = torch.empty_like(h_SF)
    _forward[_grid(h_SF)](
        h_SF, drop.key, a_SF, *h_SF.shape, drop.level, drop.scale, DROPS=drop.key is not None, BLOCK=BLOCK
    )
    return a_SF


def silu_dropout_backward(h_SF: Tensor, da_SF: Tensor, drop: Drop) -> tuple[Tensor, Tensor]:
    """a once more, and dh."""
    a_SF, dh_SF = torch.empty_like(h_SF), torch.empty_like(h_SF)
    _backward[_grid(h_SF)](
        h_SF, da_SF, drop.key, a_SF, dh_SF, *h_SF.shape, drop.level, drop.scale,
        DROPS=drop.key is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return a_SF, dh_SF


def _grid(h_SF: Tensor) -> tuple[int, int]:
    return triton.cdiv(h_SF.shape[0], LANES), triton.cdiv(h_SF.shape[1], BLOCK)


@triton.jit
def _forward(
    h_ptr, key_ptr, a_ptr, rows, width, level, scale, DROPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    group = tl.program_id(0)
    row = group * 8 + tl.arange(0, 8)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    at = row.to(tl.int64) * width + column
    h = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
    a = h / (1.0 + tl.exp(-h))
    if DROPS:
        a = tl.where(kept(key_ptr, group, column, width, level), a * scale, 0.0)
    tl.store(a_ptr + at, a, mask=inside)


@triton.jit
def _backward(
    h_ptr, da_ptr, key_ptr, a_ptr, dh_ptr, rows, width, level, scale, DROPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    group = tl.program_id(0)
    row = group * 8 + tl.arange(0, 8)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    at = row.to(tl.int64) * width + column
    h = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
    da = tl.load(da_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = 1.0 / (1.0 + tl.exp(-h))
    a = h * gate
    if DROPS:
        keep = kept(key_ptr, group, column, width, level)
        a = tl.where(keep, a * scale, 0.0)
        da = tl.where(keep, da * scale, 0.0)
    tl.store(a_ptr + at, a, mask=inside)
    tl.store(dh_ptr + at, da * gate * (1.0 + h * (1.0 - gate)), mask=inside)
