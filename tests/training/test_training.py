"""The training loop: what it computes, what it tells, that it is determined, and what it does when asked."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import RunConfig
from model.engines.choice import settle
from model.events import (
    Asked,
    Checkpointed,
    Event,
    Finished,
    Measured,
    Phase,
    Progressed,
    Request,
    Resumed,
)
from model.network.transformer import build
from model.program import METRICS
from model.randomness import stream_seed
from model.text.corpus import resolve
from model.training import passes, results, state, update
from model.training.checkpoint import numeric_environment
from model.training.evaluation import Tally, batches
from model.training.loop import train
from model.training.optimizer import Optimizers
from model.training.update import Diverged
from tests.training_runs import (
    TINY,
    Numbers,
    checkpoints,
    column,
    measured,
    run,
    run_until,
    same_tensors,
    tensors,
    timeless,
)

PROJECT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bits depend on the thread count."""
    torch.set_num_threads(1)


def finished(events: list[Event]) -> dict[str, Any]:
    assert isinstance(events[-1], Finished)
    return events[-1].results


# What it computes


def test_the_first_update_is_the_mean_gradient_of_its_batches(numbers: None, tmp_path: Path) -> None:
    """Against plain autograd on one graph of all batches, without dropout and noise."""
    values = {"dropout": 0.0, "noise_std": 0.0, "load_balancing_weight": 0.5, "accumulate": 4}
    config = TINY.with_values({**values, "steps": 4, "eval_every": 0, "grad_clip": 1000.0})
    events = run(config, tmp_path)
    model = build(config.model, 8, stream_seed(config.seed, "init"), CPU).train()
    losses, aux = [], []
    for step in range(4):
        inputs, targets = (torch.from_numpy(a.copy()) for a in Numbers(config).batch(step))
        logits, routing = model(inputs, 0.0, torch.Generator())
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        aux.append(routing.aux_loss.sum())
    mean, mean_aux = torch.stack(losses).mean(), torch.stack(aux).mean()
    (mean + 0.5 * mean_aux).backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
    assert column(events, "loss") == [pytest.approx(mean.item(), rel=1e-6)]
    assert column(events, "unweighted_aux_loss") == [pytest.approx(mean_aux.item(), rel=1e-6)]
    assert column(events, "aux_loss") == [pytest.approx(0.5 * mean_aux.item(), rel=1e-6)]
    assert column(events, "gradient_norm") == [pytest.approx(norm, rel=1e-5)]
    assert column(events, "learning_rate") == [0.01]


