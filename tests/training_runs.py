"""Tiny runs for the tests of training and checkpoints: a stand-in for the data, and what must not change.

The stand-in repeats itself, so that a few updates learn something; the real text is in test_training.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from model.config import RunConfig
from model.events import Asked, Checkpointed, Event, Measured, Request
from model.randomness import stream_seed
from model.text.dataset import HeldOut
from model.training.loop import train

TINY = RunConfig().with_values(
    {
        "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 16, "n_experts": 4, "vocab_size": 32,
        "steps": 32, "batch_size": 2, "seq_len": 8, "accumulate": 2, "eval_every": 8,
        "noise_std": 0.3, "documents": 3, "tokens": 200, "held_out_tokens": 40,
    }
)  # fmt: skip
"""16 updates, three evaluations before the final one, an epoch every 4 steps."""


class Numbers:
    """A data set of counting sequences: batch k is a pure function of (seed, k)."""

    unique_tokens = 64
    windows_in_an_epoch = 8

    def __init__(self, config: RunConfig, empty_test: bool = False) -> None:
        self.config, self.empty_test = config, empty_test

    def require_unchanged(self) -> None:
        """Nothing is on a disk."""

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        size = self.config.train.batch_size
        epoch, at = divmod(step * size, self.windows_in_an_epoch)
        seed = [stream_seed(self.config.seed, "data"), epoch]
        order = np.random.default_rng(seed).permutation(self.windows_in_an_epoch)
        return self._windows(order[at : at + size])

    def held_out(self, split: str) -> HeldOut:
        starts = np.array([] if self.empty_test and split == "test" else [3, 9, 11, 14, 20], dtype=np.int64)
        inputs, targets = self._windows(starts + (split == "test"))
        return HeldOut(inputs, targets, text_bytes=4 * targets.size)

    def _windows(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        columns = np.arange(self.config.train.seq_len + 1)
        tokens = (starts[:, None] * 3 + columns * 5) % self.config.model.vocab_size
        return tokens[:, :-1], tokens[:, 1:]


def run(config: RunConfig, workdir: Path, **options: Any) -> list[Event]:
    """All events of an undisturbed run."""
    return list(train(config, workdir, cache_dir=workdir, **options))


def run_until(config: RunConfig, workdir: Path, step: int, request: Request, **options: Any) -> list[Event]:
    """The events of a run that is asked for something as soon as it has come to a step."""
    events: list[Event] = []
    asked, waiting = Asked(), True
    for event in train(config, workdir, cache_dir=workdir, asked=asked, **options):
        events.append(event)
        if waiting and event.step >= step:
            asked.ask(request)
            waiting = False
    return events


def checkpoints(events: list[Event]) -> list[tuple[str, str]]:
    """Path and SHA-256 of the checkpoints written, newest first: what `resume_from` takes."""
    return [(e.path, e.sha256) for e in reversed(events) if isinstance(e, Checkpointed)]


def measured(events: list[Event]) -> dict[tuple[int, str], tuple[dict[str, float], Any]]:
    """Everything measured, by step and split, without the speed, which no seed decides.

    Raises:
        AssertionError: something was measured twice.
    """
    found: dict[tuple[int, str], tuple[dict[str, float], Any]] = {}
    for event in events:
        if isinstance(event, Measured):
            assert (event.step, event.split) not in found, "measured twice"
            values = {name: value for name, value in event.values.items() if name != "tokens_per_second"}
            found[event.step, event.split] = values, event.expert_counts
    return found


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what depends on the clock and the process."""
    return {
        name: value
        for name, value in results.items()
        if not any(part in name for part in ("seconds", "per_second", "peak_memory"))
    }


def tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A checkpoint's tensors by name; the series without its last column, the speed."""
    for name, tensor in load_file(path).items():
        yield name, tensor[:, :-1] if name == "series" else tensor


def same_tensors(one: str, other: str) -> bool:
    """Whether two checkpoints hold the same bits: weights, optimizers, streams and series."""
    first, second = dict(tensors(one)), dict(tensors(other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def column(events: list[Any], name: str) -> list[float]:
    """What the training steps measured under this name, in order."""
    return [e.values[name] for e in events if isinstance(e, Measured) and e.split == "train"]
