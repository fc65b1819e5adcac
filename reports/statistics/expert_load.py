"""Measures of how evenly the experts are loaded: pure functions on token counts.

CV is the population sd over the mean (ddof 0): the experts are all there are, not a sample of them. Held to
scipy and hand computations in tests/statistics/test_expert_load.py. Who calls it: reports/sections/load.py,
reports/figures/comparison.py. Shapes: L layers, E experts, ... any leading dimensions, which stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reports.statistics.inference import Array


def variation(counts: npt.ArrayLike) -> Any:
    """Coefficient of variation over experts: population sd / mean. Shape: (..., E) → (...).

    NaN where no token was counted.
    """
    numbers, mean = _counts(counts)
    return np.std(numbers, axis=-1) / mean


def global_variation(counts: npt.ArrayLike) -> Any:
    """CV of the counts summed over layers, the published definition. Shape: (..., L, E) → (...).

    Layers that are unbalanced in opposite ways cancel here; `layer_variation` does not let them.
    """
    return variation(np.asarray(counts, dtype=float).sum(axis=-2))


@dataclass(frozen=True)
class LayerVariation:
    """The CVs of the layers of one run: their mean, population sd and largest value."""

    mean: float
    sd: float
    max: float


def layer_variation(counts: npt.ArrayLike) -> LayerVariation:
    """The CV of each layer, summarised over layers. Shape: (L, E)."""
    cvs = variation(counts)
    return LayerVariation(float(cvs.mean()), float(cvs.std()), float(cvs.max()))


def max_violation(counts: npt.ArrayLike) -> Any:
    """MaxVio: how far the busiest expert is above its fair share, max / mean - 1. Shape: (..., E) → (...).

    NaN where no token was counted. Source: Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy
    for Mixture-of-Experts".
    """
    numbers, mean = _counts(counts)
    return numbers.max(axis=-1) / mean - 1


def load_entropy(counts: npt.ArrayLike) -> Any:
    """Entropy in nats of the experts' shares of the assignments; ln E when balanced. Shape: (..., E) → (...).

    NaN where no token was counted.
    """
    numbers, mean = _counts(counts)
    shares = numbers / (mean * numbers.shape[-1])[..., None]
    # 0 · ln 0 is 0; + 0.0 makes no negative zero for one busy expert.
    return -(shares * np.log(np.where(numbers > 0, shares, 1.0))).sum(axis=-1) + 0.0


def dead_experts(counts: npt.ArrayLike) -> int:
    """Experts that received no token. Shape: any."""
    return int((np.asarray(counts) == 0).sum())


def _counts(counts: npt.ArrayLike) -> tuple[Array, Array]:
    numbers = np.asarray(counts, dtype=float)
    mean = np.asarray(numbers.mean(axis=-1))
    return numbers, np.where(mean > 0, mean, np.nan)
