"""`train.engine=compiled`: the plain formulas through torch.compile, here for a CPU, by the C++ compiler.

What it computes, that runs are the same bits again, and that a study compiles once and not once a run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.events import Checkpointed, Request
from model.network.transformer import build
from tests.training_runs import (
    TINY,
    checkpoints,
    measured,
    run,
    run_until,
    same_tensors,
)

CPU = torch.device("cpu")
ONE_LAYER = TINY.with_values({"n_layers": 1})  # building takes most of the time, by the layer
COMPILED = ONE_LAYER.with_values({"engine": "compiled", "steps": 16})
UNDROPPED = ONE_LAYER.with_values({"dropout": 0.0, "z_loss_weight": 1.0})
"""What is the same with two engines, each of which draws dropout in another way: one graph for both tests."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU"),
    pytest.mark.usefixtures("counting"),
]


def graphs() -> int:
    """How many graphs this process has compiled."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def losses(events: list[Any]) -> list[float]:
    return [values["loss"] for (_, split), (values, _) in measured(events).items() if split == "train"]


def test_the_loss_and_its_gradients_are_those_of_the_plain_formulas() -> None:
    config = UNDROPPED.model
    tokens = torch.randint(config.vocab_size, (4, 8), generator=torch.Generator().manual_seed(0))
    found = []
    for engine in ("compiled", "plain"):
        model = build(config, 8, 3, CPU, engine, UNDROPPED.routing).train()
        loss, layers = model.loss(
            tokens, tokens.roll(1, 1), 0.5, torch.Generator().manual_seed(0), micro_batches=2
        )
        assert layers.z_loss is not None
        (loss + layers.aux_loss.sum() + layers.z_loss.sum()).backward()
        found.append([loss.detach(), layers.counts_E, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_update_is_the_same_as_with_the_plain_engine(tmp_path: Path) -> None:
    """One, from equal weights, and the loss after it: more would let rounding grow, through each choice."""
    config = UNDROPPED.with_values({"noise_std": 0.0, "steps": 2, "eval_every": 0})
    found = []
    for name in ("compiled", "plain"):
        values = measured(run(config.with_values({"engine": name}), tmp_path))
        train, val = values[2, "train"][0], values[2, "val"][0]
        found.append([train["loss"], train["gradient_norm"], val["loss"], val["router_entropy"]])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_runs_of_one_shape_share_what_is_compiled_and_are_the_same_bits(tmp_path: Path) -> None:
    """Fresh as reused, interrupted as not, at any strength of the noise; annealing moves it each update."""
    whole = run(COMPILED, tmp_path / "whole", checkpoint_seconds=0)
    assert whole[0].environment["engine"].startswith("compiled, ")
    before = graphs()
    again = run(COMPILED, tmp_path / "again", checkpoint_seconds=0)
    assert measured(again) == measured(whole)
    first = run_until(COMPILED, tmp_path / "first", 8, Request.STOP)
    assert isinstance(first[-1], Checkpointed)
    last = run(COMPILED, tmp_path / "last", resume_from=checkpoints(first), checkpoint_seconds=0)
    assert last[0].exact
    assert same_tensors(checkpoints(last)[0][0], checkpoints(whole)[0][0])
    for values in ({"noise_std": 0.0}, {"load_balancing_weight": 0.0}, {"seed": 7}):
        other = run(COMPILED.with_values(values), tmp_path / "other")
        assert losses(other) != losses(whole)
    assert graphs() == before
    run(COMPILED.with_values({"noise": "annealed"}), tmp_path / "annealed")
    assert graphs() == before + 1  # another kind of routing, and all of its strengths
