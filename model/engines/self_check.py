"""Are the Triton kernels right on this device? Each against the plain formulas, forward and backward.

A few rows in a model's own widths, in float32 and bf16; tests run the same comparisons over other shapes.
Seeds torch's default generators: called before a run seeds its streams. Who asks: model/engines/choice.py. A
comparison yields pairs (found, due): float32 within 1e-5 of the largest due value, bf16 within its rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.engines import plain
from model.engines.gradients import add_product
from model.engines.kernels import activation, cross_entropy, grouped, residual_norm, rotary, rows, sorting
from model.engines.kernels.masks import INTERPRETED, Drop

PRECISIONS = (torch.float32, torch.bfloat16)
ROUNDING = 2.0 ** (-7 if INTERPRETED else -8)
"""Of one result in bf16, relative to it: half of its last bit; Triton's interpreter cuts off instead."""
Pairs = Iterator[tuple[Tensor, Tensor]]


class Sizes(NamedTuple):
    """Of one comparison."""

    tokens: int = 37
    width: int = 48
    hidden: int = 80
    heads: int = 2
    experts: int = 5
    top_k: int = 2
    vocabulary: int = 61
    dropout: float = 0.1


def wrong(device: torch.device, model: ModelConfig, only: str = "") -> str:
    """The first comparison that fails, or that one alone, in a line; empty where none does.

    Raises:
        Exception: whatever Triton or the driver say of a kernel that they cannot build or start.
    """
    if device.type != "cuda" and not INTERPRETED:
        return "its kernels compute on CUDA devices"
    sizes = Sizes(
        width=model.d_model,
        hidden=model.d_ff,
        heads=model.n_heads,
        experts=model.n_experts,
        top_k=model.top_k,
        vocabulary=model.vocab_size,
        dropout=model.dropout,
    )
    chosen = {only: COMPARISONS[only]} if only else COMPARISONS
    for name, compare in chosen.items():
        for dtype in PRECISIONS:
            if found := furthest(compare(sizes, dtype, device), dtype):
                return f"{name} in {str(dtype).removeprefix('torch.')} is off by {found}"
    return ""


def furthest(pairs: Pairs, dtype: torch.dtype) -> str:
    """By how much the first of these that is too far from what is due is that; empty where all are near."""
    for number, (found, due) in enumerate(pairs):
        if found.shape != due.shape:
            return f"its shape, {tuple(found.shape)}"
        if not due.is_floating_point():
            if not torch.equal(found.to(due.dtype), due):
                return f"a whole number in result {number}"
            continue
        if not due.numel():
            continue
        due, scale = due.float(), due.float().abs().max()
        allowed = 1e-5 * scale + (0.0 if found.dtype == torch.float32 else ROUNDING * due.abs())
        over = ((found.float() - due).abs() - allowed).max().item()
        if not over <= 1e-7:  # NaN is not
            return f"{over:.2g} more than rounding in result {number}"
    return ""


