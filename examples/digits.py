"""Handwritten digits with a small network, in torch: width, dropout and step size against the test accuracy.

The data set is the one that scikit-learn ships: 1,797 pictures of 8 × 8. A checkpoint holds the weights, the
optimizer and the random stream, so that a run that goes on gives the bits of one that was never disturbed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from sklearn.datasets import load_digits
from torch.nn import functional


@dataclass(frozen=True)
class Network:
    width: int = 64
    """Units of the hidden layer."""
    dropout: float = 0.0
    activation: Literal["relu", "tanh"] = "relu"


@dataclass(frozen=True)
class Config:
    network: Network = field(default_factory=Network)
    lr: float = 0.1
    steps: int = 300
    batch: int = 64
    """Pictures a step sees."""
    seed: int = 0


METRICS = {
    "test_loss": {"better": "lower", "unit": "nats", "decimals": 4, "exponential": True},
    "test_accuracy": {"better": "higher", "unit": "share", "decimals": 4},
}
SCALES = {"smoke": {"steps": 40}}


def train(config, run):
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(True)
    x, y, x_test, y_test = (part.to(run.device) for part in data())
    model = network(config.network).to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)
    if run.checkpoint:
        kept = torch.load(run.checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["random"])
    model.train()
    for step in range(run.step, config.steps):
        rows = torch.randint(len(x), (config.batch,)).to(run.device)
        loss = functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(step + 1, loss=loss.item())
        if run.due:
            with run.save(step + 1) as path:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "random": torch.get_rng_state()}, path)
        if run.ends:
            return None
    model.eval()
    with torch.no_grad():
        scores = model(x_test)
    return {
        "test_loss": functional.cross_entropy(scores, y_test).item(),
        "test_accuracy": (scores.argmax(1) == y_test).float().mean().item(),
    }


def network(shape):
    kinds = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}
    return torch.nn.Sequential(
        torch.nn.Linear(64, shape.width),
        kinds[shape.activation](),
        torch.nn.Dropout(shape.dropout),
        torch.nn.Linear(shape.width, 10),
    )


def data():
    """Every fourth picture is for the test."""
    pictures, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(pictures / 16, dtype=torch.float32), torch.tensor(digits)
    test = torch.arange(len(x)) % 4 == 0
    return x[~test], y[~test], x[test], y[test]
