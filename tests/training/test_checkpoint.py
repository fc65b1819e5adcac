"""Checkpoints: what comes back is what went in; anything else is refused in one line and nothing is run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import resource
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.events import Finished, Request, Resumed
from model.processor import instructions, processor
from model.training import checkpoint, state
from model.training.checkpoint import CheckpointRefused, Facts
from tests.training_runs import (
    TINY,
    Numbers,
    checkpoints,
    measured,
    run,
    run_until,
    timeless,
)

SAVED_STEP = 20


@pytest.fixture(autouse=True)
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(state, "prepare", lambda config, _: Numbers(config))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint at step 20, in a folder that nobody changes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "prepare", lambda config, _: Numbers(config))
        events = run_until(TINY, folder, SAVED_STEP - 2, Request.STOP)
    return Path(checkpoints(events)[0][0])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def start(path: Path, digest: str | None = None) -> tuple[state.State, Resumed]:
    """Start a run from a file, by default under its right hash."""
    return state.start(TINY, path.parent, "cpu", [(str(path), digest or sha256(path))])


def refusal(path: Path, digest: str | None = None) -> str:
    """The reason that a file is refused with; the run starts from nothing, untouched."""
    refused_run, resumed = start(path, digest)
    assert (resumed.step, resumed.path, len(resumed.refused)) == (0, None, 1)
    fresh = state.tensors(state.start(TINY, path.parent, "cpu", ())[0])
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in state.tensors(refused_run).items())
    reason = resumed.refused[0]
    assert "\n" not in reason
    assert reason.startswith(f"{path}: ")
    return reason.removeprefix(f"{path}: ")


def rewritten(
    source: Path, target: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]
) -> Path:
    """A copy whose tensors and header were changed by someone who knows the format."""
    with safe_open(source, framework="pt") as opened:
        header = json.loads(opened.metadata()["nightshift"])
    tensors = {name: tensor.clone() for name, tensor in load_file(source).items()}
    change(tensors, header)
    save_file(tensors, target, metadata={"nightshift": json.dumps(header)})
    return target


def read_or_reason(path: Path, expected: dict[str, torch.Tensor]) -> str | None:
    """Why a file is refused under its right hash, None where it is read and fits."""
    try:
        tensors, facts = checkpoint.read(path, sha256(path), TINY.hash, expected)
    except CheckpointRefused as reason:
        return str(reason)
    assert all(tensors[name].shape == like.shape for name, like in expected.items())
    assert facts.config_hash == TINY.hash
    return None


# What comes back


@pytest.mark.slow
def test_everything_comes_back(written: Path) -> None:
    with torch.no_grad():
        run_, resumed = start(written)
    assert (resumed.step, resumed.path, resumed.exact, resumed.refused) == (
        SAVED_STEP,
        str(written),
        True,
        [],
    )
    saved = load_file(written)
    live = state.tensors(run_)
    assert {name for name in saved if not name.startswith(("stream.", "series"))} == set(live)
    assert all(torch.equal(saved[name], live[name]) for name in live)
    for name, generator in run_.streams.items():
        assert torch.equal(generator.get_state(), saved[f"stream.{name}.cpu"])
    assert torch.equal(torch.get_rng_state(), saved["stream.dropout.cpu"])
    assert len(run_.series) == SAVED_STEP // 2
    assert len(run_.val_losses) == 2
    names = set(saved)
    assert {"model.cos_TC", "model.embedding.weight", "optimizer.muon.48x16", "series"} <= names
    assert "optimizer.adamw.norm.weight.exp_avg_sq" in names


def test_the_file_is_tensors_and_json(written: Path) -> None:
    with safe_open(written, framework="pt") as opened:
        header = json.loads(opened.metadata()["nightshift"])
    assert header["format"] == checkpoint.FORMAT
    assert header["step"] == SAVED_STEP
    assert header["config_hash"] == TINY.hash
    assert set(header["environment"]) == {
        "torch", "device", "device_type", "instructions", "cpu_capability", "threads", "precision",
        "engine", "deterministic", "source",
    }  # fmt: skip
    assert written.name == f"step-{SAVED_STEP}.safetensors"
    assert [p.name for p in written.parent.iterdir()] == [written.name]  # nothing is left beside it


# Damage


def test_a_truncated_file_is_refused(written: Path, tmp_path: Path) -> None:
    content, path = written.read_bytes(), tmp_path / "cut.safetensors"
    for length in (0, 1, 7, 8, 9, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "damaged or cut short" in refusal(path, sha256(written))
        assert "cannot be read" in refusal(path)  # even if someone had recorded the hash of the cut file


def test_a_single_flipped_bit_is_refused(written: Path, tmp_path: Path) -> None:
    content, path = written.read_bytes(), tmp_path / "flipped.safetensors"
    for at in range(0, len(content), len(content) // 25):
        damaged = bytearray(content)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        assert "damaged or cut short" in refusal(path, sha256(written))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="cannot be read"):
        checkpoint.read(tmp_path / "gone", "0" * 64, TINY.hash, {})
    with pytest.raises(CheckpointRefused, match="cannot be read"):
        checkpoint.read(tmp_path, "0" * 64, TINY.hash, {})


@pytest.mark.slow
def test_a_bad_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    undisturbed = run(TINY, tmp_path / "whole")
    first = run_until(TINY, tmp_path / "a", 18, Request.STOP, checkpoint_seconds=0)
    candidates = checkpoints(first)
    for path, _ in candidates[:2]:
        content = bytearray(Path(path).read_bytes())
        content[-1] ^= 1
        Path(path).write_bytes(content)
    second = run(TINY, tmp_path / "b", resume_from=candidates)
    resumed = second[0]
    assert isinstance(resumed, Resumed)
    assert (resumed.step, resumed.path) == (16, candidates[2][0])
    assert [reason.split(": ")[0] for reason in resumed.refused] == [path for path, _ in candidates[:2]]
    assert measured(second).items() <= measured(undisturbed).items()
    assert isinstance(second[-1], Finished)
    assert timeless(second[-1].results) == timeless(undisturbed[-1].results)


def test_when_none_is_usable_the_run_starts_from_nothing(written: Path, tmp_path: Path) -> None:
    events = run(TINY, tmp_path, resume_from=[(str(written), "0" * 64), (str(tmp_path / "gone"), "1" * 64)])
    assert isinstance(events[0], Resumed)
    assert (events[0].step, events[0].path, len(events[0].refused)) == (0, None, 2)
    assert isinstance(events[-1], Finished)


# Files that were made to deceive, under their right hash


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "step-20.safetensors"
    path.write_bytes(pickle.dumps(Payload()))
    assert "cannot be read" in refusal(path)
    torch.save({"weights": Payload()}, path)
    assert "cannot be read" in refusal(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "bad header"),
        ("", "bad header"),
        ("{", "bad header"),
        ("[]", "not a checkpoint of format"),
        ("[" * 100_000, "bad header"),
        ('{"format": 99}', "not a checkpoint of format"),
        ('{"format": 1}', "bad header"),
        ('{"format": 1, "step": NaN}', "NaN is not a number"),
        ('{"format": 1, "step": ' + "9" * 5_000 + "}", "bad header"),
    ],
    ids=str,
)
def test_nonsense_headers_are_refused(tmp_path: Path, header: str | None, reason: str) -> None:
    path = tmp_path / "step-20.safetensors"
    save_file({"series": torch.zeros(1)}, path, metadata=None if header is None else {"nightshift": header})
    assert reason in refusal(path)


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-20.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63 - 1) + b"{}")
    assert "cannot be read" in refusal(path)
    claim = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(struct.pack("<Q", len(claim)) + claim)
    assert "cannot be read" in refusal(path)


def test_what_does_not_fit_the_run_is_refused(written: Path, tmp_path: Path) -> None:
    def drop(name: str) -> Callable[..., None]:
        return lambda tensors, header: tensors.pop(name)

    def put(name: str, tensor: torch.Tensor) -> Callable[..., None]:
        return lambda tensors, header: tensors.update({name: tensor})

    def say(**values: Any) -> Callable[..., None]:
        return lambda tensors, header: header.update(values)

    cases = [
        (drop("model.norm.weight"), "tensor model.norm.weight is missing"),
        (drop("stream.dropout.cpu"), "the dropout stream's state is missing"),
        (drop("series"), "the series does not have a row for each update"),
        (
            put("model.norm.weight", torch.zeros(17)),
            "tensor model.norm.weight is torch.float32 (17,), expected",
        ),
        (put("model.norm.weight", torch.zeros(16).double()), "expected torch.float32 (16,)"),
        (put("series", torch.zeros(10, 6)), "the series does not have a row for each update"),
        (put("stream.noise.cpu", torch.zeros(3, dtype=torch.uint8)), "the noise stream's state is damaged"),
        (put("stream.noise.cpu", torch.zeros(3)), "the noise stream's state is damaged"),
        (say(config_hash="f" * 64), "written by another configuration, ffffffffffff"),
        (say(step=22), "the series does not have a row for each update"),
        (say(step=21), "step 21 is not an update boundary of this run"),
        (say(step=-2), "step -2 is not an update boundary of this run"),
        (say(step=32), "step 32 is not an update boundary of this run"),
        (say(step="20"), "step is not of type int"),
        (say(step=True), "step is not of type int"),
        (say(val_losses=["low"]), "must hold numbers"),
        (say(seconds={"training": 1.0}), "the timings are not those of a run"),
        (say(extra=1), "bad header"),
    ]
    for number, (change, reason) in enumerate(cases):
        assert reason in refusal(rewritten(written, tmp_path / f"{number}.safetensors", change))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_loaded_or_refused(written: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Damage to the header under a right hash: never another exception, and never half a checkpoint."""
    content = bytearray(written.read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "step-20.safetensors"
    path.write_bytes(content)
    expected = {"series": torch.zeros(SAVED_STEP // 2, 6, dtype=torch.float64)}
    reason = read_or_reason(path, expected)
    assert reason is None or (reason and "\n" not in reason)


# Other environments


@pytest.mark.slow
def test_another_numeric_environment_goes_on_and_is_not_exact_any_more(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    first = run_until(TINY, tmp_path / "a", 24, Request.STOP, resume_from=[(str(written), sha256(written))])
    assert isinstance(first[0], Resumed)
    assert (first[0].step, first[0].exact) == (SAVED_STEP, False)
    # The same environment as the checkpoint's now, but the run has been elsewhere.
    second = run(TINY, tmp_path / "b", resume_from=checkpoints(first))
    assert isinstance(second[0], Resumed)
    assert (second[0].step, second[0].exact) == (24, False)
    assert isinstance(second[-1], Finished)


def test_a_processor_of_the_same_name_with_other_instructions_is_another(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(written)[1].exact is True
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr("model.processor.CPUINFO", told)
    for key in ("flags\t\t", "Features\t"):
        told.write_text(f"model name\t: {processor()}\n{key}: fpu sve bf16 avx2 fma\n\n{key}: more\n")
        assert instructions() == "fma avx2 bf16 sve"
        assert start(written)[1].exact is False
    told.unlink()
    assert instructions() == ""


def test_streams_start_anew_on_another_kind_of_device(written: Path, tmp_path: Path) -> None:
    def as_on_cuda(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        for name in ("dropout", "noise"):
            del tensors[f"stream.{name}.cpu"]
            tensors[f"stream.{name}.cuda"] = torch.zeros(16, dtype=torch.uint8)
        header["environment"]["device_type"] = "cuda"

    path = rewritten(written, tmp_path / "cuda.safetensors", as_on_cuda)
    one, resumed = start(path)
    assert (resumed.step, resumed.exact) == (SAVED_STEP, False)
    states = [generator.get_state() for generator in one.streams.values()]
    other, _ = start(path)
    assert all(torch.equal(g.get_state(), s) for g, s in zip(other.streams.values(), states, strict=True))
    fresh, _ = state.start(TINY, tmp_path, "cpu", ())
    assert not any(torch.equal(g.get_state(), s) for g, s in zip(fresh.streams.values(), states, strict=True))


# Writing


def test_a_crash_while_writing_leaves_no_file_of_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    started, _ = state.start(TINY, tmp_path, "cpu", ())
    monkeypatch.setattr(checkpoint.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        state.save(started, tmp_path / "a")
    assert not (tmp_path / "a" / "step-0.safetensors").exists()
    monkeypatch.undo()
    saved = state.save(started, tmp_path / "a")  # over the remains
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["step-0.safetensors"]
    assert (sha256(saved.path), saved.path.stat().st_size) == (saved.sha256, saved.size_bytes)


def test_the_file_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        calls.append(
            "flush folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "flush file"
        )
        fsync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(self, target)

    started, _ = state.start(TINY, tmp_path, "cpu", ())
    monkeypatch.setattr(checkpoint.os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    state.save(started, tmp_path / "a")
    assert calls == ["flush file", "rename", "flush folder"]


def test_an_unwritable_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    started, _ = state.start(TINY, tmp_path, "cpu", ())
    with pytest.raises(OSError, match="file"):
        state.save(started, tmp_path / "file")


def test_a_write_that_fails_says_why_as_the_system_does(tmp_path: Path) -> None:
    """With a limit on the size of files, as a full disk would: the errno decides what becomes of the job."""
    started, _ = state.start(TINY, tmp_path, "cpu", ())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
        with pytest.raises(OSError, match="step-0") as caught:
            state.save(started, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "a" / "step-0.safetensors").exists()


def test_facts_survive_the_header(tmp_path: Path) -> None:
    facts = Facts(
        step=4,
        config_hash="ab",
        environment={"torch": "2", "threads": 1},
        exact=False,
        seconds={"training": 0.1 + 0.2},
        timed_steps=3,
        val_losses=[1 / 3, 5.0],
        peak_memory_bytes=2**40,
    )
    saved = checkpoint.write(tmp_path, {"a": torch.arange(3)}, facts)
    tensors, back = checkpoint.read(saved.path, saved.sha256, "ab", {})
    assert back == facts
    assert tensors["a"].tolist() == [0, 1, 2]
    with pytest.raises(CheckpointRefused, match="another configuration"):
        checkpoint.read(saved.path, saved.sha256, "cd", {})
    with pytest.raises(ValueError, match="Out of range"):  # NaN has no place in JSON
        checkpoint.write(tmp_path, {}, replace(facts, val_losses=[float("nan")]))
