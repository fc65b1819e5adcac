"""The operations as torch.compile takes them best: plain formulas to fuse, the experts' products as they are.

One graph for model/network/transformer.py to compile, in training; evaluation goes operation by operation.
In the graph a product over all experts is one operation that the compiler does not look into:
model/engines/cuda.py's, which takes the device's own kernel where there is one.

Shapes: S assignments sorted by expert, I and O widths in and out, E experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.engines import cuda
from model.engines.cuda import pick
from model.engines.head import head_scores
from model.engines.plain import add_norm, attend, dropout, embed, head_loss, rms_norm

__all__ = [
    "add_norm", "attend", "dropout", "embed", "experts", "head_loss", "head_scores", "pick", "rms_norm",
]  # fmt: skip


def experts(
    x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, w1_EFD: Tensor, w2_EDF: Tensor, p: float
) -> tuple[Tensor, Tensor]:
    """As in model/engines/cuda.py."""
    return cuda.experts(x_ND, weights_NK, experts_NK, w1_EFD, w2_EDF, p, expert_matmul)


@torch.library.custom_op("nightshift::expert_matmul", mutates_args=())
def expert_matmul(x_SI: Tensor, weights_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """x · Wᵀ with each expert's weights on its own rows: (S, O)."""
    return cuda.expert_matmul(x_SI, weights_EOI, ends_E)


@torch.library.custom_op("nightshift::expert_outer", mutates_args=())
def expert_outer(a_SO: Tensor, b_SI: Tensor, ends_E: Tensor) -> Tensor:
    """aᵀ · b over each expert's rows, its weights' gradient: (E, O, I)."""
    if cuda.has_grouped_kernel(a_SO, a_SO.shape[1], b_SI.shape[1]):
        return F.grouped_mm(a_SO.mT, b_SI, offs=ends_E.int())
    counts = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
    return torch.stack([a.mT @ b for a, b in zip(a_SO.split(counts), b_SI.split(counts), strict=True)])


@expert_matmul.register_fake
def _(x_SI: Tensor, weights_EOI: Tensor, ends_E: Tensor) -> Tensor:
    return x_SI.new_empty(x_SI.shape[0], weights_EOI.shape[1])


@expert_outer.register_fake
def _(a_SO: Tensor, b_SI: Tensor, ends_E: Tensor) -> Tensor:
    return a_SO.new_empty(ends_E.shape[0], a_SO.shape[1], b_SI.shape[1])


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy_SO):  # type: ignore[no-untyped-def]
    x_SI, weights_EOI, ends_E = ctx.saved_tensors
    dy_SO = dy_SO.contiguous()
    return expert_matmul(dy_SO, weights_EOI.mT, ends_E), expert_outer(dy_SO, x_SI, ends_E), None


expert_matmul.register_autograd(_backward, setup_context=_keep)
