"""How evenly the experts are loaded: measures of token counts, and those of every run of a study.

CV is the population sd over the mean (ddof 0): the experts are all there are, not a sample of them. Counts
are of the final evaluation, on the whole held-out split. Printed by reports/sections/load.py. Shapes:
L layers, E experts, ... any leading dimensions, which stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.reading.frames import StudyData
from reports.statistics.inference import Array


@dataclass(frozen=True)
class RunLoad:
    """The measures of one run, taken within it. Shapes: L layers, E experts."""

    shares: Array
    """Each expert's share of its layer's assignments. Shape: (L, E)."""
    global_cv: float
    cv: Array
    """Coefficient of variation by layer. Shape: (L,), like the next two."""
    violation: Array
    entropy: Array
    dead: npt.NDArray[np.int64]
    """Experts without a token, by layer."""


def run_loads(data: StudyData) -> dict[int, RunLoad]:
    """Job → measures, for every finished run that has counts; runs of one shape are computed together."""
    by_shape: dict[tuple[int, ...], tuple[list[int], list[Array]]] = {}
    for job, counts in counts_by_run(data.counts, data.done).items():
        jobs, arrays = by_shape.setdefault(counts.shape, ([], []))
        jobs.append(job)
        arrays.append(counts)
    found: dict[int, RunLoad] = {}
    for jobs, arrays in by_shape.values():
        stack = np.stack(arrays)  # (runs, L, E)
        sums = stack.sum(axis=-1, keepdims=True)
        measures = (
            *(stack / np.where(sums > 0, sums, np.nan), global_variation(stack), variation(stack)),
            *(max_violation(stack), load_entropy(stack), (stack == 0).sum(axis=-1)),
        )
        found |= {job: RunLoad(*row) for job, row in zip(jobs, zip(*measures, strict=True), strict=True)}
    return found


def counts_by_run(counts: pd.DataFrame, done: pd.DataFrame) -> dict[int, Array]:
    """Job → counts (L, E) of its final evaluation; an expert without a row received none."""
    configs = dict(zip(done["job_id"], done["config"], strict=True))
    numbers = counts[["job_id", "layer", "expert", "tokens"]].to_numpy(dtype=np.int64)
    starts = np.flatnonzero(np.diff(numbers[:, 0], prepend=-1))  # rows come job by job
    arrays = {}
    for rows in np.split(numbers, starts[1:]) if len(numbers) else ():
        job, layers, experts, tokens = int(rows[0, 0]), *rows[:, 1:].T
        if job in configs:
            model = configs[job].get("model", {})
            shape = (
                max(int(layers.max()) + 1, model.get("n_layers", 0)),
                max(int(experts.max()) + 1, model.get("n_experts", 0)),
            )
            arrays[job] = np.zeros(shape)
            arrays[job][layers, experts] = tokens
    return arrays


def variation(counts: npt.ArrayLike) -> Any:
    """Coefficient of variation over experts: population sd / mean. Shape: (..., E) → (...).

    NaN where no token was counted.
    """
    numbers, mean = _counts(counts)
    return np.std(numbers, axis=-1) / mean


def global_variation(counts: npt.ArrayLike) -> Any:
    """CV of the counts summed over layers, the published definition. Shape: (..., L, E) → (...).

    Layers that are unbalanced in opposite ways cancel here; the layers' own CVs do not.
    """
    return variation(np.asarray(counts, dtype=float).sum(axis=-2))


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


def _counts(counts: npt.ArrayLike) -> tuple[Array, Array]:
    numbers = np.asarray(counts, dtype=float)
    mean = np.asarray(numbers.mean(axis=-1))
    return numbers, np.where(mean > 0, mean, np.nan)
