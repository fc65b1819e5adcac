"""The language model around the MoE layers: what stays the same in every study.

Pre-norm blocks, rotary attention, RMSNorm, a head tied to the embedding, no biases. Read from the top:
`build` → LanguageModel → Block → Attention. What varies: model/moe.py.

Shapes: B batch, T time, D d_model, H heads, C = D / H channels of a head, V vocabulary, L layers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.moe import MoE, Routing

ROTARY_BASE = 10_000.0
INIT_STD = 0.02


def build(config: ModelConfig, seq_len: int, seed: int, device: torch.device) -> LanguageModel:
    """A model on `device`, with weights drawn on the CPU: the same on every device.

    Args:
        seed: of the initialisation stream alone; no other stream is touched.
    """
    with torch.device("meta"):  # without memory: the modules' own random initialisation is skipped
        model = LanguageModel(config, seq_len)
    model.to_empty(device="cpu")
    init_weights(model, torch.Generator().manual_seed(seed))
    return model.to(device)


@torch.no_grad()
def init_weights(model: LanguageModel, generator: torch.Generator) -> None:
    """Fill every parameter, in the order of `named_parameters`, and the rotary tables.

    | what                                          | value                          |
    | --------------------------------------------- | ------------------------------ |
    | embedding, and with it the tied head          | normal(0, 0.02)                |
    | qkv, output projection, router gates, experts | normal(0, 0.02)                |
    | RMSNorm gains                                 | 1                              |
    | rotary tables                                 | cos and sin, base 10,000       |
    """
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, INIT_STD, generator=generator)
    cos_TC, sin_TC = rotary_tables(*model.cos_TC.shape)
    model.cos_TC.copy_(cos_TC)
    model.sin_TC.copy_(sin_TC)


class LanguageModel(nn.Module):
    """Tokens in, logits out, with the routing of every layer."""

    cos_TC: Tensor
    sin_TC: Tensor

    def __init__(self, config: ModelConfig, seq_len: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = rms_norm(config.d_model)
        self.register_buffer("cos_TC", torch.empty(seq_len, config.d_head // 2))
        self.register_buffer("sin_TC", torch.empty(seq_len, config.d_head // 2))

    def forward(self, tokens_BT: Tensor, noise_std: float, noise: torch.Generator) -> tuple[Tensor, Routing]:
        """logits_BTV, and the routing with a leading axis L over the layers.

        Args:
            tokens_BT: int64, at most the seq_len that the model was built for.
            noise_std, noise: of the routing noise; see MoE.forward.
        """
        x_BTD = self.embedding(tokens_BT) * math.sqrt(self.embedding.embedding_dim)
        x_BTD = F.dropout(x_BTD, self.dropout, self.training)
        rotation = self.cos_TC[: tokens_BT.shape[1]], self.sin_TC[: tokens_BT.shape[1]]
        routings = []
        for block in self.blocks:
            x_BTD, routing = block(x_BTD, rotation, noise_std, noise)
            routings.append(routing)
        x_BTD = F.dropout(self.norm(x_BTD), self.dropout, self.training)
        logits_BTV = F.linear(x_BTD, self.embedding.weight)  # the tied head
        return logits_BTV, _stack(routings)


class Block(nn.Module):
    """Pre-norm: attention and MoE each read the normed stream and add to the raw one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = rms_norm(config.d_model)
        self.attention = Attention(config)
        self.moe_norm = rms_norm(config.d_model)
        self.moe = MoE(config)

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], noise_std: float, noise: torch.Generator
    ) -> tuple[Tensor, Routing]:
        attended_BTD = self.attention(self.attention_norm(x_BTD), rotation)
        x_BTD = x_BTD + F.dropout(attended_BTD, self.dropout, self.training)
        answer_BTD, routing = self.moe(self.moe_norm(x_BTD), noise_std, noise)
        return x_BTD + F.dropout(answer_BTD, self.dropout, self.training), routing


class Attention(nn.Module):
    """Causal self-attention with one fused projection for queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        qkv_BT3HC = self.qkv(x_BTD).unflatten(-1, (3, self.n_heads, -1))
        qk_BT2HC = rotate(qkv_BT3HC[:, :, :2], *rotation)
        q_BHTC, k_BHTC = (part.transpose(1, 2) for part in qk_BT2HC.unbind(2))
        y_BHTC = F.scaled_dot_product_attention(
            q_BHTC,
            k_BHTC,
            qkv_BT3HC[:, :, 2].transpose(1, 2),
            is_causal=True,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(y_BHTC.transpose(1, 2).flatten(2))


def rotary_tables(seq_len: int, pairs: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position · base^(-i / pairs), (seq_len, pairs) float32 (Su et al. 2021, eq. 34)."""
    # float64 for the angles: at position 60,000 a float32 angle is off by thousandths of a radian.
    frequencies = ROTARY_BASE ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    angles = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Turn the interleaved pairs (x0, x1), (x2, x3) … of (B, T, …, C) by their position's angles."""
    shape = (x.shape[1], *[1] * (x.ndim - 3), x.shape[-1] // 2)
    cos, sin = cos_TC.view(shape), sin_TC.view(shape)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
    # Under autocast x is bf16 and the tables are float32: turned in float32, handed on as it came.
    return turned.to(x.dtype)


def rms_norm(d_model: int) -> nn.RMSNorm:
    """RMSNorm over D; eps is float32's, which is also the stream's dtype under autocast."""
    return nn.RMSNorm(d_model, eps=torch.finfo(torch.float32).eps)


def _stack(routings: list[Routing]) -> Routing:
    """One Routing of tensors with a leading axis L; what was not measured stays None."""
    columns = zip(*routings, strict=True)
    return Routing(*(None if column[0] is None else torch.stack(column) for column in columns))
