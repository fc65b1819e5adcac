"""The language model around the MoE layers: what stays the same in every study.

Pre-norm blocks, rotary attention, RMSNorm, a head tied to the embedding, no biases. Read from the top:
`build` → LanguageModel → Block → Attention. What varies: model/network/moe.py. What an operation computes,
as its formula reads: model/engines/plain.py.

Shapes: B batch, T time, N = B·T tokens, D d_model, H heads, C = D / H channels of a head, V vocabulary,
L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.config import ModelConfig, RoutingConfig
from model.engines.choice import adds_in_place, operations
from model.network.moe import DEFAULT_ROUTING, MoE, Routing, shift_bias

ROTARY_BASE = 10_000.0
INIT_STD = 0.02


def build(
    config: ModelConfig,
    seq_len: int,
    seed: int,
    device: torch.device,
    engine: str = "auto",
    routing: RoutingConfig = DEFAULT_ROUTING,
) -> LanguageModel:
    """A model on `device`, with weights drawn on the CPU: the same on every device.

    The last draws are kept: the cells of one seed begin from the same weights, and 79 million take seconds.

    Args:
        seed: of the initialisation stream alone; no other stream is touched.
        engine: auto, plain or compiled; see model/engines/choice.py.
        routing: its kind of noise, z-loss and bias decide what the layers hold; see model/network/moe.py.
    """
    with device, _Undrawn():
        model = LanguageModel(config, seq_len, engine, routing)
    model.load_state_dict(_drawn(config, seq_len, seed, routing.noise, bool(routing.bias_rate)))
    return model


class _Undrawn(TorchFunctionMode):
    """Modules are made without their own initialisation: no stream is drawn from, no time is spent."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@lru_cache(maxsize=2)  # a run's, and its rehearsal's
def _drawn(config: ModelConfig, seq_len: int, seed: int, noise: str, biased: bool) -> dict[str, Tensor]:
    """Weights and buffers by name, on the CPU: only to be copied from."""
    routing = replace(DEFAULT_ROUTING, noise=noise, bias_rate=float(biased))
    with torch.device("cpu"), _Undrawn():
        model = LanguageModel(config, seq_len, "auto", routing)
    init_weights(model, torch.Generator().manual_seed(seed))
    return model.state_dict()


