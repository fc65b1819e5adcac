"""The operations of the model as their formulas read: the reference that every faster engine is held to.

Each function is plain PyTorch on one autograd graph, with torch's own dropout. model/engines/cpu.py (CPU) and
model/engines/cuda.py (CUDA) offer the same names; `train.engine=plain` selects this file on any device.
Who calls: model/network/moe.py and model/network/transformer.py.

Shapes: B batch, T time, N = B·T tokens, D d_model, H heads, C = D / H, F d_ff, E experts, K top-k,
V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embed(tokens_BT: Tensor, weight_VD: Tensor) -> Tensor:
    """Rows of the embedding times sqrt(D): (B, T, D)."""
    return F.embedding(tokens_BT, weight_VD) * math.sqrt(weight_VD.shape[1])


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each entry with probability p and scale the others by 1 / (1 - p)."""
    return F.dropout(x, p)


def add_dropout(x: Tensor, y: Tensor, p: float) -> Tensor:
    """The residual sum x + dropout(y)."""
    return x + dropout(y, p)


def rms_norm(x_BTD: Tensor, norm: nn.RMSNorm) -> Tensor:
    """x / sqrt(mean(x²) + eps) · gain."""
    return norm(x_BTD)


def add_norm(x: Tensor, y: Tensor, p: float, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """The residual sum x + dropout(y), and its RMSNorm: what the next sublayer reads."""
    x = add_dropout(x, y, p)
    return x, rms_norm(x, norm)


def pick(values_NE: Tensor, experts_NK: Tensor) -> Tensor:
    """Each token's values at its chosen experts, (N, K)."""
    return values_NE.gather(-1, experts_NK)


def attend(qkv_BT3HC: Tensor, rotation: tuple[Tensor, Tensor], p: float) -> Tensor:
    """Causal attention over rotated queries and keys, with dropout on its weights: (B, T, H · C)."""
    qk_BT2HC = rotate(qkv_BT3HC[:, :, :2], *rotation)
    q_BHTC, k_BHTC = (part.transpose(1, 2) for part in qk_BT2HC.unbind(2))
    v_BHTC = qkv_BT3HC[:, :, 2].transpose(1, 2)
    y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True, dropout_p=p)
    return y_BHTC.transpose(1, 2).flatten(2)


def rotate(x: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Turn the interleaved pairs (x0, x1), (x2, x3) … of (B, T, …, C) by their position's angles."""
    shape = (x.shape[1], *[1] * (x.ndim - 3), x.shape[-1] // 2)
    cos, sin = cos_TC.view(shape), sin_TC.view(shape)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
    # Under autocast x is bf16 and the tables are float32: turned in float32, handed on as it came.
    return turned.to(x.dtype)


def experts(
    x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, w1_EFD: Tensor, w2_EDF: Tensor, p: float
) -> tuple[Tensor, Tensor]:
    """Σ_k weight · W2 · dropout(silu(W1 · x)) over each token's experts, and the assignments, counts_E.

    One expert after the other, each on the rows that a boolean mask picks: every mask makes a GPU wait.
    """
    y_ND = torch.zeros_like(x_ND, dtype=weights_NK.dtype)
    counts = []
    for e, (w1_FD, w2_DF) in enumerate(zip(w1_EFD, w2_EDF, strict=True)):
        chosen_NK = experts_NK == e
        chosen_N = chosen_NK.any(-1)
        hidden = dropout(F.silu(F.linear(x_ND[chosen_N], w1_FD)), p)
        # float32 weights, also under autocast: the product and the residual sum are float32 anyway.
        answer = F.linear(hidden, w2_DF) * weights_NK[chosen_NK].unsqueeze(-1)
        y_ND[chosen_N] = y_ND[chosen_N] + answer
        counts.append(chosen_NK.sum())
    return y_ND, torch.stack(counts)


def head_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy of the tied head's logits, in nats."""
    return F.cross_entropy(F.linear(x_ND, weight_VD), targets_N)


def head_scores(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Each target's cross-entropy in nats, and whether it is the likeliest token; without gradients."""
    logits_NV = F.linear(x_ND, weight_VD)
    losses_N = F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
    return losses_N, logits_NV.argmax(-1) == targets_N
