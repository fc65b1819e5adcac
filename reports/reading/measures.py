"""The measures of a run: a column of `results`, its name on a page, its unit, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A column of `results` and how it is written."""

    column: str
    label: str
    decimals: int
    unit: str = ""
    higher_is_better: bool = False
    margin: float | None = None
    """The margin of equivalence where a study declares none, in the unit; None: there is no such default."""
    margin_origin: str = "none was declared"
    logarithmic: bool = False
    """The exponential is a perplexity: a difference d is 100 · (exp(d) - 1) percent of it."""
    ratio: bool = False
    """Claims compare its logarithms: it is above 0, and its spread over seeds grows with its size."""

    @property
    def axis(self) -> str:
        """The label of an axis: `Val loss (nats per token)`."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def named(self) -> str:
        """The column with its unit: `val_loss, nats per token`."""
        return f"{self.column}, {self.unit}" if self.unit else self.column

    def percent(self, difference: float) -> float:
        """A difference as a change of the perplexity, in percent; NaN for a measure that has none."""
        return 100 * math.expm1(difference) if self.logarithmic else math.nan


LOSS = Measure(
    *("val_loss", "Val loss", 4, "nats per token"),
    margin=math.log(1.005),
    margin_origin="by default: 0.5 % of the perplexity",
    logarithmic=True,
)
PERPLEXITY = Measure("val_perplexity", "Val PPL", 2)
BEST_PERPLEXITY = Measure("best_val_perplexity", "Best Val PPL", 2)
ACCURACY = Measure("val_accuracy", "Accuracy", 4, "share of tokens", higher_is_better=True)
BITS = Measure("val_bits_per_byte", "Bits per byte", 4, "bits per byte")
AUX_LOSS = Measure("aux_loss_last_100", "Aux loss, last 100 steps", 5, "nats per token")
LOAD = Measure("expert_usage_cv", "Expert Usage CV", 4, ratio=True)
LAYER_LOAD = Measure("expert_usage_cv_layer_mean", "Mean layer CV", 4, ratio=True)
SPEED = Measure("tokens_per_second", "Tokens/s", 0, "tokens per second", higher_is_better=True)

SOUGHT = (
    *("val_loss", "val_perplexity", "val_accuracy", "val_bits_per_byte", "best_val_loss"),
    *("best_val_perplexity", "expert_usage_cv", "expert_usage_cv_layer_mean", "expert_usage_cv_layer_sd"),
    *("expert_usage_cv_layer_max", "train_loss_last_100", "aux_loss_last_100"),
    *("unweighted_aux_loss_last_100", "clipped_share", "max_grad_norm", "loss_spikes", "steps_to_loss"),
    *("train_loss_tail_sd", "training_seconds", "evaluation_seconds", "compile_seconds", "waiting_seconds"),
    *("tokens_per_second", "peak_memory_bytes", "tokens_seen", "unique_tokens", "parameters_total"),
    "parameters_active",
)
"""Columns that sections look for, which only some programs measure."""
_KNOWN = (LOSS, PERPLEXITY, BEST_PERPLEXITY, ACCURACY, BITS, AUX_LOSS, LOAD, LAYER_LOAD, SPEED)


def measure(column: str) -> Measure:
    """How a column is written; one without an entry here keeps its own name."""
    return next((known for known in _KNOWN if known.column == column), Measure(column, column, 4))
