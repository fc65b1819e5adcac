"""The operations for CUDA by Triton kernels (model/engines/kernels): plain.py's mathematics in few passes.

Loaded only where it computes: triton comes with torch's CUDA builds, not with the others. Products of dense
matrices and attention stay torch's; the experts' are grouped_mm where that is one kernel, else our own.
Gradients of the experts and the head are added in place (model/engines/gradients.py).

Shapes: B batch, T time, N = B·T tokens, D d_model, H heads, C = D / H, F d_ff, E experts, K top-k, S = N·K
assignments sorted by expert, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.engines import head
from model.engines.cuda import has_grouped_kernel, pick
from model.engines.gradients import accumulator, compute_dtype, handed_up
from model.engines.head import head_scores
from model.engines.kernels import activation, cross_entropy, grouped, residual_norm, rotary, rows, sorting
from model.engines.kernels.masks import Drop
from model.engines.plain import dropout, embed, rms_norm

__all__ = [
    "add_norm", "attend", "dropout", "embed", "experts", "head_loss", "head_scores", "pick", "rms_norm",
]  # fmt: skip


def add_norm(x: Tensor, y: Tensor, p: float, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """As in model/engines/plain.py."""
    return residual_norm.add_norm(x, y, norm.weight, norm.eps, p)


def attend(qkv_BT3HC: Tensor, rotation: tuple[Tensor, Tensor], p: float) -> Tensor:
    """As in model/engines/plain.py; torch's attention between our packing and its way back."""
    q_BHTC, k_BHTC, v_BHTC = rotary.turned(qkv_BT3HC, *rotation)
    y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True, dropout_p=p)
    return y_BHTC.transpose(1, 2).flatten(2)


def head_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """As in model/engines/plain.py; a chunk's logits become their gradient in place."""
    return head.head_loss(x_ND, weight_VD, targets_N, _loss_and_gradient)


def _loss_and_gradient(logits_NV: Tensor, targets_N: Tensor, _: torch.dtype) -> tuple[Tensor, Tensor]:
    return cross_entropy.softmax_gradient(logits_NV, targets_N), logits_NV


def experts(
    x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, w1_EFD: Tensor, w2_EDF: Tensor, p: float
) -> tuple[Tensor, Tensor]:
    """As in model/engines/plain.py; all shapes are static, and nothing is read back from the device."""
    places = sorting.by_expert(experts_NK.flatten(), len(w1_EFD))
    dtype = compute_dtype(x_ND)
    with torch.autocast(x_ND.device.type, enabled=False):
        y_ND = _Experts.apply(x_ND, weights_NK, w1_EFD, w2_EDF, places.inverse_S, places.ends_E, p, dtype)
    return y_ND.to(weights_NK.dtype), places.counts_E


class _Experts(Function):
    """Σ_k weight · W2 · dropout(silu(W1 · x)); keeps the rows, h = W1 · x and the answers."""

    @staticmethod
    def forward(ctx, x_ND, weights_NK, w1_EFD, w2_EDF, inverse_S, ends_E, p, dtype):
        x_ND, weights_NK, drop = x_ND.contiguous(), weights_NK.contiguous(), Drop(p, x_ND.device)
        cast = w1_EFD.to(dtype), w2_EDF.to(dtype)
        x_SD = rows.spread(x_ND, inverse_S, dtype)
        h_SF = _products(x_SD, cast[0], ends_E)
        y_SD = _products(activation.silu_dropout(h_SF, drop), cast[1], ends_E)
        ctx.drop, ctx.of_x = drop, x_ND.dtype
        ctx.save_for_backward(x_SD, h_SF, y_SD, weights_NK, w1_EFD, w2_EDF, *cast, inverse_S, ends_E)
        return rows.combine(y_SD, inverse_S, weights_NK, len(x_ND))

    @staticmethod
    @once_differentiable
    def backward(ctx, dout_ND):
        x_SD, h_SF, y_SD, weights_NK, w1_EFD, w2_EDF, *cast, inverse_S, ends_E = ctx.saved_tensors
        dy_SD, dweights_NK = rows.combine_backward(dout_ND.contiguous(), y_SD, inverse_S, weights_NK)
        da_SF = _products(dy_SD, cast[1].mT, ends_E)
        a_SF, dh_SF = activation.silu_dropout_backward(h_SF, da_SF, ctx.drop)
        dw1_EFD, dw2_EDF = accumulator(w1_EFD), accumulator(w2_EDF)
        grouped.add_outer(dw2_EDF, dy_SD, a_SF, ends_E)
        grouped.add_outer(dw1_EFD, dh_SF, x_SD, ends_E)
        dx_SD = _products(dh_SF, cast[0].mT, ends_E)
        dx_ND = rows.combine(dx_SD, inverse_S, None, len(weights_NK)).to(ctx.of_x)
        handed = handed_up(dw1_EFD, w1_EFD), handed_up(dw2_EDF, w2_EDF)
        return dx_ND, dweights_NK, *handed, None, None, None, None


def _products(x_SI: Tensor, weights_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """x · Wᵀ by expert: torch's grouped kernel where there is one, else ours."""
    if has_grouped_kernel(x_SI, *weights_EOI.shape[1:]):
        return F.grouped_mm(x_SI, weights_EOI.mT, offs=ends_E)
    return grouped.products(x_SI, weights_EOI, ends_E)