@torch.no_grad()
def init_weights(model: LanguageModel, generator: torch.Generator) -> None:
    """Fill every parameter, in the order of `named_parameters`, and the buffers.

    | what                                          | value                          |
    | --------------------------------------------- | ------------------------------ |
    | embedding, and with it the tied head          | normal(0, 0.02)                |
    | qkv, output projection, router gates, experts | normal(0, 0.02)                |
    | RMSNorm gains                                 | 1                              |
    | learned noise's gates, routing biases         | 0; nothing is drawn for them   |
    | rotary tables                                 | cos and sin, base 10,000       |
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        elif name.endswith("noise_gate.weight"):
            parameter.zero_()
        else:
            parameter.normal_(0.0, INIT_STD, generator=generator)
    for block in model.blocks:
        if block.moe.bias_E is not None:
            block.moe.bias_E.zero_()
    cos_TC, sin_TC = rotary_tables(*model.cos_TC.shape)
    model.cos_TC.copy_(cos_TC)
    model.sin_TC.copy_(sin_TC)


class LanguageModel(nn.Module):
    """Tokens in, logits or their cross-entropy out, with the routing of every layer."""

    cos_TC: Tensor
    sin_TC: Tensor

    def __init__(
        self,
        config: ModelConfig,
        seq_len: int,
        engine: str = "auto",
        routing: RoutingConfig = DEFAULT_ROUTING,
    ) -> None:
        super().__init__()
        self.dropout, self.engine = config.dropout, engine
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, engine, routing) for _ in range(config.n_layers))
        self.norm = rms_norm(config.d_model)
        self.register_buffer("cos_TC", torch.empty(seq_len, config.d_head // 2))
        self.register_buffer("sin_TC", torch.empty(seq_len, config.d_head // 2))

    def forward(self, tokens_BT: Tensor, noise_std: float, noise: torch.Generator) -> tuple[Tensor, Routing]:
        """logits_BTV, and the routing with a leading axis L over the layers.

        Args:
            tokens_BT: int64, at most the seq_len that the model was built for.
            noise_std, noise: strength of the routing noise, and the generator that it is drawn from.
        """
        x_BTD, routing = self.hidden(tokens_BT, noise_std, self._draw(tokens_BT, noise))
        return F.linear(x_BTD, self.embedding.weight), routing  # the tied head

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        noise_std: float,
        noise: torch.Generator,
        seen_LE: Tensor | None = None,
        micro_batches: int = 1,
    ) -> tuple[Tensor, Routing]:
        """The mean cross-entropy in nats, without keeping the logits where the engine can do without.

        Args:
            seen_LE: assignments of earlier micro-batches that count in the load-balancing loss.
            micro_batches: how many lie one after the other in `tokens_BT`, each of equal size.
        """
        draws = self._draw(tokens_BT, noise, micro_batches)
        if self.engine != "compiled":
            return self._loss(tokens_BT, targets_BT, noise_std, draws, seen_LE, micro_batches)
        # A tensor: as a number each strength would be compiled anew.
        std = torch.full((), noise_std, device=tokens_BT.device, dtype=draws[0].dtype)
        return _compiled_loss()(self, tokens_BT, targets_BT, std, draws, seen_LE, micro_batches)

    def scores(
        self, tokens_BT: Tensor, targets_BT: Tensor, noise_std: float, noise: torch.Generator
    ) -> tuple[Tensor, Tensor, Routing]:
        """losses_N in nats, hits_N (the target is the likeliest token) and the routing; no gradients."""
        x_BTD, routing = self.hidden(tokens_BT, noise_std, self._draw(tokens_BT, noise))
        ops = operations(self.engine, x_BTD)
        return *ops.head_scores(x_BTD.flatten(0, 1), self.embedding.weight, targets_BT.flatten()), routing

    def open_gradients(self) -> None:
        """Before an update's first step: zeros, where the engine adds the steps' gradients in place."""
        if adds_in_place(operations(self.engine, self.embedding.weight)):
            for parameter in self.parameters():
                parameter.grad = torch.zeros_like(parameter)

    def shift_biases(self, counts_LE: Tensor, rate: float) -> None:
        """After an update whose assignments were counts_LE: move each layer's routing bias."""
        for block, counts_E in zip(self.blocks, counts_LE, strict=True):
            shift_bias(block.moe.bias_E, counts_E, rate)

    def hidden(
        self,
        tokens_BT: Tensor,
        noise_std: float | Tensor,
        draws: list[Tensor],
        seen_LE: Tensor | None = None,
        micro_batches: int = 1,
    ) -> tuple[Tensor, Routing]:
        """What the head reads, (B, T, D), and the routing."""
        ops, p = operations(self.engine, tokens_BT), self.dropout if self.training else 0.0
        x_BTD = ops.dropout(ops.embed(tokens_BT, self.embedding.weight), p)
        rotation = self.cos_TC[: tokens_BT.shape[1]], self.sin_TC[: tokens_BT.shape[1]]
        norms = [*(block.attention_norm for block in self.blocks[1:]), self.norm]
        normed_BTD = ops.rms_norm(x_BTD, self.blocks[0].attention_norm)
        routings = []
        for layer, (block, after) in enumerate(zip(self.blocks, norms, strict=True)):
            seen_E = None if seen_LE is None else seen_LE[layer]
            x_BTD, normed_BTD, routing = block(
                x_BTD, normed_BTD, after, rotation, noise_std, draws[layer], seen_E, micro_batches
            )
            routings.append(routing)
        return ops.dropout(normed_BTD, p), _stack(routings)

    def _loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        noise_std: float | Tensor,
        draws: list[Tensor],
        seen_LE: Tensor | None,
        micro_batches: int,
    ) -> tuple[Tensor, Routing]:
        x_BTD, routing = self.hidden(tokens_BT, noise_std, draws, seen_LE, micro_batches)
        ops = operations(self.engine, x_BTD)
        return ops.head_loss(x_BTD.flatten(0, 1), self.embedding.weight, targets_BT.flatten()), routing

    def _draw(self, tokens_BT: Tensor, noise: torch.Generator, micro_batches: int = 1) -> list[Tensor]:
        """Each layer's draws, micro-batch by micro-batch: the same one by one and together."""
        tokens = tokens_BT.numel() // micro_batches
        draws = [[block.moe.draw(tokens, noise) for block in self.blocks] for _ in range(micro_batches)]
        return [torch.cat(layer) for layer in zip(*draws, strict=True)]


