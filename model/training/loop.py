"""The training loop, an iterator of events: the caller records, asks and decides.

`for event in train(config, …)` runs to the end; a caller that wants a checkpoint or an end asks for it.
Writes only checkpoints, and only into `workdir`. What moves: model/training/state.py. One update: update.py.
One pass over held-out text: evaluation.py. The events: model/events.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from model.config import ConfigError, RunConfig
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
    Waiting,
)
from model.text.cache import CacheUnwritable
from model.text.corpus import open_tokenizer
from model.training import state
from model.training.evaluation import Evaluation, Tally, batches, perplexity
from model.training.results import load, mean_of_last_steps, stability
from model.training.state import State
from model.training.update import Diverged, Events, read_series, update
from model.training.weights import save_tokenizer, save_weights

WAIT_SECONDS, WAIT_LOOKS = 5.0, 50
"""Pause between two tries to store the prepared data; in it a request is looked for this many times."""


def train(
    config: RunConfig,
    workdir: Path,
    *,
    cache_dir: Path,
    device: str = "cpu",
    resume_from: Sequence[tuple[str, str]] = (),
    asked: Asked | None = None,
    checkpoint_seconds: float = 120.0,
    keep_weights: bool = False,
    source: str | None = None,
) -> Events:
    """Train and evaluate one run, from `Resumed` to `Finished`.

    Until there is room for the prepared data it says `Waiting`, every few seconds. A checkpoint and a result
    stand only for data that is still, byte for byte, what was verified at the start.

    What is asked is served at the next update boundary, after the evaluation that falls on it. Everything
    up to a checkpoint's step has been sent when the checkpoint is. Past the last update there is none: the
    run finishes instead, unless it is cancelled.

    Args:
        workdir: where checkpoints go, as step-N.safetensors; made when needed.
        cache_dir: of the prepared data.
        device: cpu, cuda or cuda:N.
        resume_from: (path, SHA-256) of checkpoints, newest first; the first that verifies is used.
        asked: what the caller, or another thread of it, wants of the run.
        checkpoint_seconds: between automatic checkpoints; 0 writes one after every update.
        keep_weights: leave the final weights in `workdir`, with configuration and tokenizer beside them.
        source: SHA-256 of the code that runs; a checkpoint of other code is gone on from, not exactly.

    Raises:
        ConfigError: the data cannot be had, or does not fit the configuration.
        Diverged: the loss is not a number, or stays far above where it began.
        CacheDamaged: the prepared data was changed meanwhile.
    """
    asked = asked or Asked()
    while True:
        try:
            run, resumed = state.start(config, Path(cache_dir), device, resume_from, asked, source)
            break
        except CacheUnwritable as error:
            yield Waiting(f"{error}")
        for _ in range(WAIT_LOOKS):
            if asked.to_end:
                return
            time.sleep(WAIT_SECONDS / WAIT_LOOKS)
    yield resumed
    run.clock.lap("waiting")
    try:
        yield from _run(run, Path(workdir), checkpoint_seconds, Path(cache_dir) if keep_weights else None)
    except Exception:
        run.data.require_unchanged()  # altered tokens may end a run in any way: they are to blame first
        raise


def _run(run: State, workdir: Path, checkpoint_seconds: float, keep_from: Path | None) -> Events:
    """The steps that are left, and the end; weights are kept if a cache is named, for its tokenizer."""
    while run.step < run.config.train.steps:
        ends = yield from _serve(run, workdir, checkpoint_seconds)
        if ends:
            return
        yield from update(run)
        if _evaluation_is_due(run):
            yield from _evaluate(run, "val")
    yield from read_series(run)
    validation = yield from _evaluate(run, "val")
    yield from _evaluate(run, "test")
    if keep_from is not None:
        yield from _keep_weights(run, workdir, keep_from)
    if not run.asked.cancelled:
        run.data.require_unchanged()
        yield Finished(run.step, _results(run, validation))


def _serve(run: State, workdir: Path, checkpoint_seconds: float) -> Generator[Event, None, bool]:
    """At an update boundary: do what was asked, save when it is time. True ends the run."""
    request = run.asked.take()
    due = run.step > run.saved_step and time.monotonic() - run.saved_at >= checkpoint_seconds
    if request is not None or due:
        yield from _save(run, workdir)
    return request in (Request.STOP, Request.CANCEL) or run.asked.cancelled


def _save(run: State, workdir: Path) -> Events:
    """Write a checkpoint at an update boundary; a full disk costs the checkpoint, not the run."""
    yield from read_series(run)
    run.clock.lap("training")
    yield Progressed(Phase.SAVE, run.step)
    run.saved_step, run.saved_at = run.step, time.monotonic()
    run.data.require_unchanged()
    written, reason = None, ""
    try:
        written = state.save(run, workdir)
    except OSError as error:
        reason = f"{error}"
    seconds = run.clock.lap("waiting")
    if written is None:
        yield NotSaved(run.step, reason)
        return
    yield Checkpointed(run.step, str(written.path), written.sha256, written.size_bytes, seconds)


def _keep_weights(run: State, workdir: Path, cache_dir: Path) -> Events:
    """Write the final weights and the tokenizer; a full disk costs them, not the result."""
    yield Progressed(Phase.SAVE, run.step)
    try:
        if run.config.data.tokenizer_id:  # else its tokens are of no text
            save_tokenizer(open_tokenizer(run.config.data, cache_dir), workdir)
        save_weights(run.model, run.config, workdir)
    except (OSError, ConfigError) as error:
        yield NotSaved(run.step, f"{error}")


def _evaluation_is_due(run: State) -> bool:
    """At multiples of `eval_every` before the end; the end has its own, on both splits."""
    train = run.config.train
    return train.eval_every > 0 and run.step % train.eval_every == 0 and run.step < train.steps


def _evaluate(run: State, split: str) -> Generator[Event, None, Evaluation | None]:
    """One pass over a held-out split, sent as one Measured; None where the split has no windows."""
    yield from read_series(run)
    run.clock.lap("training")
    held_out = run.data.held_out(split)
    if not len(held_out.inputs):
        return None
    config = run.config
    tally = Tally(run.model, config.seed, run.step, run.noise_std)
    for inputs_BT, targets_BT in batches(held_out, run.windows_at_once, run.device):
        yield Progressed(Phase.EVALUATE, run.step)
        tally.add(inputs_BT, targets_BT, run.precision)
    evaluation = tally.result(held_out.text_bytes)
    run.clock.lap("evaluation")
    yield Measured(run.step, split, evaluation.values, evaluation.counts_LE)
    if split == "val":
        loss = evaluation.values["loss"]
        if not math.isfinite(loss):
            raise Diverged(f"diverged at step {run.step}: the validation loss is {loss}; lower train.muon_lr")
        run.val_losses.append(loss)
    return evaluation


def _results(run: State, validation: Evaluation | None) -> dict[str, float | int | None]:
    """The run's wide row; test values are not in it."""
    assert validation is not None, "a run has validation windows"
    train, values, best = run.config.train, validation.values, min(run.val_losses)
    means = {
        f"{column}_last_100": mean_of_last_steps(run.column(name), train.accumulate)
        for name, column in (("loss", "train_loss"), ("aux_loss",) * 2, ("unweighted_aux_loss",) * 2)
    }
    # A run of a single batch has none but the compiling one to be timed by.
    timed = run.clock.timed_steps, run.clock.seconds["training"]
    if not run.clock.timed_steps:
        timed = train.steps, run.clock.seconds["compile"]
    return {
        **{f"val_{name}": values[name] for name in ("loss", "perplexity", "accuracy", "bits_per_byte")},
        "best_val_loss": best,
        "best_val_perplexity": perplexity(best),
        **load(validation.counts_LE),
        **means,
        **stability(
            run.column("loss"),
            run.column("gradient_norm"),
            train.accumulate,
            train.grad_clip,
            train.target_loss or None,
        ),
        **{f"{clock}_seconds": seconds for clock, seconds in run.clock.seconds.items()},
        "tokens_per_second": timed[0] * train.tokens_per_step / timed[1],
        "peak_memory_bytes": run.peak_memory_bytes,
        "tokens_seen": run.config.tokens_seen,
        "unique_tokens": run.data.unique_tokens,
        "parameters_total": run.config.total_parameters,
        "parameters_active": run.config.active_parameters,
    }
