"""Measures of how evenly the experts are loaded: pure functions on token counts.

CV is the population sd over the mean (ddof 0): the experts are all there are, not a sample of them. Held to
scipy and hand computations in tests/test_expert_load.py. Who calls it: reports/behaviour.py, reports/load.py.
Shapes: L layers, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def variation(counts: npt.ArrayLike) -> float:
    """Coefficient of variation over experts: population sd / mean. Shape: (E,). NaN without any tokens."""
    numbers = np.asarray(counts, dtype=float)
    return float(np.std(numbers) / numbers.mean()) if numbers.sum() > 0 else math.nan


def global_variation(counts: npt.ArrayLike) -> float:
    """CV of the counts summed over layers, the published definition. Shape: (L, E).

    Layers that are unbalanced in opposite ways cancel here; `layer_variation` does not let them.
    """
    return variation(np.asarray(counts, dtype=float).sum(axis=0))


@dataclass(frozen=True)
class LayerVariation:
    """The CVs of the layers of one run: their mean, population sd and largest value."""

    mean: float
    sd: float
    max: float


def layer_variation(counts: npt.ArrayLike) -> LayerVariation:
    """The CV of each layer, summarised over layers. Shape: (L, E)."""
    cvs = np.array([variation(layer) for layer in np.asarray(counts, dtype=float)])
    return LayerVariation(float(cvs.mean()), float(cvs.std()), float(cvs.max()))


def max_violation(counts: npt.ArrayLike) -> float:
    """MaxVio: how far the busiest expert is above its fair share, max / mean - 1. Shape: (E,).

    Source: Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts".
    """
    numbers = np.asarray(counts, dtype=float)
    return float(numbers.max() / numbers.mean() - 1) if numbers.sum() > 0 else math.nan


def load_entropy(counts: npt.ArrayLike) -> float:
    """Entropy in nats of the experts' shares of the assignments; ln E when balanced. Shape: (E,)."""
    numbers = np.asarray(counts, dtype=float)
    if not numbers.sum() > 0:
        return math.nan
    shares = numbers[numbers > 0] / numbers.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0  # + 0.0: no negative zero for one busy expert


def dead_experts(counts: npt.ArrayLike) -> int:
    """Experts that received no token. Shape: (E,)."""
    return int((np.asarray(counts) == 0).sum())
