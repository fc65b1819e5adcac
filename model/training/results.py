"""A finished run's wide row: figures of its loss curve and its expert load. Pure functions on plain lists.

The keys of `stability` and `load` are columns of the table `results`; docs/schema.md explains them.
Who calls: model/training/loop.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

SPIKE_WINDOW_UPDATES = 20
SPIKE_LEAST_UPDATES = 10
SPIKE_DEVIATIONS = 6.0


def stability(
    losses: Sequence[float],
    norms: Sequence[float],
    accumulate: int,
    grad_clip: float,
    target_loss: float | None,
) -> dict[str, float | int | None]:
    """How steadily a run trained, from one value an update.

    Args:
        losses: training cross-entropy of each update, nats per token.
        norms: global gradient norm of each update, before clipping.
        accumulate: steps an update; steps, not updates, are what `steps_to_loss` counts.
        target_loss: the declared loss; None declares none.
    """
    below = (i for i, loss in enumerate(losses, 1) if target_loss is not None and loss < target_loss)
    first = next(below, None)
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "clipped_share": sum(norm > grad_clip for norm in norms) / len(norms),
        "max_grad_norm": max(norms),
        "loss_spikes": loss_spikes(losses),
        "steps_to_loss": None if first is None else first * accumulate,
        # Sample standard deviation of the last tenth of the updates; a single one has none.
        "train_loss_tail_sd": statistics.stdev(tail) if len(tail) > 1 else None,
    }


def loss_spikes(losses: Sequence[float]) -> int:
    """Updates whose loss lies more than 6 median absolute deviations above the running median.

    Median and deviations are of the 20 updates before it, unscaled; the first 10 updates of a run, which
    have too little before them, are not judged.
    """
    spikes = 0
    for i in range(SPIKE_LEAST_UPDATES, len(losses)):
        before = losses[max(0, i - SPIKE_WINDOW_UPDATES) : i]
        middle = statistics.median(before)
        deviation = statistics.median(abs(loss - middle) for loss in before)
        spikes += losses[i] > middle + SPIKE_DEVIATIONS * deviation
    return spikes


def load(counts_LE: Sequence[Sequence[int]]) -> dict[str, float]:
    """Coefficients of variation of the expert load: population sd over mean (ddof 0).

    Global: of the counts summed over layers, the published study's definition, where layers that lean in
    opposite ways cancel. Per layer: mean, population sd and largest.
    """
    by_layer = [coefficient_of_variation(counts) for counts in counts_LE]
    return {
        "expert_usage_cv": coefficient_of_variation([sum(column) for column in zip(*counts_LE, strict=True)]),
        "expert_usage_cv_layer_mean": statistics.fmean(by_layer),
        "expert_usage_cv_layer_sd": statistics.pstdev(by_layer),
        "expert_usage_cv_layer_max": max(by_layer),
    }


def coefficient_of_variation(counts: Sequence[int]) -> float:
    """Population standard deviation over mean."""
    return statistics.pstdev(counts) / statistics.fmean(counts)


def mean_of_last_steps(values: Sequence[float], accumulate: int) -> float:
    """Mean over the updates that lie whole within the last 100 steps; the last update at least."""
    return statistics.fmean(values[-max(1, 100 // accumulate) :])
