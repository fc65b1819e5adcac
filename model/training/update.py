"""The updates of a run, told as events, and the reading of their values: has it diverged?

`update` starts what model/training/passes.py computes and waits for nothing; every ten updates `read_series`
waits, sends what they measured and judges it. The events: model/events.py. Who calls: model/training/loop.py.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from model.events import Event, Measured, Phase, Progressed
from model.training import passes
from model.training.state import TRAIN_VALUES, State

LOG_EVERY_UPDATES = 10
"""Updates between two readings of the device: a reading makes a GPU wait."""
DIVERGED_FACTOR = 3.0
DIVERGED_UPDATES = 50
"""Updates in a row with a loss above `DIVERGED_FACTOR` times the first, after which a run has diverged."""

Events = Iterator[Event]


class Diverged(Exception):
    """The loss ran away; the message says when, how far, and what to change. Trying again would not help."""

    cause = "diverged"


def update(run: State) -> Events:
    """One optimizer update: `accumulate` forward and backward passes, then a step of Muon and AdamW."""
    rate = run.optimizers.set_rate(run.updates)
    if run.graph is None:
        values = yield from _by_kernel(run)
    else:
        yield _progressed(run)
        values = run.graph(run)
        run.step += run.config.train.accumulate
    run.unread.append((rate, values))
    _book_update(run)
    if len(run.unread) >= LOG_EVERY_UPDATES:
        yield from read_series(run)


def _by_kernel(run: State) -> Generator[Event, None, Tensor]:
    """An update whose kernels are launched one by one; says where it is before each pass."""
    sums, noise_std = passes.opened(run), run.noise_std
    for _ in range(run.config.train.accumulate // run.steps_at_once):
        yield _progressed(run)
        inputs_BT, targets_BT = run.batches.steps(run.step, run.steps_at_once)
        passes.add(run, sums, inputs_BT, targets_BT, noise_std)
        run.step += run.steps_at_once
    return passes.closed(run, sums)


def _progressed(run: State) -> Progressed:
    last_loss, speed = (run.series[-1][0], run.series[-1][-1]) if run.series else (None, None)
    return Progressed(Phase.STEP if run.clock.warm else Phase.COMPILE, run.step, last_loss, speed)


def _book_update(run: State) -> None:
    """Count its steps; a process's first update is timed apart, its optimizer too: kernels are built then."""
    if run.clock.warm:
        run.clock.timed_steps += run.config.train.accumulate
        return
    if run.replays:  # now, that the kernels and the optimizers' state exist
        run.graph = passes.Captured(run)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    run.clock.warm = True
    run.clock.lap("compile")


def read_series(run: State) -> Events:
    """Read the last updates' values from the device, send them, and stop a run that has diverged."""
    if not run.unread:
        return
    train, weight = run.config.train, run.config.routing.load_balancing_weight
    rows = torch.stack([values for _, values in run.unread]).tolist()  # waits for the device
    run.clock.lap("training")
    speed = run.clock.steps_per_second(run.step) * train.tokens_per_step
    first = len(run.series)
    for (rate, _), (loss, auxiliary, norm) in zip(run.unread, rows, strict=True):
        run.series.append([loss, weight * auxiliary, auxiliary, rate, norm, speed])
    run.unread.clear()
    for update in range(first, len(run.series)):
        values = dict(zip(TRAIN_VALUES, run.series[update], strict=True))
        yield Measured((update + 1) * train.accumulate, "train", values)
    _require_convergence(run.column("loss"), first, train.accumulate)


def _require_convergence(losses: list[float], first: int, accumulate: int) -> None:
    """Judge the losses from index `first` on.

    Raises:
        Diverged: one is not finite, or 50 in a row are above three times the run's first.
    """
    remedy = "lower train.muon_lr, or routing.noise_std"
    bound = DIVERGED_FACTOR * losses[0]
    for update in range(first, len(losses)):
        step, loss = (update + 1) * accumulate, losses[update]
        if not math.isfinite(loss):
            raise Diverged(f"diverged at step {step}: the training loss is {loss}; {remedy}")
        recent = losses[max(0, update + 1 - DIVERGED_UPDATES) : update + 1]
        if len(recent) == DIVERGED_UPDATES and min(recent) > bound:
            raise Diverged(
                f"diverged at step {step}: the training loss is {loss:.4g}, and has been above {bound:.4g}, "
                f"{DIVERGED_FACTOR:g} times its first value, for {DIVERGED_UPDATES} updates; {remedy}"
            )
