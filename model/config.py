"""What defines a run: frozen dataclasses, validated when they are made, hashed by what they mean.

Imports no torch: the queue, the command line and the report read configurations without paying for it.
A key is dotted (`train.steps`) or its last part where that is unambiguous (`steps`).
Where runs come from: runner/grids.py. What they compute: model/training.py.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


class ConfigError(ValueError):
    """The field, its value, and the remedy, in one line."""

    exit_code = 65


def _whole(default: int, low: int, high: int) -> Any:
    return field(default=default, metadata={"type": int, "low": low, "high": high})


def _real(default: float, low: float, high: float) -> Any:
    return field(default=default, metadata={"type": float, "low": low, "high": high})


def _choice(default: str, *options: str) -> Any:
    return field(default=default, metadata={"type": str, "options": options})


def _text(default: str) -> Any:
    return field(default=default, metadata={"type": str})


@dataclass(frozen=True)
class ModelConfig:
    d_model: int = _whole(384, 2, 65_536)
    """Width of the residual stream."""
    n_layers: int = _whole(6, 1, 1_000)
    """Transformer blocks."""
    n_heads: int = _whole(8, 1, 1_024)
    """Attention heads; each has d_model / n_heads channels, an even number (rotary pairs)."""
    d_ff: int = _whole(1536, 1, 1_048_576)
    """Width inside an expert."""
    n_experts: int = _whole(8, 1, 4_096)
    """Experts in each MoE layer."""
    top_k: int = _whole(2, 1, 4_096)
    """Experts that each token is sent to."""
    dropout: float = _real(0.1, 0.0, 0.99)
    """Probability of zeroing, everywhere that dropout appears."""
    vocab_size: int = _whole(49_152, 2, 1_048_576)
    """Follows the tokenizer; set when the corpus is chosen."""

    def __post_init__(self) -> None:
        _check_fields(self, "model")
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
    noise_std: float = _real(0.1, 0.0, 100.0)
    """Standard deviation of the Gaussian noise on the router's logits, in training only."""
    load_balancing_weight: float = _real(0.01, 0.0, 100.0)
    """Weight of the load-balancing loss (Switch Transformer, eq. 4-6), per layer."""
    noise: str = _choice("gaussian", "gaussian", "annealed", "jitter", "learned", "gumbel")
    """What kind of noise, of strength `noise_std`. This key and the next are not in the hash at default."""
    z_loss_weight: float = _real(0.0, 0.0, 100.0)
    """Weight of the router's z-loss (ST-MoE, eq. 5), per layer."""
    bias_rate: float = _real(0.0, 0.0, 10.0)
    """Step of the bias that evens out the load without a loss (Wang et al. 2024); 0: no bias."""
    balance: str = _choice("micro-batch", "micro-batch", "batch")
    """Over which tokens the load-balancing loss counts: a micro-batch's, or all of an update's."""

    def __post_init__(self) -> None:
        _check_fields(self, "routing")


@dataclass(frozen=True)
class TrainConfig:
    steps: int = _whole(400, 1, 10_000_000)
    """Forward and backward passes of one batch; an update follows each `accumulate` of them."""
    batch_size: int = _whole(24, 1, 65_536)
    """Windows a step."""
    seq_len: int = _whole(512, 2, 65_536)
    """Tokens a window."""
    accumulate: int = _whole(4, 1, 4_096)
    """Steps whose gradients make one optimizer update."""
    eval_every: int = _whole(100, 0, 10_000_000)
    """Steps between evaluations; 0 evaluates at the end only. The end is always evaluated."""
    muon_lr: float = _real(0.01, 0.0, 10.0)
    """Peak rate of Muon; AdamW's is a tenth of it."""
    muon_momentum: float = _real(0.95, 0.0, 0.9999)
    """Momentum of Muon, as an exponential moving average."""
    weight_decay: float = _real(0.1, 0.0, 10.0)
    """Decoupled weight decay of AdamW; Muon has none."""
    grad_clip: float = _real(1.0, 1e-6, 1e6)
    """Global gradient norm above which the gradient is scaled down."""
    precision: str = _choice("auto", "auto", "fp32", "bf16")
    """auto: bf16 autocast on CUDA, fp32 on CPU, and not in the hash; a fixed choice is."""
    engine: str = _choice("auto", "auto", "plain")
    """auto: the fastest for the device; plain: the reference. The same mathematics, so not in the hash."""
    target_loss: float = _real(0.0, 0.0, 1e6)
    """Nats per token; results count the steps to get below it. 0 declares none and is not in the hash."""

    def __post_init__(self) -> None:
        _check_fields(self, "train")
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
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len


@dataclass(frozen=True)
class DataConfig:
    corpus: str = _text("bundled")
    """bundled, smollm, or a path; resolved at enqueue, for people. `corpus_id` is what counts."""
    corpus_id: str = _text("")
    """What the text is, exactly: a revision or a SHA-256; empty until the corpus is resolved."""
    tokenizer: str = _text("")
    """A bundled tokenizer's name, a folder, or a hub id, for people."""
    tokenizer_id: str = _text("")
    """What the tokenizer is, exactly: a revision or a SHA-256; empty until it is resolved."""
    documents: int = _whole(2_000, 3, 100_000_000)
    """Documents taken from the start of the corpus, before deduplication and the split."""
    document_characters: int = _whole(3_000, 1, 100_000_000)
    """Characters at which a document is cut."""
    tokens: int = _whole(500_000, 16, 100_000_000_000)
    """Training tokens at most; held-out text is on top."""
    held_out_tokens: int = _whole(100_000, 16, 1_000_000_000)
    """Tokens of each held-out split that are scored, at most."""

    def __post_init__(self) -> None:
        _check_fields(self, "data")


