"""Weights kept on request: the four documented lines load exactly the model that was evaluated."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.config import ConfigError
from model.events import Finished, NotSaved
from model.training import state
from model.training.loop import train
from model.training.weights import load_weights, save_weights
from runner.queue.store import open_store
from tests.conftest import PROJECT, rows
from tests.training_runs import TINY, Numbers, measured, run, timeless


@pytest.fixture(autouse=True)
def _counting_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "prepare", lambda config, _: Numbers(config))
    torch.set_num_threads(1)


def results(events: list[Any]) -> dict[str, Any]:
    finished = events[-1]
    assert isinstance(finished, Finished)
    return timeless(finished.results)


def test_loaded_weights_are_the_model_that_was_evaluated(tmp_path: Path) -> None:
    events = run(TINY, tmp_path / "a1", keep_weights=True)
    model, config = load_weights(tmp_path / "a1")
    assert config == TINY
    assert not model.training
    held_out = Numbers(TINY).held_out("val")
    inputs, targets = torch.from_numpy(held_out.inputs), torch.from_numpy(held_out.targets)
    with torch.inference_mode():
        logits, _ = model(inputs, 0.0, torch.Generator())
        loss = F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten()).item()
    recorded = measured(events)[TINY.train.steps, "val"][0]["loss"]
    assert loss == pytest.approx(recorded, rel=1e-5)


def test_keeping_weights_changes_no_bit_of_the_run(tmp_path: Path) -> None:
    plain = run(TINY, tmp_path / "plain")
    kept = run(TINY, tmp_path / "kept", keep_weights=True)
    assert results(kept) == results(plain)
    assert measured(kept) == measured(plain)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "config.json",
        "weights.safetensors",
    ]
    assert not (tmp_path / "plain").exists()


def test_weights_that_cannot_be_written_cost_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.training.loop.save_weights", full)
    events = list(train(TINY, tmp_path, cache_dir=tmp_path, keep_weights=True))
    assert isinstance(events[-1], Finished)
    assert any(isinstance(event, NotSaved) and "No space left" in event.reason for event in events)


def test_a_failed_write_leaves_no_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(TINY, tmp_path, keep_weights=True)
    model, config = load_weights(tmp_path)
    before = (tmp_path / "weights.safetensors").read_bytes()

    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("os error 28")

    monkeypatch.setattr("model.training.weights.save_file", full)
    with pytest.raises(OSError, match="os error 28"):
        save_weights(model, config, tmp_path)
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    assert list(tmp_path.glob("*.part")) == []


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="work --keep-weights"):
        load_weights(tmp_path)


def test_the_documented_lines_load_what_work_kept(
    cli: Callable[..., subprocess.CompletedProcess[str]],
    tiny_grid: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled")
    assert cli("work", "--jobs", "1", "--keep-weights").returncode == 0
    store = open_store(str(tmp_path / "jobs.db"))
    assert rows(store, "checkpoints") == []  # they are another thing
    lines = re.search(
        r"```python\n(import torch\nfrom model\.training\.weights.*?)```",
        (PROJECT / "docs/commands.md").read_text(),
        re.DOTALL,
    )
    assert lines
    code = lines[1].replace("<database id>/7", f"{store.database_id}/1")
    assert len([line for line in code.splitlines() if line]) == 4
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/commands.md", "exec"), names)
    assert names["logits"].shape == (1, 32, 8192)
    listed = cli("clean").stdout
    assert "weights" not in listed  # what was kept on purpose stays
