"""Mixture of Experts: a noisy top-k router, experts as stacked weights, what keeps their load even.

What the studies vary. Dropless: every token reaches its k experts. Nothing is stashed on a module: `forward`
returns the routing's statistics beside the output. Read from the top: MoE.forward → noisy → route →
load_balancing_loss, z_loss, shift_bias. How the experts answer: model/engines/plain.py. What surrounds the
layer: model/network/transformer.py.

Shapes: B batch, T time, N = B·T tokens, D d_model, F d_ff, E experts, K top-k, M micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig, RoutingConfig
from model.engines import plain
from model.engines.choice import operations

DEFAULT_ROUTING = RoutingConfig()


class Routing(NamedTuple):
    """What a layer's router did; the last three are measured in evaluation only.

    Over several layers (model/network/transformer.py) each field has a leading axis L.
    """

    counts_E: Tensor
    """Assignments that each expert received, int64; their sum is N·K."""
    aux_loss: Tensor
    """Load-balancing loss before its weight, the mean over micro-batches: 1 when the load is even."""
    z_loss: Tensor | None
    """Router z-loss before its weight; None where the configuration gives it none."""
    entropy: Tensor | None
    """Mean entropy of the clean softmax over experts, in nats."""
    top1_probability: Tensor | None
    """Mean of the clean softmax's largest entry."""
    agreement: Tensor | None
    """Share of the clean top-k assignments that the noisy top-k keeps."""


class MoE(nn.Module):
    """A router and its experts, W2 · dropout(silu(W1 · x)), for each token its top-k."""

    bias_E: Tensor | None
    """Of the choice of experts alone, moved by `shift_bias`; None without a bias rate."""

    def __init__(
        self, config: ModelConfig, engine: str = "auto", routing: RoutingConfig = DEFAULT_ROUTING
    ) -> None:
        super().__init__()
        self.top_k, self.dropout, self.engine = config.top_k, config.dropout, engine
        self.noise, self.has_z_loss = routing.noise, routing.z_loss_weight > 0
        self.gate = nn.Linear(config.d_model, config.n_experts, bias=False)
        if routing.noise == "learned":
            self.noise_gate = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.register_buffer("bias_E", torch.zeros(config.n_experts) if routing.bias_rate else None)
        self.w1 = nn.Parameter(torch.empty(config.n_experts, config.d_ff, config.d_model))
        self.w2 = nn.Parameter(torch.empty(config.n_experts, config.d_model, config.d_ff))

    def forward(
        self,
        x_BTD: Tensor,
        noise_std: float | Tensor,
        noise: Tensor,
        seen_E: Tensor | None = None,
        micro_batches: int = 1,
    ) -> tuple[Tensor, Routing]:
        """Send each token to its experts and add up their weighted answers.

        Args:
            x_BTD: the block's normed input.
            noise_std: the noise's strength. In training it moves the routing; in evaluation the routing is
                clean, and the noise only serves to measure the agreement.
            noise: what `draw` drew for these tokens.
            seen_E: assignments of earlier micro-batches that count in the load-balancing loss.
            micro_batches: how many lie one after the other in `x_BTD`; the load is balanced in each.
        """
        x_ND = x_BTD.flatten(0, 1)
        clean_NE = gate_logits(x_ND, self.gate)
        noisy_NE = self.noisy(x_ND, clean_NE, noise_std, noise)
        logits_NE = noisy_NE if self.training else clean_NE

        ops = operations(self.engine, x_ND)
        weights_NK, experts_NK, probabilities_NE = route(logits_NE, self.top_k, self.bias_E, ops.pick)
        # Σ_k weight · W2 · dropout(silu(W1 · x)): model/engines/plain.py
        y_ND, counts_E = ops.experts(
            x_ND, weights_NK, experts_NK, self.w1, self.w2, self.dropout if self.training else 0.0
        )
        load_ME = load(experts_NK, micro_batches, len(self.w1))
        if seen_E is not None:
            load_ME = load_ME.cumsum(0) + seen_E
        aux_loss = load_balancing_loss(probabilities_NE, load_ME)
        z = z_loss(logits_NE) if self.has_z_loss else None
        routing = Routing(counts_E, aux_loss, z, None, None, None)
        if not self.training:
            noisy_NK = choose(noisy_NE, self.top_k, self.bias_E)
            routing = routing._replace(**_describe(probabilities_NE, experts_NK, noisy_NK))
        return y_ND.view_as(x_BTD), routing

    def draw(self, tokens: int, generator: torch.Generator) -> Tensor:
        """The numbers behind the noise of `tokens` tokens: normal (N, E), or uniform (N, E) or (N, D).

        Every kind draws as many at std 0 as at any other: the stream stays aligned between the cells of one
        seed. The generator lies on the layer's device.
        """
        weight_ED = self.gate.weight
        like = {"generator": generator, "device": weight_ED.device, "dtype": weight_ED.dtype}
        n_experts, d_model = weight_ED.shape
        if self.noise == "jitter":
            return torch.rand(tokens, d_model, **like)
        return (torch.rand if self.noise == "gumbel" else torch.randn)(tokens, n_experts, **like)

    def noisy(self, x_ND: Tensor, clean_NE: Tensor, std: float | Tensor, drawn: Tensor) -> Tensor:
        """The logits with noise of strength `std`, of the kind that the configuration chose.

        Annealed noise is Gaussian here; `strength` lowers its std.
        """
        if self.noise == "jitter":
            # gate(x · u), u ~ U(1 - ε, 1 + ε) for each entry of x (Fedus et al. 2022, appendix C); a uniform
            # draw's standard deviation is ε / √3, so ε = √3 · std.
            u_ND = 1.0 + math.sqrt(3.0) * std * (2.0 * drawn - 1.0)
            return gate_logits(x_ND * u_ND, self.gate)
        if self.noise == "gumbel":
            # l + std / (π / √6) · g, g = -log(-log u) (Jang et al. 2017, eq. 1): π / √6 is its standard
            # deviation, and at that std the first choice is a draw from the softmax. A uniform 0 would make
            # an infinite logit, and NaN at std 0.
            uniform_NE = drawn.clamp(min=torch.finfo(drawn.dtype).tiny)
            return clean_NE - std * math.sqrt(6.0) / math.pi * uniform_NE.log_().neg_().log_()
        if self.noise == "learned":
            # l + n · softplus(x · W_noise), n ~ N(0, 1) (Shazeer et al. 2017, eq. 4), times std / ln 2:
            # W_noise starts at zero, and softplus(0) = ln 2.
            return clean_NE + drawn * F.softplus(gate_logits(x_ND, self.noise_gate)) * (std / math.log(2.0))
        return clean_NE + std * drawn  # l + std · n, n ~ N(0, 1)


