"""An update as one CUDA graph: the same run, where replays repeat their bits, and only there.

There is no card here. What stands in for the graph computes the captured work anew at each call: everything
around it is the program's own. On a card the rehearsal below compares with the real one before each run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import RunConfig
from model.engines import choice
from model.engines import device as devices
from model.events import Finished, Progressed
from model.training import passes, rehearsal, setting, state
from tests.training_runs import TINY, Numbers, checkpoints, measured, run, same_tensors, timeless

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


class Computed:
    """Captures nothing, and computes at each call."""

    def __init__(self, work: Callable[[], list[Tensor]], generators: Sequence[torch.Generator]) -> None:
        self.work = work

    def __call__(self) -> list[Tensor]:
        return self.work()


@pytest.fixture
def replaying(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Turns the stand-in on and off."""
    torch.set_num_threads(1)
    monkeypatch.setattr(state, "prepare", lambda config, _: Numbers(config))
    monkeypatch.setattr(passes, "Replay", Computed)
    settle = setting.settle

    def turn(on: bool) -> None:
        monkeypatch.setattr(state, "settle", lambda *given: replace(settle(*given), replays=on))

    return turn


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"noise": "annealed", "noise_std": 0.5},
        {"noise": "jitter", "noise_std": 0.3},
        {"bias_rate": 0.01, "balance": "batch", "load_balancing_weight": 0.01},
        {"micro_batch": 1, "z_loss_weight": 0.001},
    ],
)
def test_a_run_of_replayed_updates_has_the_bits_of_the_others(
    replaying: Callable[[bool], None], values: dict[str, Any], tmp_path: Path
) -> None:
    config = TINY.with_values({"accumulate": 2, **values})
    found = []
    for on in (False, True):
        replaying(on)
        events = run(config, tmp_path / str(on), checkpoint_seconds=0)
        assert isinstance(events[-1], Finished)
        found.append((measured(events), timeless(events[-1].results), checkpoints(events)[0][0]))
    (one, results, path), (other, other_results, other_path) = found
    assert one == other
    assert results == other_results
    assert same_tensors(path, other_path)


@pytest.mark.slow
def test_a_replayed_run_goes_on_from_its_checkpoint(
    replaying: Callable[[bool], None], tmp_path: Path
) -> None:
    replaying(True)
    whole = run(TINY, tmp_path / "whole", checkpoint_seconds=0)
    middle = [each for each in checkpoints(whole) if "step-16" in each[0]]
    rest = run(TINY, tmp_path / "rest", resume_from=middle)
    assert isinstance(whole[-1], Finished)
    assert isinstance(rest[-1], Finished)
    assert timeless(rest[-1].results) == timeless(whole[-1].results)


@pytest.mark.slow
def test_a_replayed_update_is_told_once(replaying: Callable[[bool], None], tmp_path: Path) -> None:
    """The first update of a process, before there is a graph, is told pass by pass."""
    replaying(True)
    config = TINY.with_values({"micro_batch": 1, "accumulate": 4})  # the steps of an update one by one
    steps = [e.step for e in run(config, tmp_path) if isinstance(e, Progressed) and e.phase != "evaluate"]
    assert steps == [0, 1, 2, 3, 4, 8, 12, 16, 20, 24, 28]


# Where updates are replayed


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card whose kernels are right."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(choice, "cannot_triton", lambda *_: "")
    monkeypatch.setattr(choice, "settle", lambda engine, _: engine)
    monkeypatch.setattr(devices, "choose_attention", lambda *_: "flash")
    monkeypatch.setattr(setting, "that_fits", lambda *_: (2, 24))
    monkeypatch.setattr(rehearsal, "twice", lambda *_: "")
    monkeypatch.setattr(rehearsal, "replay_differs", lambda *_: "")


def test_auto_replays_where_the_rehearsal_repeats_its_bits(
    monkeypatch: pytest.MonkeyPatch, hopper: None
) -> None:
    found = setting.settle(RunConfig(), CARD)
    assert (found.replays, found.remarks) == (True, [])
    assert found.computing == "triton, 2 steps at once, an update as one graph"
    monkeypatch.setattr(rehearsal, "replay_differs", lambda *_: "its bits differ in 3 of 8 tensors")
    found = setting.settle(RunConfig(), CARD)
    assert not found.replays
    assert found.computing == "triton, 2 steps at once"
    (remark,) = found.remarks
    assert remark.startswith("an update's kernels are launched one by one, not as one CUDA graph: its bits ")


@pytest.mark.parametrize("engine", ["triton", "grouped", "compiled", "plain"])
def test_an_engine_by_name_launches_its_kernels_one_by_one(
    monkeypatch: pytest.MonkeyPatch, hopper: None, engine: str
) -> None:
    monkeypatch.setattr(choice, "_cannot_compile", lambda *_: "")
    assert not setting.settle(RunConfig().with_values({"engine": engine}), CARD).replays


def test_a_device_whose_bits_waver_is_not_replayed(monkeypatch: pytest.MonkeyPatch, hopper: None) -> None:
    monkeypatch.setattr(rehearsal, "twice", lambda *_: "two equal updates differ in 1 of 8 tensors")
    found = setting.settle(RunConfig(), CARD)
    assert not found.replays
    assert not found.deterministic


def test_a_rehearsed_replay_is_held_to_every_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "Replay", Computed)
    assert rehearsal.replay_differs(TINY, "auto", "fp32", CPU) == ""

    class Standing(Computed):
        """Whose random streams do not move on."""

        def __call__(self) -> list[Tensor]:
            torch.manual_seed(0)
            return self.work()

    monkeypatch.setattr(rehearsal, "Replay", Standing)
    assert rehearsal.replay_differs(TINY, "auto", "fp32", CPU).startswith("its bits differ in ")

    def refused(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(rehearsal, "Replay", refused)
    found = rehearsal.replay_differs(TINY, "auto", "fp32", CPU)
    assert found == "RuntimeError: operation not permitted when stream is capturing"