@cache
def _compiled_loss() -> Callable[..., tuple[Tensor, Routing]]:
    """One for all models of the process: those of one shape and kind of routing share what is compiled."""
    torch._dynamo.config.recompile_limit = 64  # shapes and kinds of routing in one night
    torch._inductor.config.deterministic = True  # what it generates does not depend on timings
    return torch.compile(LanguageModel._loss, fullgraph=True, dynamic=False)


class Block(nn.Module):
    """Pre-norm: attention and MoE each read the normed stream and add to the raw one."""

    def __init__(self, config: ModelConfig, engine: str, routing: RoutingConfig) -> None:
        super().__init__()
        self.dropout, self.engine = config.dropout, engine
        self.attention_norm = rms_norm(config.d_model)
        self.attention = Attention(config, engine)
        self.moe_norm = rms_norm(config.d_model)
        self.moe = MoE(config, engine, routing)

    def forward(
        self,
        x_BTD: Tensor,
        normed_BTD: Tensor,
        after: nn.RMSNorm,
        rotation: tuple[Tensor, Tensor],
        noise_std: float | Tensor,
        noise: Tensor,
        seen_E: Tensor | None,
        micro_batches: int,
    ) -> tuple[Tensor, Tensor, Routing]:
        """The stream after this block, and what `after`, the norm that reads it next, makes of it.

        `normed_BTD` is x_BTD under this block's first norm: a sum and the norm after it are one operation.
        """
        ops, p = operations(self.engine, x_BTD), self.dropout if self.training else 0.0
        attended_BTD = self.attention(normed_BTD, rotation)
        x_BTD, normed_BTD = ops.add_norm(x_BTD, attended_BTD, p, self.moe_norm)
        answer_BTD, routing = self.moe(normed_BTD, noise_std, noise, seen_E, micro_batches)
        return *ops.add_norm(x_BTD, answer_BTD, p, after), routing


class Attention(nn.Module):
    """Causal self-attention with one fused projection for queries, keys and values."""

    def __init__(self, config: ModelConfig, engine: str = "auto") -> None:
        super().__init__()
        self.n_heads, self.dropout, self.engine = config.n_heads, config.dropout, engine
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        ops, p = operations(self.engine, x_BTD), self.dropout if self.training else 0.0
        qkv_BT3HC = self.qkv(x_BTD).unflatten(-1, (3, self.n_heads, -1))
        return self.out(ops.attend(qkv_BT3HC, rotation, p))


def rotary_tables(seq_len: int, pairs: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position · base^(-i / pairs), (seq_len, pairs) float32 (Su et al. 2021, eq. 34)."""
    # float64 for the angles: at position 60,000 a float32 angle is off by thousandths of a radian.
    frequencies = ROTARY_BASE ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    angles = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def rms_norm(d_model: int) -> nn.RMSNorm:
    """RMSNorm over D; eps is float32's, which is also the stream's dtype under autocast."""
    return nn.RMSNorm(d_model, eps=torch.finfo(torch.float32).eps)


def _stack(routings: list[Routing]) -> Routing:
    """One Routing of tensors with a leading axis L; what was not measured stays None."""
    columns = zip(*routings, strict=True)
    return Routing(*(None if column[0] is None else torch.stack(column) for column in columns))
