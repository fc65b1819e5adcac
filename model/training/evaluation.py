"""One pass over a held-out split: loss, accuracy, expert load and what the routers do.

Dropout and routing noise are off; every target is scored once. Sums are added up on the device and read once
at the end. The pass draws from a generator of its own, so it never disturbs the training streams.
Who drives it, batch by batch: model/training/loop.py.

Shapes: W windows, T time, B batch, L layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.network.transformer import LanguageModel
from model.randomness import stream_seed
from model.text.dataset import HeldOut


@dataclass(frozen=True)
class Evaluation:
    """What one pass found; `values` are named as in the metrics table."""

    values: dict[str, float]
    """loss, loss_se (its standard error over windows, absent for one) and router_entropy in nats,
    accuracy and noisy_agreement as shares of 1, bits_per_byte, …"""
    counts_LE: list[list[int]]
    """Assignments by layer and expert; a row sums to tokens × top_k."""


class Tally:
    """The running sums of a pass."""

    def __init__(self, model: LanguageModel, seed: int, step: int, noise_std: float) -> None:
        device = model.embedding.weight.device
        self.model, self.noise_std = model, noise_std
        # Seeded by the step: the same draws whichever evaluations came before, or were lost to a crash.
        self.noise = torch.Generator(device).manual_seed(stream_seed(seed, f"evaluation:{step}"))
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        self.window_means: list[Tensor] = []
        self.counts_LE: Tensor | int = 0
        self.tokens = 0

    @torch.inference_mode()
    def add(self, inputs_BT: Tensor, targets_BT: Tensor, precision: str) -> None:
        """Score one batch, in evaluation mode; afterwards the model is back in its mode."""
        was_training = self.model.training
        self.model.eval()
        with torch.autocast(inputs_BT.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            losses_N, hits_N, routing = self.model.scores(inputs_BT, targets_BT, self.noise_std, self.noise)
        self.model.train(was_training)
        # float64 for the sums: in float32 a split of 100,000 tokens would lose the seventh digit.
        shares = [routing.entropy, routing.top1_probability, routing.agreement]
        self.sums += torch.stack(
            [losses_N.double().sum(), hits_N.double().sum()]
            + [share.double().mean() * targets_BT.numel() for share in shares if share is not None]
        )
        self.window_means.append(losses_N.double().view_as(targets_BT).mean(1))
        self.counts_LE = self.counts_LE + routing.counts_E
        self.tokens += targets_BT.numel()

    def result(self, text_bytes: int) -> Evaluation:
        """The pass as numbers.

        Args:
            text_bytes: UTF-8 bytes of all scored targets; bits per byte compare across tokenizers.
        """
        assert isinstance(self.counts_LE, Tensor), "a pass scores at least one batch"
        loss_sum, hits, entropy, top1, agreement = self.sums.tolist()
        values = {
            "loss": loss_sum / self.tokens,
            "accuracy": hits / self.tokens,
            "perplexity": perplexity(loss_sum / self.tokens),
            "bits_per_byte": loss_sum / math.log(2.0) / text_bytes,
            "router_entropy": entropy / self.tokens,
            "top1_probability": top1 / self.tokens,
            "noisy_agreement": agreement / self.tokens,
        }
        means_W = torch.cat(self.window_means)
        if len(means_W) > 1:
            # The sample standard deviation of the windows' mean losses over √W: all windows are equally long.
            values["loss_se"] = means_W.std().item() / math.sqrt(len(means_W))
        return Evaluation(values, self.counts_LE.tolist())


def batches(held_out: HeldOut, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The split's windows in order, `batch_size` at a time, the rest at the end: int64 (B, T) pairs."""
    # One copy to the device for the whole split: each would make the host wait. torch.tensor copies: the
    # arrays may be read-only maps of a file, of a narrow dtype.
    inputs_WT, targets_WT = (
        torch.tensor(array.astype("int64"), device=device) for array in (held_out.inputs, held_out.targets)
    )
    yield from zip(inputs_WT.split(batch_size), targets_WT.split(batch_size), strict=True)


def perplexity(loss: float) -> float:
    """exp(loss), infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 709.0 else math.inf
