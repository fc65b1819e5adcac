"""The parts of a run's configuration: model, routing, training, data; each checks itself when it is made.

Imports no torch. The whole, its keys and its hash: model/config.py. How a field is checked: model/fields.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from model.fields import Annotated, ConfigError, Interval, check_fields


@dataclass(frozen=True)
class ModelConfig:
    d_model: Annotated[int, Interval(ge=2, le=65_536)] = 384
    """Width of the residual stream."""
    n_layers: Annotated[int, Interval(ge=1, le=1_000)] = 6
    """Transformer blocks."""
    n_heads: Annotated[int, Interval(ge=1, le=1_024)] = 8
    """Attention heads; each has d_model / n_heads channels, an even number (rotary pairs)."""
    d_ff: Annotated[int, Interval(ge=1, le=1_048_576)] = 1536
    """Width inside an expert."""
    n_experts: Annotated[int, Interval(ge=1, le=4_096)] = 8
    """Experts in each MoE layer."""
    top_k: Annotated[int, Interval(ge=1, le=4_096)] = 2
    """Experts that each token is sent to."""
    dropout: Annotated[float, Interval(ge=0.0, le=0.99)] = 0.1
    """Probability of zeroing, everywhere that dropout appears."""
    vocab_size: Annotated[int, Interval(ge=2, le=1_048_576)] = 49_152
    """Follows the tokenizer; set when the corpus is chosen."""

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if self.top_k > self.n_experts:
            raise ConfigError(
                f"model.top_k = {self.top_k}: more than model.n_experts = {self.n_experts}; "
                f"choose 1 to {self.n_experts}"
            )
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"model.d_model = {self.d_model}: not divisible by model.n_heads = {self.n_heads}; "
                f"try {self.n_heads * max(1, round(self.d_model / self.n_heads))}"
            )
        if self.d_head % 2:
            raise ConfigError(
                f"model.n_heads = {self.n_heads}: heads of {self.d_head} channels, but rotary "
                f"embeddings need an even number; try model.d_model = {self.n_heads * (self.d_head + 1)}"
            )

    @property
    def d_head(self) -> int:
        """Channels of one attention head."""
        return self.d_model // self.n_heads

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert: W1 (F×D) and W2 (D×F)."""
        return 2 * self.d_model * self.d_ff

    @property
    def muon_parameters(self) -> int:
        """Every 2-D weight but the embedding: qkv, output projection, router gates, experts."""
        d = self.d_model
        return self.n_layers * (4 * d * d + self.n_experts * (d + self.expert_parameters))

    @property
    def adamw_parameters(self) -> int:
        """The tied embedding and the RMSNorm gains (two a block and the final one)."""
        return self.d_model * (self.vocab_size + 2 * self.n_layers + 1)

    @property
    def total_parameters(self) -> int:
        """All trained parameters; the tied head counts once."""
        return self.muon_parameters + self.adamw_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: all but the experts it is not sent to."""
        idle = self.n_layers * (self.n_experts - self.top_k)
        return self.total_parameters - idle * self.expert_parameters


@dataclass(frozen=True)
class RoutingConfig:
    """What a router adds to its logits and to the loss; formulas and sources: model/network/moe.py."""

    noise: Literal["gaussian", "annealed", "jitter", "learned", "gumbel"] = "gaussian"
    """The kind of noise whose strength is `noise_std`; annealed: Gaussian, 0 at the last update."""
    noise_std: Annotated[float, Interval(ge=0.0, le=100.0)] = 0.1
    """Standard deviation of the noise on the router's logits, in training only; jitter: of its factor."""
    load_balancing_weight: Annotated[float, Interval(ge=0.0, le=100.0)] = 0.01
    """Weight of the load-balancing loss (Switch Transformer, eq. 4-6), per layer."""
    balance: Literal["micro-batch", "batch"] = "micro-batch"
    """Tokens whose load the load-balancing loss counts: a micro-batch, or the update's so far."""
    z_loss_weight: Annotated[float, Interval(ge=0.0, le=100.0)] = 0.0
    """Weight of the router z-loss (ST-MoE, eq. 5), per layer."""
    bias_rate: Annotated[float, Interval(ge=0.0, le=100.0)] = 0.0
    """Step of each expert's bias after an update (Wang et al. 2024); 0: there is no bias."""

    def __post_init__(self) -> None:
        check_fields(self, "routing")
        most = 1.0 / math.sqrt(3.0)
        if self.noise == "jitter" and self.noise_std > most:
            raise ConfigError(
                f"routing.noise_std = {self.noise_std}: jitter's factor, 1 ± √3 · noise_std, would turn "
                f"negative; choose at most {math.floor(most * 1e4) / 1e4}, or another routing.noise"
            )


