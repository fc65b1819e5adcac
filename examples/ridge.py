"""Ridge regression by gradient descent, in NumPy alone: what a training program looks like at its smallest.

How many epochs, how large a step, how strong a penalty? The data are drawn from a fixed seed; the run's own
seed draws where the weights begin and which rows a step sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Config:
    lr: float = 0.05
    """Step size."""
    penalty: float = 0.0
    """Weight of the squared norm in the loss."""
    steps: int = 400
    batch: int = 16
    """Rows a step sees."""
    seed: int = 0

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr = {self.lr}: must be above 0")


METRICS = {
    "test_error": {"better": "lower", "unit": "mean square", "decimals": 5},
    "train_error": {"better": "lower", "unit": "mean square", "decimals": 5},
    "weight_norm": "none",
}
"""What a run comes to; the first is primary."""


def train(config, run):
    (x, y), (x_test, y_test) = data()
    weights = np.random.default_rng(config.seed).normal(size=x.shape[1])
    if run.checkpoint:
        with np.load(run.checkpoint) as kept:
            weights = kept["weights"]
    for step in range(run.step, config.steps):
        # Drawn from the step, not from the step before: a run that goes on draws what it would have drawn.
        rows = np.random.default_rng((config.seed, step)).integers(len(x), size=config.batch)
        error = x[rows] @ weights - y[rows]
        weights = weights - config.lr * (x[rows].T @ error / config.batch + config.penalty * weights)
        run.log(step + 1, loss=np.mean(error**2))
        if run.due:
            with run.save(step + 1) as path, path.open("wb") as file:
                np.savez(file, weights=weights)
        if run.ends:
            return None
    return {
        "test_error": np.mean((x_test @ weights - y_test) ** 2),
        "train_error": np.mean((x @ weights - y) ** 2),
        "weight_norm": np.linalg.norm(weights),
    }


def data(rows=200, columns=40):
    """Rows to train on and to test on: many columns, few of which matter, and noise."""
    draw = np.random.default_rng(2024)
    truth = np.where(np.arange(columns) < 5, 1.0, 0.0)
    x = draw.normal(size=(2 * rows, columns))
    y = x @ truth + draw.normal(size=2 * rows)
    return (x[:rows], y[:rows]), (x[rows:], y[rows:])