def add_norm(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Pairs:
    """The stream stays float32, as in a run; what is added comes in the dtype."""
    shape = (sizes.tokens, sizes.width)
    x, y = _normal(shape, device, 1), _normal(shape, device, 2).to(dtype)
    gain = 1.0 + 0.1 * _normal(shape[1:], device, 3)
    dstream, dnormed = _normal(shape, device, 4), _normal(shape, device, 5)
    mask = _mask(shape, sizes.dropout, device)

    def plainly(x: Tensor, y: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        stream = x + y * mask
        return stream, F.rms_norm(stream, shape[1:], gain, 1e-6)

    torch.manual_seed(0)
    found = _with_gradients(
        lambda x, y, gain: residual_norm.add_norm(x, y, gain, 1e-6, sizes.dropout),
        (x, y, gain),
        (dstream, dnormed),
    )
    yield from zip(found, _with_gradients(plainly, (x, y.float(), gain), (dstream, dnormed)), strict=True)


def silu_dropout(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Pairs:
    shape = (sizes.tokens, sizes.hidden)
    h, da = (_normal(shape, device, seed, dtype) for seed in (1, 2))
    mask = _mask(shape, sizes.dropout, device)
    torch.manual_seed(0)
    drop = Drop(sizes.dropout, device)
    a, dh = _with_gradients(lambda h: F.silu(h) * mask, (h.float(),), (da.float(),))
    yield activation.silu_dropout(h, drop), a
    again, found = activation.silu_dropout_backward(h, da, drop)
    yield again, a
    yield found, dh


def softmax_gradient(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Pairs:
    logits = _normal((sizes.tokens, sizes.vocabulary), device, 1).mul_(3.0).to(dtype)
    targets = torch.arange(sizes.tokens, device=device) * 7 % sizes.vocabulary
    due = logits.float().log_softmax(1)
    gradient = due.exp() - F.one_hot(targets, sizes.vocabulary)
    found = logits.clone()
    yield cross_entropy.softmax_gradient(found, targets), -due.gather(1, targets.unsqueeze(1)).squeeze(1)
    yield found, gradient


def turned(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Pairs:
    channels = max(2, sizes.width // sizes.heads // 2 * 2)
    time = max(1, sizes.tokens // 2)
    angles = _normal((time, channels // 2), device, 1)
    qkv = _normal((2, time, 3, sizes.heads, channels), device, 2, dtype)
    given = tuple(_normal((2, sizes.heads, time, channels), device, seed, dtype) for seed in (3, 4, 5))

    def plainly(qkv: Tensor) -> tuple[Tensor, ...]:
        qk = plain.rotate(qkv[:, :, :2], angles.cos(), angles.sin())
        return tuple(part.transpose(1, 2) for part in (*qk.unbind(2), qkv[:, :, 2]))

    found = _with_gradients(lambda qkv: rotary.turned(qkv, angles.cos(), angles.sin()), (qkv,), given)
    due = _with_gradients(plainly, (qkv.float(),), tuple(each.float() for each in given))
    yield from zip(found, due, strict=True)


def by_expert(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Pairs:
    chosen, found = _routed(sizes, device)
    order = chosen.flatten().sort(stable=True).indices
    yield found.inverse_S[order], torch.arange(chosen.numel(), device=device)
    counts = torch.stack([(chosen == e).sum() for e in range(sizes.experts)])
    yield found.counts_E, counts
    yield found.ends_E, counts.cumsum(0)


def combine(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Pairs:
    chosen, places = _routed(sizes, device)
    inverse_NK = places.inverse_S.view_as(chosen).long()
    x = _normal((sizes.tokens, sizes.width), device, 1)
    y = _normal((chosen.numel(), sizes.width), device, 2, dtype)
    weights = _normal((sizes.tokens, sizes.top_k), device, 3).softmax(1)
    yield rows.spread(x, places.inverse_S, dtype)[inverse_NK], x.unsqueeze(1).expand(*chosen.shape, -1)
    yield rows.combine(y, places.inverse_S, None, sizes.tokens), y.float()[inverse_NK].sum(1)
    given = (y.float(), weights)
    due, dy, dweights = _with_gradients(
        lambda y, weights: (y[inverse_NK] * weights.unsqueeze(-1)).sum(1), given, (x,)
    )
    yield rows.combine(y, places.inverse_S, weights, sizes.tokens), due
    found = rows.combine_backward(x, y, places.inverse_S, weights)
    yield found[0], dy
    yield found[1], dweights


def products(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Pairs:
    _, places = _routed(sizes, device)
    size, ends = sizes.tokens * sizes.top_k, places.ends_E.tolist()
    slices = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    x = _normal((size, sizes.width), device, 1, dtype)
    dy = _normal((size, sizes.hidden), device, 2, dtype)
    w = _normal((sizes.experts, sizes.hidden, sizes.width), device, 3, dtype)
    due = [x[part].float() @ each.float().mT for part, each in zip(slices, w, strict=True)]
    yield grouped.products(x, w, places.ends_E), torch.cat(due)
    due = [dy[part].float() @ each.float() for part, each in zip(slices, w, strict=True)]
    yield grouped.products(dy, w.mT, places.ends_E), torch.cat(due)
    into = _normal((sizes.experts, sizes.hidden, sizes.width), device, 4)
    due = into + torch.stack([dy[part].float().mT @ x[part].float() for part in slices])
    grouped.add_outer(into, dy, x, places.ends_E)
    yield into, due


def weight_gradient(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Pairs:
    """The head's, which cuBLAS adds in float32; a CPU rounds each product to the dtype first."""
    dlogits = _normal((sizes.tokens, sizes.vocabulary), device, 1, dtype)
    x = _normal((sizes.tokens, sizes.width), device, 2, dtype)
    due = dlogits.float().mT @ x.float()
    into = torch.zeros_like(due)
    add_product(into, dlogits.mT, x)
    yield into if device.type == "cuda" else into.to(dtype), due
    if device.type == "cuda":
        add_product(into, dlogits.mT, x)
        yield into, 2.0 * due


COMPARISONS: dict[str, Callable[[Sizes, torch.dtype, torch.device], Pairs]] = {
    "the residual sum's norm": add_norm,
    "silu with dropout": silu_dropout,
    "the cross-entropy": softmax_gradient,
    "the rotary embedding": turned,
    "the sorting of assignments": by_expert,
    "the combination of answers": combine,
    "the experts' product": products,
    "the head's weight gradient": weight_gradient,
}


def _normal(
    shape: tuple[int, ...], device: torch.device, seed: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(device).to(dtype)


def _routed(sizes: Sizes, device: torch.device) -> tuple[Tensor, sorting.Sorted]:
    """Different experts for each token, none for the last where there are more than a token needs."""
    among = max(sizes.top_k, sizes.experts - 1)
    chosen = _normal((sizes.tokens, among), device, 9).topk(sizes.top_k).indices
    return chosen, sorting.by_expert(chosen.flatten(), sizes.experts)


def _mask(shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
    """Dropout's factors under the next key that seed 0 draws: 0, or 1 / (1 - p)."""
    torch.manual_seed(0)
    zeros, ones = torch.zeros(shape, device=device), torch.ones(shape, device=device)
    return residual_norm.add_norm(zeros, ones, ones[0], 1e-6, p)[0]


def _with_gradients(
    f: Callable[..., Tensor | tuple[Tensor, ...]], given: tuple[Tensor, ...], above: tuple[Tensor, ...]
) -> list[Tensor]:
    """What a function returns, and its gradients under those that come from above."""
    leaves = [each.detach().clone().requires_grad_() for each in given]
    found = f(*leaves)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    gradients = torch.autograd.grad(outputs, leaves, list(above))
    return [each.detach() for each in (*outputs, *gradients)]
