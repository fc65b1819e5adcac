"""The tied head and its cross-entropy, a few tokens at a time: the logits of all are never kept.

For every device. An autograd function whose gradient is made in the forward pass, while a chunk's logits are
at hand. Who offers it: model/engines/cpu.py, cuda.py and triton.py; the formula: model/engines/plain.py.

Shapes: N tokens, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.engines.gradients import add_product, compute_dtype

CHUNK = {"cpu": 256, "cuda": 4_096}
"""Tokens whose logits exist at one time: on a CPU they stay in its cache."""


def loss_and_gradient(logits_NV: Tensor, targets_N: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """losses_N in the dtype `wide`, and the gradient of their sum in that of the logits; may use them up."""
    probabilities = logits_NV.to(wide).softmax(1)
    losses_N = _cross_entropy(logits_NV, probabilities, targets_N)
    # ∂loss / ∂logit = probability - 1 at the target. Not scatter_add_, which CUDA does by atomics.
    target = targets_N.unsqueeze(1)
    probabilities.scatter_(1, target, probabilities.gather(1, target).sub_(1.0))
    return losses_N, probabilities.to(logits_NV.dtype)


def head_loss(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    of_chunk: Callable[[Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]] = loss_and_gradient,
) -> Tensor:
    """As in model/engines/plain.py; the logits' gradient is made in the same pass, by `of_chunk`."""
    x_ND = x_ND.to(compute_dtype(x_ND))
    with torch.autocast(x_ND.device.type, enabled=False):
        return _HeadLoss.apply(x_ND, weight_VD, targets_N, of_chunk)


class _HeadLoss(Function):
    @staticmethod
    def forward(ctx, x_ND, weight_VD, targets_N, of_chunk):
        dx_ND, dweight_VD = torch.empty_like(x_ND), torch.zeros_like(weight_VD)
        shadow_VD = weight_VD.to(x_ND.dtype)
        losses = []
        for x, dx, targets in zip(*_chunks(x_ND, dx_ND, targets_N), strict=True):
            chunk_losses, dlogits = of_chunk(x @ shadow_VD.mT, targets, weight_VD.dtype)
            losses.append(chunk_losses)
            torch.mm(dlogits, shadow_VD, out=dx)
            add_product(dweight_VD, dlogits.mT, x)
        ctx.save_for_backward(dx_ND, dweight_VD, weight_VD)
        return torch.cat(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        dx_ND, dweight_VD, weight_VD = ctx.saved_tensors
        share = dloss / len(dx_ND)
        if weight_VD.grad is None:
            return dx_ND * share, dweight_VD * share, None, None
        weight_VD.grad.addcmul_(dweight_VD, share)
        return dx_ND * share, None, None, None


def head_scores(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """As in model/engines/plain.py."""
    x_ND = x_ND.to(compute_dtype(x_ND))
    losses, hits = [], []
    with torch.autocast(x_ND.device.type, enabled=False):
        shadow_VD = weight_VD.to(x_ND.dtype)
        for x, targets in zip(*_chunks(x_ND, targets_N), strict=True):
            logits = x @ shadow_VD.mT
            losses.append(_cross_entropy(logits, logits.to(weight_VD.dtype).softmax(1), targets))
            hits.append(logits.argmax(1) == targets)
    return torch.cat(losses), torch.cat(hits)


def _cross_entropy(logits: Tensor, probabilities: Tensor, targets: Tensor) -> Tensor:
    """log Σ exp(logit) - target's logit, row by row.

    The largest probability is 1 / Σ exp(logit - largest logit): the sum needs no pass of its own, and no
    small probability, which may have come out as 0, enters a logarithm.
    """
    target = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    largest, target = (each.to(probabilities.dtype) for each in (logits.amax(1), target))
    return largest - target - probabilities.amax(1).log()


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each tensor in chunks of tokens."""
    return [tensor.split(CHUNK.get(tensor.device.type, CHUNK["cuda"])) for tensor in tensors]