@dataclass(frozen=True)
class RunConfig:
    """One run. Same RunConfig, same machine, same thread count: the same bits."""

    model: ModelConfig = field(default_factory=ModelConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    protocol: str = _choice("sound", "sound", "published")
    """sound, or the published study's with its known defects; docs/method.md lists them."""
    seed: int = _whole(42, 0, 2**31 - 1)
    """From which every random stream of the run is derived."""
    repeat: int = _whole(0, 0, 1_000_000)
    """Which of several runs of the same configuration and seed: tells them apart, and changes no stream."""

    def __post_init__(self) -> None:
        _check_fields(self, "")
        needed = self.train.seq_len + 1
        for name in ("tokens", "held_out_tokens"):
            value = getattr(self.data, name)
            if value < needed:
                raise ConfigError(
                    f"data.{name} = {value}: less than one window of train.seq_len + 1 = {needed} "
                    f"tokens; raise it or shorten the window"
                )

    @property
    def tokens_seen(self) -> int:
        """Training tokens that the run consumes, repetitions included."""
        return self.train.steps * self.train.tokens_per_step

    def to_dict(self) -> dict[str, Any]:
        # vars, not asdict: fields are plain values, and a study of 100,000 runs asks several times for each.
        values = dict(vars(self))
        return values | {name: dict(vars(values[name])) for name in PARTS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from nested mappings; missing keys take their defaults.

        Raises:
            ConfigError: a key is unknown, or a value is refused.
        """
        flat: dict[str, Any] = {}
        for key, value in values.items():
            if key in PARTS and isinstance(value, Mapping):
                flat |= {f"{key}.{name}": inner for name, inner in value.items()}
            else:
                flat[key] = value
        return cls().with_values(flat)

    def with_values(self, values: Mapping[str, Any]) -> RunConfig:
        """A copy with dotted or short keys replaced, checked together once all are in place.

        Raises:
            ConfigError: a key is unknown or ambiguous, or a value is refused.
        """
        nested = self.to_dict()
        for key, value in values.items():
            *part, name = full_key(key).split(".")
            (nested[part[0]] if part else nested)[name] = value
        parts = {name: cls(**nested[name]) for name, cls in PARTS.items()}
        return RunConfig(**{**nested, **parts})

    def value(self, key: str) -> Any:
        """The value under a dotted or short key."""
        found: Any = self
        for name in full_key(key).split("."):
            found = getattr(found, name)
        return found

    def identity(self) -> dict[str, Any]:
        """What defines the result, and nothing else: the content of the hash."""
        values = self.to_dict()
        data, train = values["data"], values["train"]
        for name in ("corpus", "tokenizer"):  # a path names the text; its id is the text
            if data[f"{name}_id"]:
                del data[name]
        if train["precision"] == "auto":  # by rule, from the device: recorded with each attempt
            del train["precision"]
        del train["engine"]  # recorded with each attempt
        if train["target_loss"] == 0.0:
            del train["target_loss"]
        for name in ("noise", "z_loss_weight", "bias_rate", "balance"):  # absent from the hash until chosen
            if values["routing"][name] == getattr(RoutingConfig(), name):
                del values["routing"][name]
        if values["repeat"] == 0:  # the first run is the run: its hash is that of a grid without repeats
            del values["repeat"]
        return values

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of `identity`, in hex."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()


PARTS: dict[str, type] = {
    "model": ModelConfig,
    "routing": RoutingConfig,
    "train": TrainConfig,
    "data": DataConfig,
}


def canonical_json(value: Any) -> str:
    """Sorted keys, no white space, no NaN: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def all_keys() -> list[str]:
    """Every dotted key of a RunConfig, in the order of the parts."""
    inner = [f"{part}.{f.name}" for part, cls in PARTS.items() for f in fields(cls)]
    return inner + [f.name for f in fields(RunConfig) if f.name not in PARTS]


def full_key(key: str) -> str:
    """The dotted form of a dotted or short key.

    Raises:
        ConfigError: no field has that name, or several have.
    """
    known = all_keys()
    if key in known:
        return key
    matches = [name for name in known if name.rsplit(".", 1)[-1] == key]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"{key}: ambiguous; write {' or '.join(matches)}")
    shorts = {name.rsplit(".", 1)[-1]: name for name in known}
    close = difflib.get_close_matches(key, [*known, *shorts], n=1)
    hint = f"did you mean {shorts.get(close[0], close[0])}?" if close else f"keys: {', '.join(known)}"
    raise ConfigError(f"{key!r}: no such key; {hint}")


def _check_fields(config: Any, part: str) -> None:
    """Hold every field to its declared type and range; widen int to float where a float is due."""
    for spec in fields(config):
        if is_dataclass(getattr(config, spec.name)):
            continue
        name = f"{part}.{spec.name}" if part else spec.name
        value = _checked(name, getattr(config, spec.name), dict(spec.metadata))
        object.__setattr__(config, spec.name, value)


def _checked(name: str, value: Any, rule: dict[str, Any]) -> Any:
    expected = rule.get("type")
    if expected is None:
        raise ConfigError(f"{name} = {value!r}: a part of the configuration; set its keys instead")
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or isinstance(value, bool):
        kind = {int: "a whole number", float: "a number", str: "text"}[expected]
        raise ConfigError(f"{name} = {value!r}: must be {kind}")
    if "options" in rule and value not in rule["options"]:
        raise ConfigError(f"{name} = {value!r}: choose one of {', '.join(rule['options'])}")
    if "low" in rule:
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} = {value}: must be a finite number")
        if not rule["low"] <= value <= rule["high"]:
            raise ConfigError(f"{name} = {value}: must lie between {rule['low']} and {rule['high']}")
    return value