@dataclass(frozen=True)
class TrainConfig:
    steps: Annotated[int, Interval(ge=1, le=10_000_000)] = 400
    """Forward and backward passes of one batch; an update follows each `accumulate` of them."""
    batch_size: Annotated[int, Interval(ge=1, le=65_536)] = 24
    """Windows a step."""
    micro_batch: Annotated[int, Interval(ge=0, le=65_536)] = 0
    """Windows at a time within a step, to save memory; 0: all. It changes the result: see the hash."""
    seq_len: Annotated[int, Interval(ge=2, le=65_536)] = 512
    """Tokens a window."""
    accumulate: Annotated[int, Interval(ge=1, le=4_096)] = 4
    """Steps whose gradients make one optimizer update."""
    eval_every: Annotated[int, Interval(ge=0, le=10_000_000)] = 100
    """Steps between evaluations; 0 evaluates at the end only. The end is always evaluated."""
    muon_lr: Annotated[float, Interval(ge=0.0, le=10.0)] = 0.01
    """Peak rate of Muon; AdamW's is a tenth of it."""
    muon_momentum: Annotated[float, Interval(ge=0.0, le=0.9999)] = 0.95
    """Momentum of Muon, as an exponential moving average."""
    weight_decay: Annotated[float, Interval(ge=0.0, le=10.0)] = 0.1
    """Decoupled weight decay of AdamW; Muon has none."""
    grad_clip: Annotated[float, Interval(ge=1e-6, le=1e6)] = 1.0
    """Global gradient norm above which the gradient is scaled down."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on CUDA, fp32 on CPU, and not in the hash; a fixed choice is."""
    engine: Literal["auto", "plain", "compiled", "grouped", "triton"] = "auto"
    """auto: the fastest for the device; plain: the reference; compiled: torch.compile; triton and grouped:
    what auto means on a GPU, where Triton's kernels prove right and elsewhere. Not in the hash: the same
    mathematics."""
    target_loss: Annotated[float, Interval(ge=0.0, le=1e6)] = 0.0
    """Nats per token; results count the steps to get below it. 0 declares none and is not in the hash."""

    def __post_init__(self) -> None:
        check_fields(self, "train")
        for name in ("steps", "eval_every"):
            value = getattr(self, name)
            if value % self.accumulate:
                nearest = self.accumulate * max(1, round(value / self.accumulate))
                raise ConfigError(
                    f"train.{name} = {value}: not a multiple of train.accumulate = "
                    f"{self.accumulate}; try {nearest}"
                )

    @property
    def updates(self) -> int:
        """Optimizer updates in the run."""
        return self.steps // self.accumulate

    @property
    def windows_at_once(self) -> int:
        """Windows of one forward pass, in training and in evaluation."""
        return min(self.micro_batch or self.batch_size, self.batch_size)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len


@dataclass(frozen=True)
class DataConfig:
    corpus: str = "bundled"
    """bundled, smollm, or a path, as people write it; the hash holds `corpus_id` instead."""
    corpus_id: str = ""
    """The text's revision on the hub, or its SHA-256; empty until the corpus is resolved."""
    tokenizer: str = ""
    """A bundled tokenizer's name, a folder, or a hub id, for people."""
    tokenizer_id: str = ""
    """The tokenizer's revision on the hub, or its SHA-256; empty until it is resolved."""
    documents: Annotated[int, Interval(ge=3, le=100_000_000)] = 2_000
    """Documents taken from the start of the corpus, before deduplication and the split."""
    document_characters: Annotated[int, Interval(ge=1, le=100_000_000)] = 3_000
    """Characters at which a document is cut."""
    text_column: str = "text"
    """The column of a row that holds the document's text."""
    tokens: Annotated[int, Interval(ge=16, le=100_000_000_000)] = 500_000
    """Training tokens at most; held-out text is on top."""
    held_out_tokens: Annotated[int, Interval(ge=16, le=1_000_000_000)] = 100_000
    """Tokens of each held-out split that are scored, at most."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
