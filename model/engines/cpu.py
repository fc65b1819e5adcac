"""The operations for CPUs: the mathematics of model/engines/plain.py in fewer passes over memory.

Same names, each an autograd function with its backward pass written out; what they gain is measured in
docs/performance.md, and tests hold each to model/engines/plain.py. Here: what surrounds the large products;
the experts are in model/engines/cpu_experts.py, the head in model/engines/head.py.

Shapes: B batch, T time, D d_model, H heads, C = D / H, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from model.engines.cpu_experts import experts
from model.engines.dropout import Keep
from model.engines.gradients import accumulator, handed_up
from model.engines.head import head_loss, head_scores
from model.engines.plain import pick

__all__ = [
    "add_norm", "attend", "dropout", "embed", "experts", "head_loss", "head_scores", "pick", "rms_norm",
]  # fmt: skip

QUERY_ROWS = 128
"""Queries at a time; the keys after them are never computed."""


def embed(tokens_BT: Tensor, weight_VD: Tensor) -> Tensor:
    return _Embed.apply(tokens_BT, weight_VD)


class _Embed(Function):
    """Backward adds the rows where they belong, instead of filling a table as large as the vocabulary."""

    @staticmethod
    def forward(ctx, tokens_BT, weight_VD):
        ctx.save_for_backward(tokens_BT, weight_VD)
        return F.embedding(tokens_BT, weight_VD).mul_(math.sqrt(weight_VD.shape[1]))

    @staticmethod
    @once_differentiable
    def backward(ctx, dx_BTD):
        tokens_BT, weight_VD = ctx.saved_tensors
        into = accumulator(weight_VD)
        into.index_add_(0, tokens_BT.flatten(), dx_BTD.flatten(0, -2), alpha=math.sqrt(weight_VD.shape[1]))
        return None, handed_up(into, weight_VD)


def dropout(x: Tensor, p: float) -> Tensor:
    return _Dropout.apply(None, x, p) if p else x


def add_dropout(x: Tensor, y: Tensor, p: float) -> Tensor:
    return _Dropout.apply(x, y.to(x.dtype), p) if p else x + y


class _Dropout(Function):
    @staticmethod
    def forward(ctx, x, y, p):
        ctx.keep = keep = Keep(y.shape, p)
        mask = keep.mask(y.dtype)
        ctx.residual = x is not None
        return torch.addcmul(x, y, mask, value=keep.scale) if ctx.residual else mask.mul_(y).mul_(keep.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        dy = ctx.keep.mask(dout.dtype).mul_(dout).mul_(ctx.keep.scale)
        return dout if ctx.residual else None, dy, None


def rms_norm(x_BTD: Tensor, norm: nn.RMSNorm) -> Tensor:
    return _RmsNorm.apply(x_BTD, norm.weight, norm.eps)


def add_norm(x: Tensor, y: Tensor, p: float, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    x = add_dropout(x, y, p)
    return x, rms_norm(x, norm)


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx, x_BTD, gain_D, eps):
        mean_square = torch.linalg.vector_norm(x_BTD, dim=-1, keepdim=True).square_().div_(x_BTD.shape[-1])
        inverse_BT1 = mean_square.add_(eps).rsqrt_()
        unit_BTD = x_BTD * inverse_BT1
        ctx.save_for_backward(unit_BTD, inverse_BT1, gain_D)
        return unit_BTD * gain_D

    @staticmethod
    @once_differentiable
    def backward(ctx, dout_BTD):
        unit_BTD, inverse_BT1, gain_D = ctx.saved_tensors
        dgain_D = (dout_BTD * unit_BTD).flatten(0, -2).sum(0)
        dunit_BTD = dout_BTD * gain_D
        # unit has length sqrt(D): what points along it does not change it.
        along_BT1 = torch.linalg.vecdot(dunit_BTD, unit_BTD).unsqueeze(-1).div_(-unit_BTD.shape[-1])
        return torch.addcmul(dunit_BTD, unit_BTD, along_BT1).mul_(inverse_BT1), dgain_D, None


def attend(qkv_BT3HC: Tensor, rotation: tuple[Tensor, Tensor], p: float) -> Tensor:
    """float32 also in bf16 runs: the products are 2 % of the work, and casting the scores costs more."""
    with torch.autocast("cpu", enabled=False):
        y_BTHC = _Attend.apply(qkv_BT3HC.to(rotation[0].dtype), *rotation, p)
        return y_BTHC.flatten(2).to(qkv_BT3HC.dtype)


class _Attend(Function):
    """Rotation is a product of complex numbers; queries go in chunks, so that half the scores never exist."""

    @staticmethod
    def forward(ctx, qkv_BT3HC, cos_TC, sin_TC, p):
        b, t, _, h, c = qkv_BT3HC.shape
        turn_T1C = torch.complex(cos_TC, sin_TC).unsqueeze(1)
        q, k, v, y = qkv_BT3HC.new_empty(4, b, h, t, c)
        torch.mul(_pairs(qkv_BT3HC[:, :, 0]), turn_T1C / math.sqrt(c), out=_pairs(q.transpose(1, 2)))
        torch.mul(_pairs(qkv_BT3HC[:, :, 1]), turn_T1C, out=_pairs(k.transpose(1, 2)))
        v.copy_(qkv_BT3HC[:, :, 2].transpose(1, 2))
        q, k, v, y = (part.flatten(0, 1) for part in (q, k, v, y))
        later = torch.full((QUERY_ROWS, QUERY_ROWS), -math.inf, dtype=q.dtype).triu_(1)
        chunks, keeps = [], []
        for start in range(0, t, QUERY_ROWS):
            end = min(start + QUERY_ROWS, t)
            scores = torch.bmm(q[:, start:end], k[:, :end].mT)
            scores[:, :, start:].add_(later[: end - start, : end - start])
            weights = torch.softmax(scores, -1)
            chunks.append(weights)
            if p:
                keeps.append(Keep(weights.shape, p))
                weights = torch.mul(weights, keeps[-1].mask(weights.dtype), out=scores)
            y[:, start:end] = torch.bmm(weights, v[:, :end])
        ctx.scale = keeps[0].scale if p else 1.0
        y.mul_(ctx.scale)
        ctx.keeps = keeps
        ctx.save_for_backward(q, k, v, y, turn_T1C, *chunks)
        return y.view(b, h, t, c).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BTHC):
        q, k, v, y, turn_T1C, *chunks = ctx.saved_tensors
        b, t, h, c = dy_BTHC.shape
        dy = dy_BTHC.transpose(1, 2).flatten(0, 1)
        # Σ_s weight · dweight, which softmax's gradient subtracts, is also dy · y (Dao et al. 2022, eq. 4).
        along = torch.linalg.vecdot(dy, y).unsqueeze(-1)
        dy = dy * ctx.scale
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for number, weights in enumerate(chunks):
            start = number * QUERY_ROWS
            end = start + weights.shape[1]
            rows = slice(start, end)
            dscores, kept = torch.bmm(dy[:, rows], v[:, :end].mT), weights
            if ctx.keeps:
                mask = ctx.keeps[number].mask(weights.dtype)
                dscores.mul_(mask)
                kept = mask.mul_(weights)
            dv[:, :end].baddbmm_(kept.mT, dy[:, rows])
            dscores.sub_(along[:, rows]).mul_(weights)
            dq[:, rows] = torch.bmm(dscores, k[:, :end])
            dk[:, :end].baddbmm_(dscores.mT, q[:, rows])
        dqkv = dy.new_empty(b, t, 3, h, c)
        dq, dk, dv = (part.view(b, h, t, c).transpose(1, 2) for part in (dq, dk, dv))
        torch.mul(_pairs(dq), turn_T1C.conj_physical() / math.sqrt(c), out=_pairs(dqkv[:, :, 0]))
        torch.mul(_pairs(dk), turn_T1C.conj_physical(), out=_pairs(dqkv[:, :, 1]))
        dqkv[:, :, 2] = dv
        return dqkv, None, None, None


def _pairs(x: Tensor) -> Tensor:
    """(…, C) as (…, C / 2) complex numbers, the same memory."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))
