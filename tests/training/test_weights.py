"""Weights kept on request: the four documented lines load exactly the model that was evaluated."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
import torch.nn.functional as F

from model.config import ConfigError
from model.events import Finished, NotSaved
from model.text.dataset import prepare
from model.text.tokenizer import load_tokenizer
from model.training.loop import train
from model.training.weights import load_weights, save_weights
from runner.queue.store import open_store
from tests.conftest import PROJECT, results_bits, row, rows
from tests.training_runs import TINY, Numbers, measured, run, timeless

pytestmark = pytest.mark.usefixtures("counting")


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


@pytest.mark.slow
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


def test_a_finished_job_is_trained_again_for_its_weights_and_goes_on_with_a_text(
    cli: Callable[..., subprocess.CompletedProcess[str]],
    tiny_grid: Path,
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled", "--seeds", "42")
    assert cli("work", "--jobs", "2").returncode == 0
    store = open_store(str(tmp_path / "jobs.db"))
    bits = results_bits(store)
    none = cli("generate", "1", "The state of")
    assert (none.returncode, "`python cli.py retry --keep-weights 1`" in none.stderr) == (65, True)

    folder = tmp_path / "runs" / store.database_id / "1" / "a1"
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "half").write_text("of a command that was killed after it")
    done = cli("retry", "--keep-weights", "1", "--cache-dir", str(cache_dir), timeout=90)
    assert done.returncode == 0, done.stderr
    assert not (folder / "tokenizer" / "half").exists()
    assert done.stdout == f"{folder}\n"
    assert "by the code that it ran" in done.stderr
    assert results_bits(store) == bits  # and each number came out again, or the weights were not kept
    assert [job["status"] for job in rows(store, "jobs")] == ["done", "done"]
    assert rows(store, "checkpoints") == []  # they are another thing
    assert not (folder / "again").exists()
    model, config = load_weights(folder)
    held_out = prepare(config, cache_dir).held_out("val")
    with torch.inference_mode():
        logits, _ = model(torch.from_numpy(held_out.inputs).long(), 0.0, torch.Generator())
        targets = torch.from_numpy(held_out.targets).long().flatten()
        loss = F.cross_entropy(logits.flatten(0, 1).double(), targets).item()
    assert loss == pytest.approx(row(store, "measures", job_id=1, name="val_loss")["value"], rel=1e-5)

    # Another result than the one that is recorded: nothing is kept.
    wrong = sa.text("UPDATE measures SET value = 9 WHERE job_id = 2 AND name = 'val_loss'")
    store.write(lambda c: c.execute(wrong))
    other = cli("retry", "--keep-weights", "2", "--cache-dir", str(cache_dir), timeout=90)
    assert other.returncode == 65
    assert "trained again, and not the same: val_loss 9.0 then, " in other.stderr
    assert not list((tmp_path / "runs" / store.database_id / "2").rglob("*.safetensors"))

    first = cli("generate", "1", "The state of the", "--tokens", "9", "--temperature", "0")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The state of the")
    assert len(first.stdout) > len("The state of the ")
    with torch.inference_mode():  # the likeliest token each time, as plain torch has it
        tokenizer = load_tokenizer(folder / "tokenizer")
        [(ids, _)] = tokenizer.encode(["The state of the"])
        going = ids.tolist()
        for _ in range(9):
            logits, _ = model(torch.tensor([going[-32:]]), 0.0, torch.Generator())
            going.append(int(logits[0, -1].argmax()))
    assert first.stdout.rstrip("\n") == tokenizer.backend.decode(going)

    lines = re.search(
        r"```python\n(import torch\nfrom model\.training\.weights.*?)```",
        (PROJECT / "docs/commands.md").read_text(),
        re.DOTALL,
    )
    assert lines
    code = lines[1].replace("<database id>/7", f"{store.database_id}/1")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/commands.md", "exec"), names)
    assert names["logits"].shape == (1, len(names["ids"]), 8192)
    assert names["again"] == names["text"]
    assert (tmp_path / "model.pt").stat().st_size > 100_000
    assert "weight" not in cli("clean").stdout  # what was kept on purpose stays
    listed = cli("clean", "--weights").stdout
    assert "weights.safetensors" in " ".join(listed.split())
    assert "4 weights" in listed
    cli("clean", "--weights", "--yes")
    assert not (folder / "weights.safetensors").exists()
    assert not (folder / "tokenizer").exists()
