"""A training program that computes nothing, for tests of the queue: it starts without torch, in a blink.

Only `model.training.loop` and `model.training.setting` are replaced (`TOY` in tests/injection.py does it in
the trainer's process): the command line, the supervisor, the trainer and its protocol are the real ones. A
run's numbers are a chain of hashes over its configuration and steps, so that a step lost, repeated or taken
from another run shows in all that follow.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.config import RunConfig
from model.events import (
    Asked,
    Checkpointed,
    Event,
    Finished,
    Measured,
    NotSaved,
    Phase,
    Progressed,
    Request,
    Resumed,
)


def install() -> None:
    """Stand in for the training loop of this process, for its device, and for torch."""
    loop, setting = types.ModuleType("model.training.loop"), types.ModuleType("model.training.setting")
    torch = types.ModuleType("torch")
    loop.train = train  # type: ignore[attr-defined]
    setting.open_device = lambda name, threads: {"device": "cpu", "device_name": "cpu", "driver": None}  # type: ignore[attr-defined]
    setting.check = lambda device: ""  # type: ignore[attr-defined]
    torch.set_num_threads = lambda count: None  # type: ignore[attr-defined]
    sys.modules |= {module.__name__: module for module in (loop, setting, torch)}


def train(
    config: RunConfig,
    workdir: Path,
    *,
    asked: Asked,
    resume_from: Sequence[tuple[str, str]] = (),
    checkpoint_seconds: float = 120.0,
    **_: Any,
) -> Iterator[Event]:
    """The events that a real run of this configuration sends, in their order."""
    step, chain, path, refused = _resume(config, resume_from)
    yield Resumed(step, path, True, refused, {"program": "toy"})
    saved_step, saved_at = step, time.monotonic()
    while step < config.train.steps:
        request = asked.take()
        if request or (step > saved_step and time.monotonic() - saved_at >= checkpoint_seconds):
            yield Progressed(Phase.SAVE, step)
            yield _save(workdir, step, chain)
            saved_step, saved_at = step, time.monotonic()
        if request in (Request.STOP, Request.CANCEL) or asked.cancelled:
            return
        for _step in range(config.train.accumulate):
            yield Progressed(Phase.STEP if step else Phase.COMPILE, step, _loss(chain), 1000.0)
            chain, step = _next(chain, step), step + 1
        yield Measured(step, "train", {"loss": _loss(chain), "tokens_per_second": 1000.0})
        every = config.train.eval_every
        if every and step % every == 0 and step < config.train.steps:
            yield from _evaluate(step, chain, "val")
    yield from _evaluate(step, chain, "val")
    yield from _evaluate(step, chain, "test")
    if not asked.cancelled:
        loss = _loss(chain)
        values = {"val_loss": loss, "val_perplexity": 10 * loss, "training_seconds": 1.0}
        yield Finished(step, {**values, "tokens_seen": config.tokens_seen})


def _resume(config: RunConfig, written: Sequence[tuple[str, str]]) -> tuple[int, str, str | None, list[str]]:
    """Step, chain and path of the newest checkpoint that is whole, and why others are not."""
    refused = []
    for path, sha256 in written:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            refused.append(f"{path}: cannot be read ({error.strerror})")
            continue
        if hashlib.sha256(data).hexdigest() == sha256:
            kept = json.loads(data)
            return kept["step"], kept["chain"], path, refused
        refused.append(f"{path}: its SHA-256 is another")
    return 0, config.hash, None, refused


def _save(workdir: Path, step: int, chain: str) -> Event:
    path = workdir / f"step-{step}.safetensors"
    data = json.dumps({"step": step, "chain": chain, "weights": "0" * 4000}).encode()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_bytes(data)
        os.rename(beside, path)
    except OSError as error:
        return NotSaved(step, str(error))
    return Checkpointed(step, str(path), hashlib.sha256(data).hexdigest(), len(data), 0.0)


def _evaluate(step: int, chain: str, split: str) -> Iterator[Event]:
    yield Progressed(Phase.EVALUATE, step)
    counts = [[int(chain[2 * e : 2 * e + 2], 16) for e in range(4)]]
    yield Measured(step, split, {"loss": _loss(chain)}, counts)


def _next(chain: str, step: int) -> str:
    return hashlib.sha256(f"{chain} {step}".encode()).hexdigest()


def _loss(chain: str) -> float:
    return 4 + int(chain[:8], 16) / 2**32


if __name__ == "__main__":
    install()
    from runner.work import trainer

    trainer.main()
