"""The experts for CPUs, and which library computes their products.

An autograd function with its backward pass written out; gradients go where model/engines/gradients.py says.
`choose` changes a setting of this process. The rest of the CPU engine: model/engines/cpu.py,
model/engines/head.py.

Shapes: N tokens, D d_model, F d_ff, E experts, K top-k, P rows of all experts, each expert's slice padded.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.engines.dropout import Keep
from model.engines.gradients import accumulator, add_product, compute_dtype, handed_up

PAD = 16
"""Kernels are built for each shape: ragged slices would build one for almost every slice of every step."""
CALL = 5_000_000
"""Overhead of launching one matmul, in multiply-adds: if padding wastes less, one batched product is used."""


def choose(fast: bool) -> str:
    """Set the library of float32 products in this process, and name it: oneDNN where that is exact, or BLAS.

    torch hands float32 products to oneDNN only where less than float32 is allowed. On processors without
    bf16 matrix units (AMX) oneDNN does not make use of the permission, and is twice as fast as the BLAS on
    some of them; where it does, `_stays_exact` finds out, and nothing is allowed.
    """
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None or not hasattr(settings, "fp32_precision"):  # before torch 2.9
        return "BLAS"
    settings.fp32_precision = "ieee"
    if not fast or not torch.backends.mkldnn.is_available() or not _stays_exact():
        return "BLAS"
    settings.fp32_precision = "bf16"
    return "oneDNN"


@cache
def _stays_exact() -> bool:
    """Whether products are float32's, bit for bit, although bf16 is allowed.

    Odd whole numbers below 2^11 times -1, 0 and 1: bf16 could not hold the factors, float32 holds every
    partial sum, so that any order of summation gives the same bits.
    """
    settings = torch.backends.mkldnn.matmul
    generator = torch.Generator().manual_seed(0)
    try:
        for n, i, o in ((16, 128, 256), (1024, 384, 1152), (272, 1536, 384), (256, 128, 4096)):
            wide = torch.randint(-1024, 1024, (n, i), generator=generator).mul_(2).add_(1).float()
            signs = torch.randint(-1, 2, (o, i), generator=generator).float()
            settings.fp32_precision = "ieee"
            due = wide @ signs.mT
            settings.fp32_precision = "bf16"
            stacked = torch.bmm(wide.expand(3, n, i), signs.expand(3, o, i).mT)[2]
            into = torch.zeros(o, n).addmm_(signs, wide.mT)
            found = (wide @ signs.mT, (signs @ wide.mT).mT, stacked, into.mT, wide @ signs.mT.contiguous())
            if not all(torch.equal(due, each) for each in found):
                return False
    finally:
        settings.fp32_precision = "ieee"
    return True


def experts(
    x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, w1_EFD: Tensor, w2_EDF: Tensor, p: float
) -> tuple[Tensor, Tensor]:
    """As in engines/plain.py: Σ_k weight · W2 · dropout(silu(W1 · x)), and the assignments, counts_E."""
    counts_E = torch.bincount(experts_NK.flatten(), minlength=len(w1_EFD))
    padded_E = _padded(counts_E, w1_EFD[0].numel())
    x_ND = x_ND.to(compute_dtype(x_ND))
    with torch.autocast("cpu", enabled=False):
        slots_NK = _slots(experts_NK, counts_E, padded_E)
        y_ND = _Experts.apply(x_ND, weights_NK, w1_EFD, w2_EDF, slots_NK, padded_E.tolist(), p)
    return y_ND, counts_E


def _padded(counts_E: Tensor, weights: int) -> Tensor:
    """Rows kept for each expert: its count, up to a multiple of PAD; or all the same, where that is cheaper.

    Slices of one size are one product of stacks; of several, a product each, whose start costs as much as
    CALL multiplications. `weights` is how many each row meets.
    """
    padded_E = (counts_E + (PAD - 1)) // PAD * PAD
    even_E = padded_E.max().expand_as(padded_E)
    idle = (even_E.sum() - padded_E.sum()) * weights
    return even_E if idle < CALL * len(counts_E) else padded_E


def _slots(experts_NK: Tensor, counts_E: Tensor, padded_E: Tensor) -> Tensor:
    """The row of each assignment, (N, K): experts one after the other, tokens in their order."""
    order_S = experts_NK.flatten().sort(stable=True).indices
    shift_E = (padded_E.cumsum(0) - padded_E) - (counts_E.cumsum(0) - counts_E)
    slot_S = torch.arange(len(order_S)).add_(shift_E.repeat_interleave(counts_E))
    return torch.empty_like(order_S).scatter_(0, order_S, slot_S).view_as(experts_NK)


class _Experts(Function):
    """Rows beside the assignments, up to the padding, hold token 0 and get the weight 0 on the way back."""

    @staticmethod
    def forward(ctx, x_ND, weights_NK, w1_EFD, w2_EDF, slots_NK, padded, p):
        rows, (k, dtype) = sum(padded), (slots_NK.shape[1], x_ND.dtype)
        flat_S = slots_NK.flatten()
        token_P = flat_S.new_zeros(rows).scatter_(0, flat_S, torch.arange(len(flat_S)) // k)
        x_PD = x_ND.index_select(0, token_P)
        hidden_PF = _products(x_PD, w1_EFD.to(dtype).mT, padded)
        active_PF = F.silu(hidden_PF)
        keep = Keep(hidden_PF.shape, p) if p else None
        if keep:
            active_PF.mul_(keep.mask(dtype))
            # What dropout divides by is one factor of everything that follows: it goes into the weights.
            weights_NK = weights_NK * keep.scale
        # Summed in float32, the residual stream's type.
        y_PD = _products(active_PF, w2_EDF.to(dtype).mT, padded).to(weights_NK.dtype)
        ctx.keep, ctx.padded = keep, padded
        ctx.save_for_backward(x_PD, hidden_PF, y_PD, weights_NK, w1_EFD, w2_EDF, slots_NK, token_P)
        return F.embedding_bag(slots_NK, y_PD, per_sample_weights=weights_NK, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, dout_ND):
        x_PD, hidden_PF, y_PD, weights_NK, w1_EFD, w2_EDF, slots_NK, token_P = ctx.saved_tensors
        dtype, padded = x_PD.dtype, ctx.padded
        dout_PD = dout_ND.index_select(0, token_P)
        dweight_P = torch.linalg.vecdot(dout_PD, y_PD)
        weight_P = weights_NK.new_zeros(len(token_P)).scatter_(0, slots_NK.flatten(), weights_NK.flatten())
        dy_PD = dout_PD.mul_(weight_P.unsqueeze(1)).to(dtype)

        dw1_EFD, dw2_EDF = accumulator(w1_EFD), accumulator(w2_EDF)
        active_PF = F.silu(hidden_PF)  # made again: cheaper than kept
        dactive_PF = _products(dy_PD, w2_EDF.to(dtype), padded)
        if ctx.keep:
            mask_PF = ctx.keep.mask(dtype)
            active_PF.mul_(mask_PF)
            dactive_PF.mul_(mask_PF)
        _add_products(dw2_EDF, dy_PD, active_PF, padded)
        dhidden_PF = torch.ops.aten.silu_backward(dactive_PF, hidden_PF)
        _add_products(dw1_EFD, dhidden_PF, x_PD, padded)
        dx_ND = F.embedding_bag(slots_NK, _products(dhidden_PF, w1_EFD.to(dtype), padded), mode="sum")
        dweights_NK = dweight_P[slots_NK].mul_(ctx.keep.scale if ctx.keep else 1.0)
        return dx_ND, dweights_NK, handed_up(dw1_EFD, w1_EFD), handed_up(dw2_EDF, w2_EDF), None, None, None


def _products(rows_PI: Tensor, weights_EIO: Tensor, padded: list[int]) -> Tensor:
    """Each expert's rows times its matrix, (P, O)."""
    if len(set(padded)) == 1:
        return torch.bmm(rows_PI.unflatten(0, (-1, padded[0])), weights_EIO).flatten(0, 1)
    out_PO = rows_PI.new_empty(len(rows_PI), weights_EIO.shape[2])
    slices = rows_PI.split(padded), weights_EIO.unbind(), out_PO.split(padded)
    for rows, weights, out in zip(*slices, strict=True):
        if len(rows):
            torch.mm(rows, weights, out=out)
    return out_PO


def _add_products(into_EOI: Tensor, a_PO: Tensor, b_PI: Tensor, padded: list[int]) -> None:
    """Add aᵀ · b over each expert's rows to its matrix; the sum over steps stays float32 under bf16."""
    if len(set(padded)) == 1:
        a_EOC, b_ECI = a_PO.unflatten(0, (-1, padded[0])).mT, b_PI.unflatten(0, (-1, padded[0]))
        add_product(into_EOI, a_EOC, b_ECI)
        return
    for into, a, b in zip(into_EOI.unbind(), a_PO.split(padded), b_PI.split(padded), strict=True):
        if len(a):
            add_product(into, a.mT, b)
