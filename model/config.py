"""What defines a run: a frozen dataclass of parts, checked when it is made, hashed by what it means.

Imports no torch: the queue, the command line and the report read configurations without paying for it.
A key is dotted (`train.steps`) or its last part where that is unambiguous (`steps`).
The fields: model/parts.py. Where runs come from: runner/design/grid.py. What they compute:
model/training/loop.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from model import fields
from model.fields import Annotated, ConfigError, Interval, canonical_json, check_fields, flatten
from model.parts import DataConfig, ModelConfig, RoutingConfig, TrainConfig

__all__ = [
    "ConfigError", "DataConfig", "ModelConfig", "RoutingConfig", "RunConfig", "TrainConfig",
    "all_keys", "canonical_json", "flatten", "full_key",
]  # fmt: skip

CPU_TOKENS_AT_ONCE = 8_192
"""Up to which an update's steps go through the model as one batch on a CPU."""
CPU_PROCESS_BYTES = 1.2e9
"""Of a trainer beside the model: torch, the products that oneDNN keeps, and a heap in which what is free does
not fit together. Measured: six runs one after another at smoke scale, four at small (docs/performance.md)."""


@dataclass(frozen=True)
class RunConfig:
    """One run. Same RunConfig, same machine, same thread count: the same bits."""

    model: ModelConfig = field(default_factory=ModelConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    protocol: Literal["sound", "published"] = "sound"
    """sound, or the published study's with its known defects; docs/method.md lists them."""
    seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] = 42
    """Every random stream of the run is derived from it."""
    repeat: Annotated[int, Interval(ge=0, le=1_000_000)] = 0
    """Number of this run among those of one configuration and seed; it changes no random stream."""

    def __post_init__(self) -> None:
        check_fields(self, "")
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

    @property
    def noise_parameters(self) -> int:
        """Learned noise has a second gate in each layer, under Muon like the first."""
        learned = self.routing.noise == "learned"
        return learned * self.model.n_layers * self.model.n_experts * self.model.d_model

    @property
    def muon_parameters(self) -> int:
        return self.model.muon_parameters + self.noise_parameters

    @property
    def vocabulary(self) -> int:
        """Tokens that the parameters are counted with; `enqueue` takes the tokenizer's."""
        return self.model.vocab_size

    @property
    def total_parameters(self) -> int:
        return self.model.total_parameters + self.noise_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets in training."""
        return self.model.active_parameters + self.noise_parameters

    def estimated_bytes(self, windows: int, width: int, logits: int, keeps_scores: bool) -> float:
        """What an update takes at its peak: weights, what backward needs, a chunk of logits.

        28 bytes a weight: it, its gradient, momentum or moments, and the optimizer's copies. The numbers of
        tensors a layer keeps were counted (tests/training/test_setting.py); a quarter more for what backward
        adds.

        Args:
            windows: of one pass.
            width: bytes of an activation, 2 or 4.
            logits: tokens whose logits exist at one time; `plain` keeps them all.
            keeps_scores: attention's are kept, where no fused kernel does without.
        """
        model, tokens = self.model, windows * self.train.seq_len
        scores = 3.25 * model.n_heads * self.train.seq_len * width if keeps_scores else 0.0
        layer = 17 * model.d_model * 4 + 3.25 * model.top_k * model.d_ff * width + scores
        at_once = tokens if self.train.engine == "plain" else min(tokens, logits)
        kept = 1.25 * tokens * model.n_layers * layer
        return 28.0 * model.total_parameters + 12.0 * at_once * model.vocab_size + kept

    @property
    def estimated_cpu_bytes(self) -> float:
        """What its trainer takes on a CPU, the process with its libraries included."""
        train = self.train
        together = min(train.batch_size * train.accumulate, CPU_TOKENS_AT_ONCE // train.seq_len)
        return CPU_PROCESS_BYTES + self.estimated_bytes(max(train.windows_at_once, together), 4, 256, True)

    def to_dict(self) -> dict[str, Any]:
        return fields.as_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from nested mappings; missing keys take their defaults.

        Raises:
            ConfigError: a key is unknown, or a value is refused.
        """
        return cls().with_values(flatten(values))

    def with_values(self, values: Mapping[str, Any]) -> RunConfig:
        """A copy with dotted or short keys replaced, checked together once all are in place.

        Raises:
            ConfigError: a key is unknown or ambiguous, or a value is refused.
        """
        dotted = {full_key(key): value for key, value in values.items()}
        return cast("RunConfig", fields.with_values(self, dotted))

    def value(self, key: str) -> Any:
        """The value under a dotted or short key."""
        return fields.value_of(self, full_key(key))

    def identity(self) -> dict[str, Any]:
        """All that defines the result, and nothing else: the content of the hash."""
        values = self.to_dict()
        data, train, routing = values["data"], values["train"], values["routing"]
        for name in ("corpus", "tokenizer"):  # a path names the text; its id is the text
            if data[f"{name}_id"]:
                del data[name]
        if train["precision"] == "auto":  # by rule, from the device: recorded with each attempt
            del train["precision"]
        del train["engine"]  # recorded with each attempt
        if train["target_loss"] == 0.0:
            del train["target_loss"]
        if not 0 < train["micro_batch"] < train["batch_size"]:  # one that splits nothing changes no bit
            del train["micro_batch"]
        # Keys that came later: at their default they leave the hash of earlier runs as it was.
        for name in ("noise", "balance", "z_loss_weight", "bias_rate"):
            if routing[name] == getattr(RoutingConfig, name):
                del routing[name]
        if data["text_column"] == DataConfig.text_column:
            del data["text_column"]
        if values["repeat"] == 0:  # the first run is the run: its hash is that of a grid without repeats
            del values["repeat"]
        return values

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of `identity`, in hex."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()


CALLED_ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "lr", "max_lr"), "train.muon_lr"),
    **dict.fromkeys(("epochs", "num_epochs", "max_steps", "iterations"), "train.steps"),
    **dict.fromkeys(("context_length", "block_size", "max_seq_len"), "train.seq_len"),
    **dict.fromkeys(("hidden_size", "n_embd", "dim"), "model.d_model"),
}
"""What other programs call a key, whose names would lead a comparison of letters astray."""


def all_keys() -> list[str]:
    """Every dotted key of a RunConfig, in the order of the parts."""
    return list(fields.kinds(RunConfig))


def full_key(key: str) -> str:
    """The dotted form of a dotted or short key."""
    return fields.full_key(all_keys(), key, CALLED_ELSEWHERE)