def gate_logits(x_ND: Tensor, gate: nn.Linear) -> Tensor:
    """A gate's logits, in the dtype of its weights."""
    # float32 even under autocast: the top-k is a discontinuous function of the logits, and bf16, with its
    # 8 bits, would tie or swap experts whose logits are close.
    with torch.autocast(x_ND.device.type, enabled=False):
        return F.linear(x_ND.to(gate.weight.dtype), gate.weight)


def strength(routing: RoutingConfig, update: int, updates: int) -> float:
    """The noise's std at an update (from 0) of `updates`; annealed noise falls linearly to 0."""
    return routing.noise_std * (1.0 - update / updates) if routing.noise == "annealed" else routing.noise_std


def route(
    logits_NE: Tensor,
    top_k: int,
    bias_E: Tensor | None = None,
    pick: Callable[[Tensor, Tensor], Tensor] = plain.pick,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose experts: weights_NK, experts_NK (int64) and the full softmax, probabilities_NE.

    The weights are a softmax over the chosen logits (Shazeer et al. 2017, eq. 3-5). At top_k = 1 that would
    be constantly 1 and cut the router from the language loss: there the weight comes from the full softmax
    (Switch Transformer, eq. 2). A bias helps to choose and is in no weight.
    """
    probabilities_NE = logits_NE.softmax(-1)
    experts_NK = choose(logits_NE, top_k, bias_E)
    if top_k == 1:
        return pick(probabilities_NE, experts_NK), experts_NK, probabilities_NE
    return pick(logits_NE, experts_NK).softmax(-1), experts_NK, probabilities_NE


def choose(logits_NE: Tensor, top_k: int, bias_E: Tensor | None) -> Tensor:
    """The experts of the highest logit + bias, (N, K) (Wang et al. 2024, eq. 3; there score + bias)."""
    return (logits_NE if bias_E is None else logits_NE + bias_E).detach().topk(top_k).indices


def shift_bias(bias_E: Tensor, counts_E: Tensor, rate: float) -> None:
    """b_e += rate · sign(mean count - count_e), in place, after an update (Wang et al. 2024, algorithm 1)."""
    # Whole numbers, mean times E: an expert at the mean is recognised exactly.
    bias_E += rate * (counts_E.sum() - counts_E.numel() * counts_E).sign()


def load(experts_NK: Tensor, micro_batches: int, n_experts: int) -> Tensor:
    """Assignments by micro-batch and expert, (M, E) int64; the tokens of a micro-batch are together."""
    every_E = torch.arange(n_experts, device=experts_NK.device)
    return (experts_NK.view(micro_batches, -1, 1) == every_E).sum(1)


def load_balancing_loss(probabilities_NE: Tensor, load_ME: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e, without its weight (Switch Transformer, eq. 4-6), the mean over M micro-batches.

    f_e is the share of the assignments counted that went to expert e (no gradient), P_e the mean probability.
    With `balance = batch` the counts are those of the update's micro-batches so far (Qiu et al. 2025).
    """
    micro_batches, n_experts = load_ME.shape
    f_ME = load_ME.to(probabilities_NE.dtype) / load_ME.sum(1, keepdim=True)
    p_ME = probabilities_NE.unflatten(0, (micro_batches, -1)).mean(1)
    return n_experts * (f_ME * p_ME).sum() / micro_batches


def z_loss(logits_NE: Tensor) -> Tensor:
    """Mean over tokens of (log Σ_e exp l_e)², without its weight (Zoph et al. 2022, eq. 5)."""
    return logits_NE.logsumexp(-1).square().mean()


def _describe(probabilities_NE: Tensor, experts_NK: Tensor, noisy_NK: Tensor) -> dict[str, Tensor]:
    """The statistics that only an evaluation pays for."""
    kept_NK = (experts_NK.unsqueeze(-1) == noisy_NK.unsqueeze(-2)).any(-1)
    return {
        "entropy": torch.special.entr(probabilities_NE).sum(-1).mean(),
        "top1_probability": probabilities_NE.amax(-1).mean(),
        "agreement": kept_NK.to(probabilities_NE.dtype).mean(),
    }
