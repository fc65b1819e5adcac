"""One update's work on the device: passes forward and backward, then Muon and AdamW. It waits for nothing.

On a GPU an update becomes one CUDA graph where its bits repeat (model/training/setting.py): its hundreds of
kernels take the host longer to launch than the card to compute. Who calls: model/training/update.py.

Shapes: B windows of a step, T time, L layers, E experts, S steps of an update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.engines.graph import Replay
from model.training.state import State


@dataclass
class Sums:
    """Of an update so far, on the device."""

    losses: Tensor
    """(cross-entropy, unweighted auxiliary loss), the mean over the update's steps when all are in."""
    counts_LE: Tensor
    """Assignments."""


def opened(run: State) -> Sums:
    """Nothing yet: before an update's first pass."""
    model = run.config.model
    run.model.open_gradients()
    counts_LE = torch.zeros(model.n_layers, model.n_experts, dtype=torch.int64, device=run.device)
    return Sums(torch.zeros(2, device=run.device), counts_LE)


def add(run: State, sums: Sums, inputs_BT: Tensor, targets_BT: Tensor, noise_std: float | Tensor) -> None:
    """Add the gradient of the next step, or of several together, to the update's."""
    windows = run.windows_at_once * run.steps_at_once
    losses, counts_LE = torch.zeros_like(sums.losses), torch.zeros_like(sums.counts_LE)
    for inputs, targets in zip(inputs_BT.split(windows), targets_BT.split(windows), strict=True):
        pieces = len(inputs_BT) / len(inputs)
        seen_LE = sums.counts_LE + counts_LE
        piece_losses, piece_counts_LE = _piece(run, inputs, targets, noise_std, seen_LE, pieces)
        losses += piece_losses / pieces
        counts_LE += piece_counts_LE
    sums.losses += losses * run.steps_at_once / run.config.train.accumulate
    sums.counts_LE += counts_LE


def closed(run: State, sums: Sums) -> Tensor:
    """Move the weights; returns (cross-entropy, unweighted auxiliary loss, gradient norm) of the update."""
    norm = run.optimizers.move(sums.counts_LE)
    if run.config.routing.bias_rate:
        run.model.shift_biases(sums.counts_LE, run.config.routing.bias_rate)
    return torch.cat([sums.losses, norm.view(1)])


class Captured:
    """The same update as one graph; keeps no reference to the run, whose tensors go with the run."""

    def __init__(self, run: State) -> None:
        train = run.config.train
        shape = (train.accumulate * train.batch_size, train.seq_len)
        self._inputs_BT = torch.empty(shape, dtype=torch.int64, device=run.device)
        self._targets_BT = torch.empty_like(self._inputs_BT)
        # float64: what a number of the host is rounded from.
        self._noise_std = torch.empty((), dtype=torch.float64, device=run.device)
        self._replay = Replay(lambda: self._whole(run), [run.streams["noise"]])

    def __call__(self, run: State) -> Tensor:
        """The run's next update, as `opened`, `add` and `closed` make it."""
        inputs_BT, targets_BT = run.batches.steps(run.step, run.config.train.accumulate)
        self._inputs_BT.copy_(inputs_BT)
        self._targets_BT.copy_(targets_BT)
        self._noise_std.fill_(run.noise_std)
        return self._replay()[0].clone()

    def _whole(self, run: State) -> list[Tensor]:
        sums, windows = opened(run), run.steps_at_once * run.config.train.batch_size
        parts = zip(self._inputs_BT.split(windows), self._targets_BT.split(windows), strict=True)
        for inputs_BT, targets_BT in parts:
            add(run, sums, inputs_BT, targets_BT, self._noise_std)
        return [closed(run, sums)]


def _piece(
    run: State,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    noise_std: float | Tensor,
    seen_LE: Tensor,
    pieces: float,
) -> tuple[Tensor, Tensor]:
    """Forward and backward over one of `pieces` parts of a batch; 1 unless train.micro_batch splits it."""
    routing, noise, together = run.config.routing, run.streams["noise"], run.steps_at_once
    seen = seen_LE if routing.balance == "batch" else None
    with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.precision == "bf16"):
        loss, layers = run.model.loss(inputs_BT, targets_BT, noise_std, noise, seen, together)
    auxiliary = layers.aux_loss.sum()
    total = loss + routing.load_balancing_weight * auxiliary
    if layers.z_loss is not None:
        total = total + routing.z_loss_weight * layers.z_loss.sum()
    # All are divided alike: the gradient is that of the mean over the update's batches.
    (total * together / (run.config.train.accumulate * pieces)).backward()
    return torch.stack([loss.detach(), auxiliary.detach()]), layers.counts_E