def test_an_update_skips_experts_by_its_own_counts(
    numbers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all of the update's batches and no other's: what Muon gets is tokens × top_k × accumulate."""
    seen: list[torch.Tensor] = []
    original = Optimizers.move

    def noted(self: Optimizers, counts_LE: torch.Tensor) -> Any:
        seen.append(counts_LE.clone())
        return original(self, counts_LE)

    monkeypatch.setattr(Optimizers, "move", noted)
    run(TINY, tmp_path)
    assert len(seen) == 16
    for counts_LE in seen:
        assert counts_LE.shape == (2, 4)
        assert counts_LE.sum(1).tolist() == [2 * 8 * 2 * 2] * 2


def test_evaluation_scores_each_target_once_without_dropout(numbers: None, tmp_path: Path) -> None:
    """Against one batch of everything, for a model that a run is about to train."""
    run_ = state.start(TINY.with_values({"dropout": 0.5}), tmp_path, "cpu", ())[0]
    held_out = run_.data.held_out("val")
    found = []
    for size in (2, 5):
        tally = Tally(run_.model, 42, 0, 0.3)
        for inputs, targets in batches(held_out, size, CPU):
            tally.add(inputs, targets, "fp32")
        found.append(tally.result(held_out.text_bytes))
    with torch.no_grad():
        logits, routing = run_.model.eval()(torch.from_numpy(held_out.inputs.copy()), 0.0, torch.Generator())
    targets = torch.from_numpy(held_out.targets.copy()).flatten()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), targets).item()
    for evaluation in found:
        values = evaluation.values
        assert values["loss"] == pytest.approx(loss, rel=1e-6)
        assert values["loss_se"] == pytest.approx(_error_over_windows(logits, held_out.targets), rel=1e-5)
        assert values["perplexity"] == math.exp(values["loss"])
        assert values["accuracy"] == (logits.argmax(-1).flatten() == targets).double().mean().item()
        assert values["bits_per_byte"] == pytest.approx(loss / math.log(2) / 4, rel=1e-6)
        assert values["router_entropy"] == pytest.approx(routing.entropy.mean().item(), rel=1e-5)
        assert values["top1_probability"] == pytest.approx(routing.top1_probability.mean().item(), rel=1e-5)
        assert evaluation.counts_LE == routing.counts_E.tolist()
        assert [sum(row) for row in evaluation.counts_LE] == [targets.numel() * 2] * 2


def _error_over_windows(logits_WTV: torch.Tensor, targets_WT: Any) -> float:
    """The standard error of the mean loss, one window after the other."""
    means = []
    for logits_TV, targets in zip(logits_WTV, targets_WT, strict=True):
        losses = [-logits_TV[t].double().log_softmax(0)[target].item() for t, target in enumerate(targets)]
        means.append(sum(losses) / len(losses))
    centre = sum(means) / len(means)
    variance = sum((mean - centre) ** 2 for mean in means) / (len(means) - 1)
    return math.sqrt(variance / len(means))


def test_one_window_has_no_sampling_error(numbers: None, tmp_path: Path) -> None:
    run_ = state.start(TINY, tmp_path, "cpu", ())[0]
    tally = Tally(run_.model, 42, 0, 0.0)
    tally.add(*next(batches(run_.data.held_out("val"), 1, CPU)), "fp32")
    assert "loss_se" not in tally.result(4).values


def test_precision_goes_by_the_device_unless_it_is_fixed(numbers: None, tmp_path: Path) -> None:
    assert state.start(TINY, tmp_path, "cpu", ())[0].precision == "fp32"
    config = TINY.with_values({"precision": "bf16", "steps": 2, "eval_every": 0})
    one, other = run(config, tmp_path), run(config, tmp_path)
    assert measured(one) == measured(other)
    assert one[0].environment["precision"] == "bf16"
    # One update from equal weights: bf16 keeps 8 bits, which is 0.4 % of each number that goes into the loss.
    full = run(config.with_values({"precision": "fp32"}), tmp_path)
    assert column(one, "loss") == pytest.approx(column(full, "loss"), rel=0.02)


def test_stability_figures_by_hand() -> None:
    losses = [5.0, 4.0, 3.0, 2.9, *[2.0, 2.1] * 5, 2.9, 2.0, 2.1, 2.0, 2.1, 1.9]
    assert len(losses) == 20
    figures = results.stability(losses, [2.0, 0.5, 1.5, 1.0] * 5, 4, 1.0, target_loss=2.95)
    assert figures == {
        "clipped_share": 0.5,
        "max_grad_norm": 2.0,
        "loss_spikes": 1,  # 2.9 among 2.0 and 2.1; the 2.9 of the beginning is not judged
        "steps_to_loss": 16,
        "train_loss_tail_sd": pytest.approx(0.2 / math.sqrt(2)),  # of 2.1 and 1.9, sample
    }
    assert results.stability(losses, [1.0], 4, 1.0, None)["steps_to_loss"] is None
    assert results.stability(losses, [1.0], 4, 1.0, 1.9)["steps_to_loss"] is None  # never below
    assert results.stability([3.0], [1.0], 4, 1.0, None)["train_loss_tail_sd"] is None


def test_a_falling_curve_has_no_spikes_and_a_constant_one_neither() -> None:
    assert results.loss_spikes([10.0 / (1 + i) for i in range(100)]) == 0
    assert results.loss_spikes([2.0] * 50) == 0
    assert results.loss_spikes([2.0] * 50 + [2.1]) == 1


def test_load_figures_by_hand() -> None:
    figures = results.load([[10, 30], [30, 10]])
    assert figures["expert_usage_cv"] == 0.0  # the layers cancel
    assert figures["expert_usage_cv_layer_mean"] == pytest.approx(0.5)  # sd 10 over mean 20, ddof 0
    assert figures["expert_usage_cv_layer_sd"] == pytest.approx(0.0)
    assert figures["expert_usage_cv_layer_max"] == pytest.approx(0.5)
    uneven = results.load([[20, 20], [40, 0]])
    assert uneven["expert_usage_cv"] == pytest.approx(20 / 40)
    assert uneven["expert_usage_cv_layer_sd"] == pytest.approx(0.5)


def test_means_of_the_last_100_steps() -> None:
    values = [float(i) for i in range(60)]
    assert results.mean_of_last_steps(values, accumulate=4) == sum(range(35, 60)) / 25
    assert results.mean_of_last_steps(values, accumulate=200) == 59.0
    assert results.mean_of_last_steps([1.0, 2.0], accumulate=1) == 1.5


# What it tells


@pytest.mark.parametrize(("engine", "at_once"), [("auto", 2), ("plain", 1)])
def test_the_events_of_a_run_in_their_order(numbers: None, tmp_path: Path, engine: str, at_once: int) -> None:
    events = run(TINY.with_values({"engine": engine}), tmp_path)
    assert isinstance(events[0], Resumed)
    assert (events[0].step, events[0].path, events[0].exact, events[0].refused) == (0, None, True, [])
    name = settle(engine, CPU) + (", 2 steps at once" if at_once == 2 else "")
    assert events[0].environment == numeric_environment(CPU, "fp32", name)
    assert [type(e) for e in events].count(Finished) == 1
    phases = [(e.phase, e.step) for e in events if isinstance(e, Progressed)]
    steps = [(Phase.COMPILE if s < 2 else Phase.STEP, s) for s in range(0, 32, at_once)]
    assert [p for p in phases if p[0] in (Phase.COMPILE, Phase.STEP)] == steps
    # Five windows in batches of two: three batches; twice at the end, for val and test.
    assert [p for p in phases if p[0] == Phase.EVALUATE] == [
        (Phase.EVALUATE, s) for s in (8, 16, 24, 32, 32) for _ in range(3)
    ]
    assert [k for k in measured(events) if k[1] != "train"] == [
        (8, "val"), (16, "val"), (24, "val"), (32, "val"), (32, "test"),
    ]  # fmt: skip
    assert [k[0] for k in measured(events) if k[1] == "train"] == list(range(2, 33, 2))
    # What belongs to a step is sent before anything of a later step is.
    seen = [e.step for e in events if isinstance(e, Measured)]
    assert seen == sorted(seen)
    last = [e for e in events if isinstance(e, Progressed) and e.phase == Phase.STEP][-1]
    assert last.value in column(events, "loss")
    assert last.tokens_per_second > 0


@pytest.mark.slow
def test_evaluation_at_the_end_only(numbers: None, tmp_path: Path) -> None:
    for eval_every in (0, 32):
        config = TINY.with_values({"eval_every": eval_every})
        keys = [k for k in measured(run(config, tmp_path)) if k[1] != "train"]
        assert keys == [(32, "val"), (32, "test")]


@pytest.mark.slow
def test_results_are_the_measures_that_the_program_declares(numbers: None, tmp_path: Path) -> None:
    events = run(TINY, tmp_path)
    row, values = finished(events), measured(events)
    assert set(row) == set(METRICS)
    final = values[32, "val"][0]
    assert row["val_loss"] == final["loss"]
    assert row["val_bits_per_byte"] == final["bits_per_byte"]
    assert row["best_val_loss"] == min(v["loss"] for (_, split), (v, _) in values.items() if split == "val")
    assert row["best_val_perplexity"] == math.exp(row["best_val_loss"])
    losses = column(events, "loss")
    assert row["train_loss_last_100"] == pytest.approx(sum(losses) / 16)
    assert row["steps_to_loss"] is None
    # A target that this run reaches, wherever its rounding has led it: halfway down its own curve.
    target = (min(losses) + max(losses)) / 2
    reached = finished(run(TINY.with_values({"target_loss": target}), tmp_path))
    first = next(i for i, loss in enumerate(losses, 1) if loss < target)
    assert reached == {**reached, **timeless(row), "steps_to_loss": 2 * first}
    assert row["aux_loss_last_100"] == pytest.approx(0.01 * row["unweighted_aux_loss_last_100"])
    assert row["tokens_seen"] == 32 * 2 * 8
    assert row["unique_tokens"] == Numbers.unique_tokens
    parameters = build(TINY.model, 8, 0, CPU).parameters()
    assert row["parameters_total"] == sum(p.numel() for p in parameters)
    assert row["parameters_active"] == TINY.model.active_parameters < row["parameters_total"]
    assert row["peak_memory_bytes"] > 2**20
    for clock in ("training", "evaluation", "compile", "waiting"):
        assert row[f"{clock}_seconds"] > 0
    assert values[32, "test"][0]["loss"] not in row.values()  # sealed


def test_a_split_without_windows_is_not_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(state, "prepare", lambda config, _: Numbers(config, empty_test=True))
    events = run(TINY.with_values({"protocol": "published", "eval_every": 0}), tmp_path)
    assert {split for _, split in measured(events)} == {"train", "val"}
    # 32 // 20 = 1 update of warm-up at rate 0, then a cosine that has only begun.
    rates = column(events, "learning_rate")
    assert rates[0] == 0.0
    assert rates[1] == 0.01
    assert rates[-1] > 0.005


@pytest.mark.slow
def test_it_learns_to_count(numbers: None, tmp_path: Path) -> None:
    config = TINY.with_values({"steps": 240, "eval_every": 0, "dropout": 0.0})
    row = finished(run(config, tmp_path))
    # Five seeds end between 2.57 and 2.60, and another rounding does no more than another seed: 2.97 is far.
    assert row["val_loss"] < math.log(32) - 0.5


@pytest.mark.slow
def test_loss_falls_on_the_bundled_text(cache_dir: Path, tmp_path: Path) -> None:
    config = TINY.with_values(
        {
            "d_model": 64, "n_layers": 2, "d_ff": 64, "documents": 400, "tokens": 60_000,
            "held_out_tokens": 2_000, "seq_len": 64, "batch_size": 8, "steps": 120, "eval_every": 60,
            "vocab_size": 4_096,
        }
    )  # fmt: skip
    data, vocabulary = resolve("bundled", None, True, config.data, cache_dir, print)
    config = config.with_values({**{f"data.{k}": v for k, v in vars(data).items()}, "vocab_size": vocabulary})
    events = list(train(config, tmp_path, cache_dir=cache_dir))
    losses = column(events, "loss")
    assert losses[0] == pytest.approx(math.log(vocabulary), rel=0.02)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.8
    values = measured(events)
    assert values[120, "val"][0]["loss"] < values[60, "val"][0]["loss"] < math.log(vocabulary)
    assert 1.0 < values[120, "test"][0]["bits_per_byte"] < 4.0


# Determinism


def bits(config: RunConfig, folder: Path) -> list[Any]:
    """What a run measured, and the path of its last checkpoint."""
    events = run(config, folder, checkpoint_seconds=0)
    return [measured(events), timeless(finished(events)), checkpoints(events)[0][0]]


@pytest.mark.slow
def test_the_same_seed_twice_is_the_same_bits(numbers: None, tmp_path: Path) -> None:
    one, other = bits(TINY, tmp_path / "one"), bits(TINY, tmp_path / "other")
    assert one[:2] == other[:2]
    assert same_tensors(one[2], other[2])
    assert bits(TINY.with_values({"seed": 43}), tmp_path / "third")[0] != one[0]


@pytest.mark.slow
def test_a_reused_process_gives_the_bits_of_a_fresh_one(numbers: None, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, torch; torch.set_num_threads(1)\n"
        "from model.training import state; from tests.training_runs import *\n"
        "state.prepare = lambda config, _: Numbers(config)\n"
        "events = run(TINY, pathlib.Path(sys.argv[1]), checkpoint_seconds=0)\n"
        "assert 'torch._dynamo' not in sys.modules, 'that takes as long as torch itself'\n"
        "print(checkpoints(events)[0][0], repr(timeless(events[-1].results)))"
    )
    # Used before: other seeds, shapes and draws from the default generator.
    run(TINY.with_values({"seed": 1, "d_model": 24, "steps": 4, "eval_every": 0}), tmp_path / "before")
    torch.rand(7)
    _, row, path = bits(TINY, tmp_path / "reused")
    fresh = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "fresh")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    fresh_path, fresh_row = fresh.split(" ", 1)
    assert fresh_row == repr(row)
    assert same_tensors(fresh_path, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "checkpoint_seconds"),
    [
        ([6], 1e9),  # in an epoch, between evaluations
        ([8], 1e9),  # on an evaluation and the end of an epoch
        ([15], 1e9),  # in the middle of an update: served after it
        ([1, 10, 24], 1e9),
        ([3, 4, 5, 17], 0.0),
    ],
)
def test_an_interrupted_run_equals_an_undisturbed_one(
    numbers: None, tmp_path: Path, steps: list[int], checkpoint_seconds: float
) -> None:
    undisturbed = run(TINY, tmp_path / "whole", checkpoint_seconds=0)
    events: list[Event] = []
    written: list[tuple[str, str]] = []
    for number, step in enumerate(steps):
        part = run_until(
            TINY,
            tmp_path / f"a{number}",
            step,
            Request.STOP,
            resume_from=written,
            checkpoint_seconds=checkpoint_seconds,
        )
        assert not isinstance(part[-1], Finished)
        torch.rand(number + 1)  # something else happens in the process
        written = checkpoints(part) + written
        events += part
    events += run(TINY, tmp_path / "last", resume_from=written, checkpoint_seconds=0)
    assert all(e.exact and not e.refused for e in events if isinstance(e, Resumed))
    assert measured(events) == measured(undisturbed)  # and nothing was measured twice
    assert timeless(finished(events)) == timeless(finished(undisturbed))
    assert same_tensors(checkpoints(events)[0][0], checkpoints(undisturbed)[0][0])


@pytest.mark.slow
def test_a_crash_repeats_only_what_came_after_the_checkpoint(numbers: None, tmp_path: Path) -> None:
    undisturbed = run(TINY, tmp_path / "whole")
    before: list[Event] = []
    running = train(TINY, tmp_path / "a", cache_dir=tmp_path, checkpoint_seconds=0)
    for event in running:
        before.append(event)
        if event.step == 22:
            running.close()
    after = run(TINY, tmp_path / "b", resume_from=checkpoints(before))
    resumed = after[0]
    assert isinstance(resumed, Resumed)
    assert 0 < resumed.step < 22
    kept = {key: value for key, value in measured(before).items() if key[0] <= resumed.step}
    assert not kept.keys() & measured(after).keys()
    assert {**kept, **measured(after)} == measured(undisturbed)


def test_timings_and_memory_go_on_through_a_checkpoint(numbers: None, tmp_path: Path) -> None:
    first = run_until(TINY, tmp_path, 18, Request.STOP)
    resumed, _ = state.start(TINY, tmp_path, "cpu", checkpoints(first))
    fresh, _ = state.start(TINY, tmp_path, "cpu", ())
    assert resumed.clock.timed_steps == 18  # all but the first two, which went through the model together
    assert resumed.clock.seconds["training"] > 0 == fresh.clock.seconds["training"]
    assert resumed.clock.seconds["evaluation"] > 0
    resumed.earlier_peak_bytes = 2**60
    assert resumed.peak_memory_bytes == 2**60


@pytest.mark.slow
@pytest.mark.parametrize("interval", [1, 3, 100])
def test_how_often_the_device_is_read_changes_no_bits(
    numbers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    expected = run(TINY, tmp_path)
    monkeypatch.setattr(update, "LOG_EVERY_UPDATES", interval)
    found = run(TINY, tmp_path)
    assert measured(found) == measured(expected)
    assert timeless(finished(found)) == timeless(finished(expected))


@pytest.mark.slow
def test_evaluation_and_checkpoints_do_not_disturb_training(numbers: None, tmp_path: Path) -> None:
    often = run(TINY.with_values({"eval_every": 2}), tmp_path, checkpoint_seconds=0)
    never = run(TINY.with_values({"eval_every": 0}), tmp_path)
    assert column(often, "loss") == column(never, "loss")
    assert measured(often)[32, "val"] == measured(never)[32, "val"]


# Common random numbers


def streams(config: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    """The streams' states after 8 steps."""
    events = run_until(config, folder, 8, Request.STOP)
    return {name: t for name, t in tensors(checkpoints(events)[0][0]) if name.startswith("stream.")}


@pytest.mark.slow
def test_cells_of_one_seed_share_weights_batches_and_draws(numbers: None, tmp_path: Path) -> None:
    cells = [
        TINY.with_values({"noise_std": noise, "load_balancing_weight": weight})
        for noise in (0.0, 0.5)
        for weight in (0.0, 0.01)
    ]
    starts = [state.start(cell, tmp_path, "cpu", ())[0] for cell in cells]
    for start in starts[1:]:
        for name, tensor in start.model.state_dict().items():
            assert torch.equal(tensor, starts[0].model.state_dict()[name]), name
    first, *others = (streams(cell, tmp_path / str(i)) for i, cell in enumerate(cells))
    assert set(first) == {"stream.dropout.cpu", "stream.noise.cpu"}
    for other in others:
        # As many dropout draws, however the tokens were routed; as much noise, at std 0 too.
        assert all(torch.equal(first[name], other[name]) for name in first)
    elsewhere = streams(TINY.with_values({"seed": 7}), tmp_path / "seed")
    assert not any(torch.equal(first[name], elsewhere[name]) for name in first)


def test_the_first_losses_of_paired_cells_agree_until_the_factor_acts(numbers: None, tmp_path: Path) -> None:
    config = TINY.with_values({"steps": 4, "eval_every": 0, "accumulate": 1, "noise_std": 0.0})
    with_loss, without = (
        column(run(config.with_values({"load_balancing_weight": w}), tmp_path), "loss") for w in (1.0, 0.0)
    )
    assert with_loss[0] == without[0]
    assert with_loss[1:] != without[1:]


# What it does when asked


def test_save_writes_a_checkpoint_and_goes_on(numbers: None, tmp_path: Path) -> None:
    events = run_until(TINY, tmp_path, 4, Request.SAVE)
    (saved,) = (e for e in events if isinstance(e, Checkpointed))
    assert saved.step == 6  # the next update boundary
    assert Path(saved.path).stat().st_size == saved.size_bytes
    at = events.index(saved)
    assert events[at - 1] == Progressed(Phase.SAVE, 6)
    assert [e.step for e in events[:at] if isinstance(e, Measured)] == [2, 4, 6]  # all that is known by then
    assert isinstance(events[-1], Finished)


def test_stop_writes_a_checkpoint_and_returns(numbers: None, tmp_path: Path) -> None:
    events = run_until(TINY, tmp_path, 4, Request.STOP)
    assert isinstance(events[-1], Checkpointed)
    assert events[-1].step == 6


def test_stop_during_an_evaluation_waits_for_its_end(numbers: None, tmp_path: Path) -> None:
    asked = Asked()
    events: list[Event] = []
    for event in train(TINY, tmp_path, cache_dir=tmp_path, asked=asked):
        events.append(event)
        if isinstance(event, Progressed) and event.phase == Phase.EVALUATE:
            asked.ask(Request.STOP)
    assert events[-1].step == 8
    assert isinstance(events[-1], Checkpointed)
    assert (8, "val") in measured(events)


@pytest.mark.slow
def test_stop_at_once_still_leaves_something_to_resume_from(numbers: None, tmp_path: Path) -> None:
    first = run_until(TINY, tmp_path / "a", 0, Request.STOP)
    assert [e.step for e in first if isinstance(e, Checkpointed)] == [0]
    second = run(TINY, tmp_path / "b", resume_from=checkpoints(first))
    assert isinstance(second[0], Resumed)
    assert (second[0].step, second[0].path) == (0, checkpoints(first)[0][0])
    assert timeless(finished(second)) == timeless(finished(run(TINY, tmp_path / "c")))


@pytest.mark.slow
def test_cancel_leaves_a_checkpoint_to_go_on_from(numbers: None, tmp_path: Path) -> None:
    events = run_until(TINY, tmp_path / "a", 4, Request.CANCEL)
    assert [e.step for e in events if isinstance(e, Checkpointed)] == [6]  # the next boundary
    assert isinstance(events[-1], Checkpointed)
    again = run(TINY, tmp_path / "b", resume_from=checkpoints(events))
    assert isinstance(again[0], Resumed)
    assert again[0].step == 6
    final = run_until(TINY, tmp_path / "c", 32, Request.CANCEL)
    assert not isinstance(final[-1], Finished)


def test_past_the_last_update_a_run_finishes_instead_of_stopping(numbers: None, tmp_path: Path) -> None:
    events = run_until(TINY, tmp_path, 30, Request.STOP)
    assert isinstance(events[-1], Finished)
    assert not checkpoints(events)


@pytest.mark.parametrize("order", list(itertools.permutations(Request)))
def test_the_stronger_request_wins_and_is_taken_once(order: tuple[Request, ...]) -> None:
    for count in range(len(order) + 1):
        asked, said = Asked(), order[:count]
        for request in said:
            asked.ask(request)
        strongest = next((r for r in (Request.CANCEL, Request.STOP, Request.SAVE) if r in said), None)
        assert asked.cancelled == (strongest is Request.CANCEL)
        assert asked.take() is strongest
        assert asked.take() is None


@pytest.mark.slow
def test_checkpoints_come_by_time_or_after_every_update(numbers: None, tmp_path: Path) -> None:
    def steps(seconds: float) -> list[int]:
        events = run(TINY, tmp_path / str(seconds), checkpoint_seconds=seconds)
        return [e.step for e in events if isinstance(e, Checkpointed)]

    assert steps(1e9) == []
    assert steps(0) == list(range(2, 32, 2))  # the end has results instead


# Faults


def poison(monkeypatch: pytest.MonkeyPatch, bad: float, steps: range) -> None:
    """Make the loss of these steps another one, whatever the model computes."""

    def poisoned(
        run_: state.State, *rest: Any, original: Callable[..., Any] = passes._piece
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, counts = original(run_, *rest)
        return (torch.full_like(losses, bad) if run_.step in steps else losses), counts

    monkeypatch.setattr(passes, "_piece", poisoned)


@pytest.mark.slow
def test_a_run_that_diverges_says_when_and_what_to_change(
    numbers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 100.0, range(4, 240))
    config = TINY.with_values({"steps": 240, "eval_every": 0, "accumulate": 1})
    events: list[Event] = []
    pattern = r"diverged at step 54: the training loss is 100, .*; lower train\.muon_lr"
    with pytest.raises(Diverged, match=pattern):
        events.extend(train(config, tmp_path, cache_dir=tmp_path))
    assert column(events, "loss")[3:] == [pytest.approx(3.5, abs=0.5), *[100.0] * 56]  # up to the reading


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_after_its_series(
    numbers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    poison(monkeypatch, bad, range(12, 13))
    events: list[Event] = []
    with pytest.raises(Diverged, match=rf"step 14: the training loss is {bad}"):
        events.extend(train(TINY, tmp_path, cache_dir=tmp_path, checkpoint_seconds=0))
    losses = column(events, "loss")
    assert len(losses) == 7
    assert not math.isfinite(losses[-1])
    assert checkpoints(events)[0][0].endswith("step-12.safetensors")  # none was written of the bad state


def test_divergence_needs_fifty_updates_in_a_row() -> None:
    losses = [2.0] + [6.1] * 49 + [5.9] + [6.1] * 49
    update._require_convergence(losses, 0, 4)
    with pytest.raises(Diverged, match=r"step 404: .*above 6, 3 times its first value, for 50 updates"):
        update._require_convergence([*losses, 6.1], 100, 4)


def test_an_infinite_validation_loss_is_divergence(
    numbers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Tally.add

    def poisoned(self: Tally, *arguments: Any) -> None:
        original(self, *arguments)
        self.sums[0] = math.nan

    monkeypatch.setattr(Tally, "add", poisoned)
    with pytest.raises(Diverged, match="step 8: the validation loss is nan"):
        run(TINY, tmp_path)
