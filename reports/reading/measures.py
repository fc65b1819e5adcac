"""The measures of a run, as the study's program declared them: unit, decimals, which way is better.

They come from the study's row, never from the program's file, which may be gone or changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One number that a finished run comes to, and how it is written."""

    column: str
    label: str
    decimals: int = 4
    unit: str = ""
    better: str = "none"
    """lower, higher or none."""
    logarithmic: bool = False
    """The exponential is a perplexity: a difference d is 100 · (exp(d) - 1) percent of it."""
    ratio: bool = False
    """Claims compare its logarithms: it is above 0, and its spread over seeds grows with its size."""

    @property
    def higher_is_better(self) -> bool:
        return self.better == "higher"

    @property
    def margin(self) -> float | None:
        """The margin of equivalence where a study declares none, in the unit; None: there is none."""
        return math.log(1.005) if self.logarithmic else None

    @property
    def margin_origin(self) -> str:
        return "by default: 0.5 % of the perplexity" if self.logarithmic else "none was declared"

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


LOAD, LAYER_LOAD = "expert_usage_cv", "expert_usage_cv_layer_mean"
AUX_LOSS = "aux_loss_last_100"
_LABELS = {
    "val_loss": "Val loss",
    "val_perplexity": "Val PPL",
    "best_val_perplexity": "Best Val PPL",
    "val_accuracy": "Accuracy",
    "val_bits_per_byte": "Bits per byte",
    AUX_LOSS: "Aux loss, last 100 steps",
    LOAD: "Expert Usage CV",
    LAYER_LOAD: "Mean layer CV",
    "tokens_per_second": "Tokens/s",
}
"""What tables call a measure of that name whose study has no label for it: one of an earlier build."""
_RATIOS = {LOAD, LAYER_LOAD}
"""Compared as ratios in studies of earlier builds, which do not say."""


def measure(declared: Mapping[str, Any]) -> Measure:
    """A measure as `studies.program` has it; all but its name may lack."""
    name = str(declared["name"])
    return Measure(
        name,
        str(declared.get("label") or _LABELS.get(name, name)),
        int(declared.get("decimals", 4)),
        str(declared.get("unit") or ""),
        str(declared.get("better") or "none"),
        bool(declared.get("exponential")),
        bool(declared.get("ratio", name in _RATIOS)),
    )


ELSEWHERE = (
    *(LOAD, LAYER_LOAD, "expert_usage_cv_layer_sd", "expert_usage_cv_layer_max", AUX_LOSS, "best_val_loss"),
    *("unweighted_aux_loss_last_100", "clipped_share", "max_grad_norm", "loss_spikes", "train_loss_last_100"),
    *("steps_to_loss", "train_loss_tail_sd", "training_seconds", "evaluation_seconds", "compile_seconds"),
    *("waiting_seconds", "tokens_per_second", "peak_memory_bytes", "tokens_seen", "unique_tokens"),
    *("parameters_total", "parameters_active"),
)
"""Names with a section of their own, where they are recorded: load, training, cost, provenance."""
SOUGHT = (*_LABELS, *(name for name in ELSEWHERE if name not in _LABELS))
"""Columns that sections look for, which only some programs measure."""


def results(measures: Mapping[str, Measure]) -> tuple[Measure, ...]:
    """What the tables of results show: the measures without a section of their own, in their order."""
    found = [measure for name, measure in measures.items() if name not in ELSEWHERE]
    place = {name: at for at, name in enumerate(_LABELS)}  # the published study's, as in its tables
    return tuple(sorted(found, key=lambda measure: place.get(measure.column, len(place))))
