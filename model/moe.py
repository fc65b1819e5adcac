"""Mixture of Experts: a noisy top-k router, experts as stacked weights, the load-balancing loss.

What the studies vary. Dropless: every token reaches its k experts. Nothing is stashed on a module: `forward`
returns the routing's statistics beside the output. How the experts answer: model/plain.py. What surrounds
the layer: model/transformer.py.

Shapes: B batch, T time, N = B·T tokens, D d_model, F d_ff, E experts, K top-k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.engine import operations


class Routing(NamedTuple):
    """What a layer's router did; the last three are measured in evaluation only.

    Over several layers (model/transformer.py) each field has a leading axis L.
    """

    counts_E: Tensor
    """Assignments that each expert received, int64; their sum is N·K."""
    aux_loss: Tensor
    """Load-balancing loss before its weight: 1 when the load is even."""
    entropy: Tensor | None
    """Mean entropy of the clean softmax over experts, in nats."""
    top1_probability: Tensor | None
    """Mean of the clean softmax's largest entry."""
    agreement: Tensor | None
    """Share of the clean top-k assignments that the noisy top-k keeps."""


class MoE(nn.Module):
    """A router and its experts, W2 · dropout(silu(W1 · x)), for each token its top-k."""

    def __init__(self, config: ModelConfig, engine: str = "auto") -> None:
        super().__init__()
        self.top_k, self.dropout, self.engine = config.top_k, config.dropout, engine
        self.gate = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(config.n_experts, config.d_ff, config.d_model))
        self.w2 = nn.Parameter(torch.empty(config.n_experts, config.d_model, config.d_ff))

    def forward(self, x_BTD: Tensor, noise_std: float, noise: torch.Generator) -> tuple[Tensor, Routing]:
        """Send each token to its experts and add up their weighted answers.

        Args:
            x_BTD: the block's normed input.
            noise_std: of the Gaussian noise on the logits. In training it moves the routing; in evaluation
                the routing is clean, and the noise only serves to measure the agreement.
            noise: the generator that the noise is drawn from, on the device of `x_BTD`.
        """
        x_ND = x_BTD.flatten(0, 1)
        clean_NE = self.router_logits(x_ND)
        # Drawn at std 0 too: the stream stays aligned between the cells of one seed.
        unit_NE = torch.randn(clean_NE.shape, generator=noise, device=clean_NE.device, dtype=clean_NE.dtype)
        noisy_NE = clean_NE + noise_std * unit_NE
        logits_NE = noisy_NE if self.training else clean_NE

        weights_NK, experts_NK, probabilities_NE = route(logits_NE, self.top_k)
        # Σ_k weight · W2 · dropout(silu(W1 · x)): model/plain.py
        y_ND, counts_E = operations(self.engine, x_ND).experts(
            x_ND, weights_NK, experts_NK, self.w1, self.w2, self.dropout if self.training else 0.0
        )
        routing = Routing(counts_E, load_balancing_loss(probabilities_NE, counts_E), None, None, None)
        if not self.training:
            routing = routing._replace(**_describe(probabilities_NE, experts_NK, noisy_NE))
        return y_ND.view_as(x_BTD), routing

    def router_logits(self, x_ND: Tensor) -> Tensor:
        """The gate's logits, in the dtype of its weights."""
        # float32 even under autocast: the top-k is a discontinuous function of the logits, and bf16, with its
        # 8 bits, would tie or swap experts whose logits are close.
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.to(self.gate.weight.dtype), self.gate.weight)


def route(logits_NE: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose experts: weights_NK, experts_NK (int64) and the full softmax, probabilities_NE.

    The weights are a softmax over the chosen logits (Shazeer et al. 2017, eq. 3-5). At top_k = 1 that would
    be constantly 1 and cut the router from the language loss: there the weight comes from the full softmax
    (Switch Transformer, eq. 2).
    """
    probabilities_NE = logits_NE.softmax(-1)
    chosen_NK, experts_NK = logits_NE.topk(top_k)
    weights_NK = probabilities_NE.gather(-1, experts_NK) if top_k == 1 else chosen_NK.softmax(-1)
    return weights_NK, experts_NK, probabilities_NE


def load_balancing_loss(probabilities_NE: Tensor, counts_E: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e, without its weight (Switch Transformer, eq. 4-6).

    f_e is the share of the N·K assignments that went to expert e (no gradient), P_e the mean probability.
    """
    f_E = counts_E.to(probabilities_NE.dtype) / counts_E.sum()
    return counts_E.numel() * (f_E * probabilities_NE.mean(0)).sum()


def _describe(probabilities_NE: Tensor, experts_NK: Tensor, noisy_NE: Tensor) -> dict[str, Tensor]:
    """The statistics that only an evaluation pays for."""
    noisy_NK = noisy_NE.topk(experts_NK.shape[-1]).indices
    kept_NK = (experts_NK.unsqueeze(-1) == noisy_NK.unsqueeze(-2)).any(-1)
    return {
        "entropy": torch.special.entr(probabilities_NE).sum(-1).mean(),
        "top1_probability": probabilities_NE.amax(-1).mean(),
        "agreement": kept_NK.to(probabilities_NE.dtype).mean(),
    }
