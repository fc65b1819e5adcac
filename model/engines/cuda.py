"""The operations for CUDA: engines/plain.py's, but for the head and the experts, which wait for no host.

Assignments are sorted by expert, so that each expert reads one contiguous slice, and one grouped kernel does
all of them where the device has one. Same names as model/engines/plain.py. Who calls: model/network/moe.py.

Shapes: N tokens, D d_model, F d_ff, E experts, K top-k, S = N·K assignments sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.engines.gradients import compute_dtype
from model.engines.head import head_loss, head_scores
from model.engines.plain import add_norm, attend, dropout, embed, rms_norm

__all__ = [
    "add_norm", "attend", "dropout", "embed", "experts", "head_loss", "head_scores", "pick", "rms_norm",
]  # fmt: skip


def expert_matmul(x_SI: Tensor, weights_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """x · Wᵀ with each expert's weights on its own slice of rows: (S, I), (E, O, I) → (S, O).

    Rows are sorted by expert; ends_E (int64) says where each expert's slice ends.
    """
    if has_grouped_kernel(x_SI, *weights_EOI.shape[1:]):
        return F.grouped_mm(x_SI, weights_EOI.mT, offs=ends_E.int())
    counts = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
    # `split` and `unbind` gather their gradients once; indexing would fill a whole stack for each expert.
    slices = zip(x_SI.split(counts), weights_EOI.unbind(), strict=True)
    return torch.cat([rows @ weights.mT for rows, weights in slices])


def experts(
    x_ND: Tensor,
    weights_NK: Tensor,
    experts_NK: Tensor,
    w1_EFD: Tensor,
    w2_EDF: Tensor,
    p: float,
    matmul: Callable[[Tensor, Tensor, Tensor], Tensor] = expert_matmul,
) -> tuple[Tensor, Tensor]:
    """As in model/engines/plain.py; all shapes are static, and nothing is read back from the device.

    The way back goes by the inverse permutation: a gather, never a scatter with atomics, so the bits do not
    depend on timing.
    """
    n, k = experts_NK.shape
    sorted_S, order_S = experts_NK.flatten().sort(stable=True)
    inverse_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(n * k, device=order_S.device))
    # The ends by binary search: `bincount` would make a GPU wait for the host.
    every_E = torch.arange(len(w1_EFD), device=sorted_S.device)
    ends_E = torch.searchsorted(sorted_S, every_E, right=True)

    dtype = compute_dtype(x_ND)  # rows and weights are cast once, not slice by slice
    x_SD = GatherRows.apply(x_ND.to(dtype), order_S // k, inverse_S, k)
    # One draw over all experts: as many numbers in every cell, however the tokens were sorted.
    h_SF = dropout(F.silu(matmul(x_SD, w1_EFD.to(dtype), ends_E)), p)
    y_SD = matmul(h_SF, w2_EDF.to(dtype), ends_E)
    y_NKD = GatherRows.apply(y_SD, inverse_S, order_S, 1).view(n, k, -1)
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    # The weights stay float32 under autocast: the product and the residual sum are float32 anyway.
    return (y_NKD * weights_NK.unsqueeze(-1)).sum(1), counts_E


class GatherRows(torch.autograd.Function):
    """x[rows], where each row of x is taken exactly k times; `back` lists where, row by row.

    Backward gathers and adds over k. Autograd's own way, an index_add, uses atomics on a GPU.
    """

    @staticmethod
    def forward(ctx, x, rows, back, k):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(back)
        ctx.k = k
        return x[rows]

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (back,) = ctx.saved_tensors
        taken = gradient[back]
        return (taken if ctx.k == 1 else taken.unflatten(0, (-1, ctx.k)).sum(1)), None, None, None


def pick(values_NE: Tensor, experts_NK: Tensor) -> Tensor:
    """As in model/engines/plain.py; backward compares, where gather's own would scatter, and so sort."""
    return _Pick.apply(values_NE, experts_NK)


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values_NE, experts_NK):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(experts_NK)
        ctx.n_experts = values_NE.shape[-1]
        return values_NE.gather(-1, experts_NK)

    @staticmethod
    def backward(ctx, gradient_NK):  # type: ignore[no-untyped-def]
        (experts_NK,) = ctx.saved_tensors
        every_E = torch.arange(ctx.n_experts, device=experts_NK.device)
        chosen_NKE = experts_NK.unsqueeze(-1) == every_E
        return (gradient_NK.unsqueeze(-1) * chosen_NKE).sum(1), None


def has_grouped_kernel(x: Tensor, *widths: int) -> bool:
    """Whether one kernel does all experts: bf16, rows of 16 bytes, on a CUDA device of major 9 or 10.

    Elsewhere torch's grouped_mm is a loop of its own, which waits for the host.
    """
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and hasattr(F, "grouped_mm")
        and torch.cuda.get_device_capability(x.device)[0] in (9, 10)
        and all(width % 8 == 0 for width in widths)
    )
