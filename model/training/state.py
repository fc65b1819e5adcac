"""The state of a run at an update boundary: how it starts, what a checkpoint keeps, how it comes back.

Starting sets this process's default random generator and torch's deterministic mode: one run at a time in a
process. The loop that moves it: model/training/loop.py. The file: model/training/checkpoint.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.config import RunConfig
from model.engines.device import default_generator
from model.engines.device import prepare as prepare_device
from model.events import Asked, Resumed
from model.network.moe import strength
from model.network.transformer import LanguageModel, build
from model.randomness import stream_seed
from model.text.dataset import Dataset, prepare
from model.training import checkpoint
from model.training.batches import Batches, batches_on
from model.training.checkpoint import CheckpointRefused, Facts
from model.training.memory import peak_memory_bytes, reset_peak_memory
from model.training.optimizer import Optimizers
from model.training.setting import settle
from model.training.stopwatch import CLOCKS, Stopwatch

if TYPE_CHECKING:
    from model.training.passes import Captured

TRAIN_VALUES = (
    "loss",
    "aux_loss",
    "unweighted_aux_loss",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
)
"""What is recorded of each update, in the order of the series' columns."""


@dataclass
class State:
    """Everything that changes while a run goes on, and what it is made of."""

    config: RunConfig
    device: torch.device
    precision: str
    """fp32 or bf16: by rule from the device, unless the configuration fixes it."""
    data: Dataset
    batches: Batches
    model: LanguageModel
    optimizers: Optimizers
    streams: dict[str, torch.Generator]
    """`dropout`, the device's default generator, and `noise`, the routing's own."""
    environment: dict[str, Any]
    steps_at_once: int
    """Steps of an update that go through the model as one batch."""
    windows_at_once: int
    """Windows of one pass, in training unless several steps go together, and in evaluation."""
    replays: bool
    """Whether its updates become one CUDA graph, once the first is made."""
    graph: Captured | None = None
    exact: bool = True
    step: int = 0
    series: list[list[float]] = field(default_factory=list)
    """TRAIN_VALUES of each update that has been read from the device."""
    unread: list[tuple[float, Tensor]] = field(default_factory=list)
    """Of the updates since: learning rate, and (loss, unweighted auxiliary loss, norm) on the device."""
    val_losses: list[float] = field(default_factory=list)
    earlier_peak_bytes: int = 0
    asked: Asked = field(default_factory=Asked)
    clock: Stopwatch = field(default_factory=Stopwatch)
    saved_step: int = 0
    saved_at: float = 0.0

    def column(self, name: str) -> list[float]:
        """One recorded value of every update so far."""
        index = TRAIN_VALUES.index(name)
        return [row[index] for row in self.series]

    @property
    def noise_std(self) -> float:
        """The routing noise's strength in the update that is under way: a function of the step alone."""
        return strength(self.config.routing, self.updates, self.config.train.updates)

    @property
    def updates(self) -> int:
        return self.step // self.config.train.accumulate

    @property
    def peak_memory_bytes(self) -> int:
        """The run's peak over all processes that it has been in."""
        return max(self.earlier_peak_bytes, peak_memory_bytes(self.device))


def start(
    config: RunConfig,
    cache_dir: Path,
    device_name: str,
    resume_from: Sequence[tuple[str, str]],
    asked: Asked | None = None,
    source: str | None = None,
) -> tuple[State, Resumed]:
    """A run that is ready for its next step, from the first usable checkpoint or from nothing.

    Raises:
        ConfigError: the data cannot be had, or does not fit the configuration.
    """
    clock = Stopwatch()
    device = prepare_device(device_name)
    reset_peak_memory(device)
    data = prepare(config, cache_dir)
    setting = settle(config, device)
    seed, init = config.seed, stream_seed(config.seed, "init")
    model = build(config.model, config.train.seq_len, init, device, setting.engine, config.routing)
    environment = checkpoint.numeric_environment(
        device, setting.precision, setting.computing, source, setting.attention
    )
    run = State(
        config=config,
        device=device,
        precision=setting.precision,
        data=data,
        batches=batches_on(device, data),
        model=model,
        optimizers=Optimizers(model, config.train, config.protocol),
        streams={"dropout": default_generator(device), "noise": torch.Generator(device)},
        environment=environment,
        steps_at_once=setting.steps_at_once,
        windows_at_once=setting.windows_at_once,
        replays=setting.replays,
        exact=setting.deterministic,
        asked=asked or Asked(),
        clock=clock,
    )
    for name, generator in run.streams.items():
        generator.manual_seed(stream_seed(seed, name))
    resumed = replace(_resume(run, resume_from), remarks=setting.remarks)
    clock.lap("waiting")
    run.saved_step, run.saved_at = run.step, time.monotonic()
    clock.begin(run.step)
    return run, resumed


