"""One update of a run, and the reading of its values: forward, backward, Muon and AdamW; has it diverged?

`update` computes on the device and waits for nothing; every ten updates `read_series` waits, sends what they
measured and judges it. The events: model/events.py. Who calls: model/training/loop.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from model.events import Event, Measured, Phase, Progressed
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
    train, model = run.config.train, run.config.model
    losses = torch.zeros(2, device=run.device)
    counts_LE = torch.zeros(model.n_layers, model.n_experts, dtype=torch.int64, device=run.device)
    run.model.open_gradients()
    for _ in range(train.accumulate // run.steps_at_once):
        last_loss, speed = (run.series[-1][0], run.series[-1][-1]) if run.series else (None, None)
        phase = Phase.STEP if run.clock.warm else Phase.COMPILE
        yield Progressed(phase, run.step, last_loss, speed)
        step_losses, step_counts_LE = _forward_backward(run, counts_LE)
        losses += step_losses * run.steps_at_once / train.accumulate
        counts_LE += step_counts_LE
        run.step += run.steps_at_once
    rate, norm = run.optimizers.step(run.updates - 1, counts_LE)
    if run.config.routing.bias_rate:
        run.model.shift_biases(counts_LE, run.config.routing.bias_rate)
    run.unread.append((rate, torch.cat([losses, norm.view(1)])))
    _book_update(run)
    if len(run.unread) >= LOG_EVERY_UPDATES:
        yield from read_series(run)


def _forward_backward(run: State, seen_LE: Tensor) -> tuple[Tensor, Tensor]:
    """Add the gradient of the next step, or of several together, to the update's.

    Args:
        seen_LE: assignments of the update's steps before these.

    Returns:
        (cross-entropy, unweighted auxiliary loss), the mean over the steps, and their assignments, counts_LE.
    """
    inputs_BT, targets_BT = run.batches.steps(run.step, run.steps_at_once)
    windows = run.windows_at_once * run.steps_at_once
    losses, counts_LE = torch.zeros(2, device=run.device), torch.zeros_like(seen_LE)
    for inputs, targets in zip(inputs_BT.split(windows), targets_BT.split(windows), strict=True):
        pieces = len(inputs_BT) / len(inputs)
        piece_losses, piece_counts_LE = _piece(run, inputs, targets, seen_LE + counts_LE, pieces)
        losses += piece_losses / pieces
        counts_LE += piece_counts_LE
    return losses, counts_LE


def _piece(
    run: State, inputs_BT: Tensor, targets_BT: Tensor, seen_LE: Tensor, pieces: float
) -> tuple[Tensor, Tensor]:
    """Forward and backward over one of `pieces` parts of a batch; 1 unless train.micro_batch splits it."""
    routing, noise, together = run.config.routing, run.streams["noise"], run.steps_at_once
    seen = seen_LE if routing.balance == "batch" else None
    with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.precision == "bf16"):
        loss, layers = run.model.loss(inputs_BT, targets_BT, run.noise_std, noise, seen, together)
    auxiliary = layers.aux_loss.sum()
    total = loss + routing.load_balancing_weight * auxiliary
    if layers.z_loss is not None:
        total = total + routing.z_loss_weight * layers.z_loss.sum()
    # All are divided alike: the gradient is that of the mean over the update's batches.
    (total * together / (run.config.train.accumulate * pieces)).backward()
    return torch.stack([loss.detach(), auxiliary.detach()]), layers.counts_E


def _book_update(run: State) -> None:
    """Count its steps; a process's first update is timed apart, its optimizer too: kernels are built then."""
    if run.clock.warm:
        run.clock.timed_steps += run.config.train.accumulate
        return
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
