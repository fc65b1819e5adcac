"""The language model as a training program: what any program offers, docs/programs.md.

Imports no torch before it trains. The configuration: model/config.py; the loop: model/training/loop.py.
"""

from __future__ import annotations

from typing import Any

from model.config import RunConfig as Config

__all__ = ["METRICS", "Config"]

_NATS = "nats per token"
_SECONDS = {"better": "lower", "unit": "seconds", "decimals": 1}
_CV: dict[str, Any] = {"better": "none", "decimals": 4}

METRICS: dict[str, Any] = {
    "val_loss": {"better": "lower", "unit": _NATS, "decimals": 4, "exponential": True},
    "val_perplexity": {"better": "lower", "decimals": 2},
    "val_accuracy": {"better": "higher", "unit": "share of tokens", "decimals": 4},
    "val_bits_per_byte": {"better": "lower", "unit": "bits per byte", "decimals": 4},
    "best_val_loss": {"better": "lower", "unit": _NATS, "decimals": 4, "exponential": True},
    "best_val_perplexity": {"better": "lower", "decimals": 2},
    "expert_usage_cv": _CV,
    "expert_usage_cv_layer_mean": _CV,
    "expert_usage_cv_layer_sd": _CV,
    "expert_usage_cv_layer_max": _CV,
    "train_loss_last_100": {"better": "lower", "unit": _NATS, "decimals": 4, "exponential": True},
    "aux_loss_last_100": {"better": "none", "unit": _NATS, "decimals": 5},
    "unweighted_aux_loss_last_100": {"better": "none", "unit": _NATS, "decimals": 4},
    "clipped_share": {"better": "none", "unit": "share of updates", "decimals": 4},
    "max_grad_norm": {"better": "none", "decimals": 4},
    "loss_spikes": {"better": "lower", "unit": "updates", "decimals": 0},
    "steps_to_loss": {"better": "lower", "unit": "steps", "decimals": 0},
    "train_loss_tail_sd": {"better": "none", "unit": _NATS, "decimals": 4},
    "training_seconds": _SECONDS,
    "evaluation_seconds": _SECONDS,
    "compile_seconds": _SECONDS,
    "waiting_seconds": _SECONDS,
    "tokens_per_second": {"better": "higher", "unit": "tokens per second", "decimals": 1},
    "peak_memory_bytes": {"better": "lower", "unit": "bytes", "decimals": 0},
    "tokens_seen": {"better": "none", "unit": "tokens", "decimals": 0},
    "unique_tokens": {"better": "none", "unit": "tokens", "decimals": 0},
    "parameters_total": {"better": "none", "unit": "parameters", "decimals": 0},
    "parameters_active": {"better": "none", "unit": "parameters", "decimals": 0},
}
"""What a run comes to, in the order of the tables; the first is primary. docs/schema.md says what each is."""