def tensors(run: State) -> dict[str, Tensor]:
    """Everything that the next step depends on, by its name in the checkpoint; live tensors, not copies."""
    weights = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    return weights | {f"optimizer.{name}": tensor for name, tensor in run.optimizers.state().items()}


def save(run: State, folder: Path) -> checkpoint.Written:
    """Write the run's state; only at an update boundary, with the series read.

    Raises:
        OSError: it could not be written.
    """
    assert not run.unread, "the series is read before a checkpoint"
    assert run.step % run.config.train.accumulate == 0, "gradients in flight are not saved"
    streams = {_stream_name(name, run.device): each.get_state() for name, each in run.streams.items()}
    series = torch.tensor(run.series, dtype=torch.float64).view(-1, len(TRAIN_VALUES))
    facts = Facts(
        step=run.step,
        config_hash=run.config.hash,
        environment=run.environment,
        exact=run.exact,
        seconds=run.clock.seconds,
        timed_steps=run.clock.timed_steps,
        val_losses=run.val_losses,
        peak_memory_bytes=run.peak_memory_bytes,
    )
    return checkpoint.write(folder, tensors(run) | streams | {"series": series}, facts)


def _resume(run: State, candidates: Sequence[tuple[str, str]]) -> Resumed:
    """Load the first candidate that verifies, newest first, and say why the others were not used."""
    refused: list[str] = []
    for path, sha256 in candidates:
        try:
            saved, facts = checkpoint.read(Path(path), sha256, run.config.hash, tensors(run))
            changed = _restore(run, saved, facts)
        except CheckpointRefused as reason:
            refused.append(f"{path}: {reason}")
            continue
        return Resumed(run.step, path, run.exact, refused, run.environment, changed)
    return Resumed(step=0, exact=run.exact, refused=refused, environment=run.environment)


def _restore(run: State, saved: dict[str, Tensor], facts: Facts) -> list[str]:
    """Check what `read` could not know, and only then change the run.

    Returns what its environment and that of the checkpoint differ in.
    """
    train = run.config.train
    series = saved.get("series", torch.empty(0))
    if not 0 <= facts.step < train.steps or facts.step % train.accumulate:
        raise CheckpointRefused(f"step {facts.step} is not an update boundary of this run")
    if series.dtype != torch.float64 or series.shape != (facts.step // train.accumulate, len(TRAIN_VALUES)):
        raise CheckpointRefused("the series does not have a row for each update")
    if set(facts.seconds) != set(CLOCKS) or not all(math.isfinite(s) for s in facts.seconds.values()):
        raise CheckpointRefused("the timings are not those of a run")
    states = _stream_states(run, saved, facts)

    with torch.no_grad():
        for name, tensor in tensors(run).items():
            tensor.copy_(saved[name])
    for name, generator in run.streams.items():
        generator.set_state(states[name])
    before, now = facts.environment, run.environment
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    run.exact = run.exact and facts.exact and not names
    run.step, run.series = facts.step, series.tolist()
    run.val_losses, run.earlier_peak_bytes = list(facts.val_losses), facts.peak_memory_bytes
    run.clock.seconds, run.clock.timed_steps = dict(facts.seconds), facts.timed_steps
    return [f"{name}: {before.get(name)} → {now.get(name)}" for name in names]


def _stream_states(run: State, saved: dict[str, Tensor], facts: Facts) -> dict[str, Tensor]:
    """The streams' states, tried first on spare generators.

    Another kind of device has other generators: there the streams start anew, seeded by this step.
    """
    states = {}
    for name in run.streams:
        trial = torch.Generator(run.device)
        trial.manual_seed(stream_seed(run.config.seed, f"{name}:{facts.step}"))
        state = saved.get(_stream_name(name, run.device))
        if state is None and facts.environment.get("device_type") == run.device.type:
            raise CheckpointRefused(f"the {name} stream's state is missing")
        try:
            if state is not None:
                trial.set_state(state.clone())
        except (RuntimeError, TypeError) as error:
            raise CheckpointRefused(f"the {name} stream's state is damaged") from error
        states[name] = trial.get_state()
    return states


def _stream_name(name: str, device: torch.device) -> str:
    return f"stream.{name}.{device.type}"
