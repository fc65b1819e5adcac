"""One tiny update, twice: does a device compute what it should, and the same bits each time?

Seeds the device's default generator; call it before a run seeds its streams. Who asks:
model/training/setting.py before a run on a GPU, and the trainer's check (runner/work/trainer.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from model.config import RunConfig
from model.engines.choice import in_a_line
from model.engines.device import default_generator
from model.engines.graph import Replay
from model.network.transformer import build
from model.training.optimizer import Optimizers

VOCABULARY = 64
NEAR_NATS = 1.0
"""An untrained model spreads its belief over all tokens: its loss is ln(VOCABULARY), within this."""
REPLAYS = 2
"""Of the graph: the second shows that the random streams move on."""


def twice(config: RunConfig, engine: str, precision: str, device: torch.device) -> str:
    """What is wrong with two equal updates in the run's kind of model; empty where nothing is.

    Raises:
        RuntimeError: the device cannot do it; in strict mode also where an operation repeats no bits.
    """
    small = _small(config)
    one, other = (update(small, engine, precision, device) for _ in range(2))
    loss = one[0].item()
    if not abs(loss - math.log(VOCABULARY)) < NEAR_NATS:
        return f"the loss of untrained weights is {loss:.3g}, and should be near {math.log(VOCABULARY):.2f}"
    differing = sum(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return f"two equal updates differ in {differing} of {len(one)} tensors" if differing else ""


def update(config: RunConfig, engine: str, precision: str, device: torch.device) -> list[Tensor]:
    """The loss of one update from fixed weights and draws, and every weight after it."""
    return prepared(config, engine, precision, device)[0]()


def replay_differs(config: RunConfig, engine: str, precision: str, device: torch.device) -> str:
    """What is wrong with an update that is replayed as a CUDA graph; empty where it repeats every bit."""
    small = _small(config)
    step, _ = prepared(small, engine, precision, device)
    due = [[each.clone() for each in step()] for _ in range(1 + REPLAYS)]
    step, noise = prepared(small, engine, precision, device)
    step()
    try:
        replay = Replay(step, [noise])
        found = [[each.clone() for each in replay()] for _ in range(REPLAYS)]
    except RuntimeError as error:
        return in_a_line(error)
    differing = sum(
        not torch.equal(a, b)
        for one, other in zip(due[1:], found, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    return f"its bits differ in {differing} of {REPLAYS * len(due[0])} tensors" if differing else ""


def prepared(
    config: RunConfig, engine: str, precision: str, device: torch.device
) -> tuple[Callable[[], list[Tensor]], torch.Generator]:
    """That update, to be made again and again, each from where the last one led; and its noise's stream."""
    train, routing = config.train, config.routing
    model = build(config.model, train.seq_len, 0, device, engine, routing).train()
    optimizers = Optimizers(model, train, "sound")  # whose first update moves the weights
    default_generator(device).manual_seed(0)
    noise = torch.Generator(device).manual_seed(0)
    tokens_N = torch.arange(train.tokens_per_step, device=device) * 7 % VOCABULARY
    tokens_BT = tokens_N.view(train.batch_size, train.seq_len)

    def step() -> list[Tensor]:
        model.open_gradients()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss, layers = model.loss(tokens_BT, tokens_BT.roll(1, 1), 0.1, noise)
        (loss + 0.01 * layers.aux_loss.sum()).backward()
        optimizers.step(0, layers.counts_E)
        return [loss.detach(), *(parameter.detach() for parameter in model.parameters())]

    return step, noise


def _small(config: RunConfig) -> RunConfig:
    """One narrow layer with the run's heads and routing: what decides which kernels there are."""
    narrow = {"n_layers": 1, "n_heads": 2, "d_model": 2 * config.model.d_head, "d_ff": 64}
    short = {"batch_size": 2, "seq_len": 32, "micro_batch": 0, "steps": 1, "accumulate": 1, "eval_every": 0}
    return config.with_values({**narrow, **short, "vocab_size": VOCABULARY})
