"""The parts of a run's configuration: model, routing, training, data; each checks itself when it is made.

Imports no torch. The whole, its keys and its hash: model/config.py. How a field is checked: model/fields.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.fields import ConfigError, check_fields, choice, real, text, whole


@dataclass(frozen=True)
class ModelConfig:
    d_model: int = whole(384, 2, 65_536)
    """Width of the residual stream."""
    n_layers: int = whole(6, 1, 1_000)
    """Transformer blocks."""
    n_heads: int = whole(8, 1, 1_024)
    """Attention heads; each has d_model / n_heads channels, an even number (rotary pairs)."""
    d_ff: int = whole(1536, 1, 1_048_576)
    """Width inside an expert."""
    n_experts: int = whole(8, 1, 4_096)
    """Experts in each MoE layer."""
    top_k: int = whole(2, 1, 4_096)
    """Experts that each token is sent to."""
    dropout: float = real(0.1, 0.0, 0.99)
    """Probability of zeroing, everywhere that dropout appears."""
    vocab_size: int = whole(49_152, 2, 1_048_576)
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

    @property
    def parameters_outside_experts(self) -> int:
        """What the published study called "active": it leaves out every expert."""
        return self.total_parameters - self.n_layers * self.n_experts * self.expert_parameters


@dataclass(frozen=True)
class RoutingConfig:
    """What a router adds to its logits and to the loss; formulas and sources: model/network/moe.py."""

    noise: str = choice("gaussian", "gaussian", "annealed", "jitter", "learned", "gumbel")
    """What `noise_std` is the strength of; annealed is Gaussian and falls to 0 at the last update."""
    noise_std: float = real(0.1, 0.0, 100.0)
    """Standard deviation of the noise on the router's logits, in training only; jitter: of its factor."""
    load_balancing_weight: float = real(0.01, 0.0, 100.0)
    """Weight of the load-balancing loss (Switch Transformer, eq. 4-6), per layer."""
    balance: str = choice("micro-batch", "micro-batch", "batch")
    """Whose load the load-balancing loss sees: a micro-batch's, or all of the update's so far."""
    z_loss_weight: float = real(0.0, 0.0, 100.0)
    """Weight of the router z-loss (ST-MoE, eq. 5), per layer."""
    bias_rate: float = real(0.0, 0.0, 100.0)
    """What an expert's bias moves by after an update (Wang et al. 2024); 0: there is no bias."""

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
    steps: int = whole(400, 1, 10_000_000)
    """Forward and backward passes of one batch; an update follows each `accumulate` of them."""
    batch_size: int = whole(24, 1, 65_536)
    """Windows a step."""
    micro_batch: int = whole(0, 0, 65_536)
    """Windows at a time within a step, to save memory; 0: all. It changes the result: see the hash."""
    seq_len: int = whole(512, 2, 65_536)
    """Tokens a window."""
    accumulate: int = whole(4, 1, 4_096)
    """Steps whose gradients make one optimizer update."""
    eval_every: int = whole(100, 0, 10_000_000)
    """Steps between evaluations; 0 evaluates at the end only. The end is always evaluated."""
    muon_lr: float = real(0.01, 0.0, 10.0)
    """Peak rate of Muon; AdamW's is a tenth of it."""
    muon_momentum: float = real(0.95, 0.0, 0.9999)
    """Momentum of Muon, as an exponential moving average."""
    weight_decay: float = real(0.1, 0.0, 10.0)
    """Decoupled weight decay of AdamW; Muon has none."""
    grad_clip: float = real(1.0, 1e-6, 1e6)
    """Global gradient norm above which the gradient is scaled down."""
    precision: str = choice("auto", "auto", "fp32", "bf16")
    """auto: bf16 autocast on CUDA, fp32 on CPU, and not in the hash; a fixed choice is."""
    engine: str = choice("auto", "auto", "plain", "compiled")
    """auto: the fastest for the device; plain: the reference; compiled: torch.compile. Not in the hash: the
    same mathematics."""
    target_loss: float = real(0.0, 0.0, 1e6)
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
    corpus: str = text("bundled")
    """bundled, smollm, or a path; resolved at enqueue, for people. `corpus_id` is what counts."""
    corpus_id: str = text("")
    """What the text is, exactly: a revision or a SHA-256; empty until the corpus is resolved."""
    tokenizer: str = text("")
    """A bundled tokenizer's name, a folder, or a hub id, for people."""
    tokenizer_id: str = text("")
    """What the tokenizer is, exactly: a revision or a SHA-256; empty until it is resolved."""
    documents: int = whole(2_000, 3, 100_000_000)
    """Documents taken from the start of the corpus, before deduplication and the split."""
    document_characters: int = whole(3_000, 1, 100_000_000)
    """Characters at which a document is cut."""
    text_column: str = text("text")
    """Of a row, what holds its text."""
    tokens: int = whole(500_000, 16, 100_000_000_000)
    """Training tokens at most; held-out text is on top."""
    held_out_tokens: int = whole(100_000, 16, 1_000_000_000)
    """Tokens of each held-out split that are scored, at most."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
