"""How a run is set up for its device, and what it says where that is otherwise than asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import RunConfig
from model.engines import choice, cuda
from model.engines import device as devices
from model.network.moe import MoE
from model.network.transformer import LanguageModel
from model.training import memory, rehearsal, setting, state
from model.training.checkpoint import numeric_environment
from tests.conftest import PROJECT
from tests.training_runs import TINY, Numbers, checkpoints, run

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
FULL = RunConfig().with_values({"vocab_size": 49_152})
GB = 1e9


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a T4 answers."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A T4")
    monkeypatch.setattr(devices, "driver_version", lambda: "580.1")
    has(monkeypatch, 15.8 * GB)


def has(monkeypatch: pytest.MonkeyPatch, total: float) -> None:
    facts = SimpleNamespace(total_memory=total)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: facts)


# What fits


def test_a_small_card_takes_a_step_in_pieces_and_a_large_one_several_steps(
    monkeypatch: pytest.MonkeyPatch, card: None
) -> None:
    assert memory.that_fits(FULL, CARD, "fp32", "math", 2) == (1, 12)
    has(monkeypatch, 25.4 * GB)
    assert memory.that_fits(FULL, CARD, "bf16", "flash", 2) == (2, 24)
    has(monkeypatch, 0.1 * GB)  # too little for anything: the smallest pieces, and torch says so
    assert memory.that_fits(FULL, CARD, "fp32", "math", 2) == (1, 1)


@pytest.mark.parametrize(
    ("config", "before", "after"), [(FULL, None, "64"), (FULL, "7", "7"), (TINY, None, None)]
)
def test_a_large_run_on_a_cpu_keeps_few_compiled_products(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, before: str | None, after: str | None
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, before or "")
    if before is None:
        monkeypatch.delenv(name)
    setting.settle(config, CPU)
    assert os.environ.get(name) == after


def test_pieces_that_are_asked_for_and_a_cpu_are_taken_as_they_are(card: None) -> None:
    asked = FULL.with_values({"micro_batch": 8})
    assert memory.that_fits(asked, CARD, "fp32", "math", 1) == (1, 8)
    assert memory.that_fits(FULL, CPU, "fp32", "", 1) == (1, 24)


@pytest.fixture
def without_device(monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """The model for GPUs on tensors that have no memory: whoever reads a value raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: torch.enable_grad())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(cuda, "has_grouped_kernel", lambda *_: True)
    monkeypatch.setattr(F, "grouped_mm", lambda x, w, offs: x @ w[0], raising=False)
    monkeypatch.setattr(
        MoE, "draw", lambda self, n, _: torch.randn(n, self.gate.weight.shape[0], device="meta")
    )
    with torch.device("meta"):
        return LanguageModel(FULL.model, FULL.train.seq_len).train()


@pytest.mark.parametrize("windows", [2, 12])
def test_the_estimate_is_above_what_backward_keeps(without_device: LanguageModel, windows: int) -> None:
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    weights = {parameter.untyped_storage()._cdata for parameter in without_device.parameters()}
    tokens_BT = torch.zeros(windows, FULL.train.seq_len, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        without_device.loss(tokens_BT, tokens_BT, 0.1, torch.Generator())
    found = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
    estimate = memory.estimated_bytes(FULL, windows, "fp32", "math") - 28.0 * FULL.total_parameters
    assert found < estimate < 4 * found


def test_an_update_reads_nothing_back_from_the_device(without_device: LanguageModel) -> None:
    tokens_BT = torch.zeros(2, 16, dtype=torch.int64, device="meta")
    loss, routing = without_device.loss(tokens_BT, tokens_BT, 0.1, torch.Generator())
    (loss + routing.aux_loss.sum()).backward()
    muon = state.Optimizers(without_device, FULL.train, "sound").muon
    muon.step(0.01, routing.counts_E)
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        loss.item()  # what reading a value would have raised


# Bits that repeat


@pytest.mark.parametrize("values", [{}, {"precision": "bf16"}, {"engine": "plain"}, {"bias_rate": 0.01}])
def test_a_sound_device_repeats_its_bits(values: dict[str, Any]) -> None:
    config = TINY.with_values(values)
    assert rehearsal.twice(config, config.train.engine, values.get("precision", "fp32"), CPU) == ""


def test_a_device_that_wavers_or_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    update, calls = rehearsal.update, []

    def wavering(*arguments: Any) -> list[Tensor]:
        calls.append(1)
        loss, *weights = update(*arguments)
        weights[0][0, 0] += 1e-6 * len(calls)
        return [loss, *weights]

    monkeypatch.setattr(rehearsal, "update", wavering)
    assert "two equal updates differ in 1 of" in rehearsal.twice(TINY, "auto", "fp32", CPU)
    assert setting.check("cpu").startswith("two equal updates differ")
    monkeypatch.setattr(rehearsal, "update", lambda *_: [torch.tensor(float("nan"))])
    assert "the loss of untrained weights is nan" in rehearsal.twice(TINY, "auto", "fp32", CPU)


def test_a_device_without_a_deterministic_operation_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def twice(*_: Any) -> str:
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        raise RuntimeError(
            "frobnicate_cuda does not have a deterministic implementation, but you set …\nmore"
        )

    monkeypatch.setattr(rehearsal, "twice", twice)
    assert setting._wavers(TINY, "auto", "fp32", CPU).startswith("frobnicate_cuda does not have")
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert numeric_environment(CPU, "fp32", "cpu")["deterministic"] is False
    # The run itself: what a GPU's setting would be, on the CPU.
    settled = setting.settle(TINY, CPU)
    found = setting.Setting(
        **{**vars(settled), "deterministic": False, "remarks": ["not deterministic here"]}
    )
    monkeypatch.setattr(state, "settle", lambda *_: found)
    monkeypatch.setattr(state, "prepare", lambda config, _: Numbers(config))
    events = run(TINY, tmp_path / "a", checkpoint_seconds=0)
    assert (events[0].exact, events[0].remarks) == (False, ["not deterministic here"])  # type: ignore[union-attr]
    again = run(TINY, tmp_path / "b", resume_from=checkpoints(events))
    assert again[0].exact is False  # type: ignore[union-attr]


def test_another_error_in_the_rehearsal_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(*_: Any) -> str:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(rehearsal, "twice", twice)
    with pytest.raises(RuntimeError, match="no kernel image"):
        setting._wavers(TINY, "auto", "fp32", CPU)


# What is recorded


def test_a_cuda_environment_has_the_card_and_not_the_threads(card: None) -> None:
    found = numeric_environment(CARD, "fp32", "cuda", attention="math")
    assert found["capability"] == "7.5"
    assert found["driver"] == "580.1"
    assert found["attention"] == "math"
    assert "threads" not in found
    assert "attention" not in numeric_environment(CPU, "fp32", "cpu")


def test_a_t4_runs_fp32_in_pieces_and_says_so(monkeypatch: pytest.MonkeyPatch, card: None) -> None:
    monkeypatch.setattr(choice, "operations", lambda *_: cuda)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(rehearsal, "twice", lambda *_: "")
    monkeypatch.setattr(devices, "choose_attention", lambda *_: "math")
    found = setting.settle(FULL, CARD)
    assert (found.precision, found.steps_at_once, found.windows_at_once) == ("fp32", 1, 12)
    assert found.computing == "cuda, 12 windows at once"
    assert "12 of a step's 24 windows" in found.remarks[0]


def test_a_processor_that_multiplies_no_bf16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = TINY.with_values({"precision": "bf16"})
    for capability, remarks in (("AVX2", 1), ("AVX512", 0)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda told=capability: told)
        assert len(setting.settle(asked, CPU).remarks) == remarks
        assert setting.settle(TINY, CPU).remarks == []


@pytest.mark.slow
def test_without_a_compiler_compiled_falls_back_and_says_so(tmp_path: Path) -> None:
    code = (
        "import torch; from model.training import setting; from tests.training_runs import TINY\n"
        "found = setting.settle(TINY.with_values({'engine': 'compiled'}), torch.device('cpu'))\n"
        "print(found.engine, '|', found.computing, '|', *found.remarks)"
    )
    nowhere = {"CXX": str(tmp_path / "no-such-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        check=True,
    )
    engine, computing, said = done.stdout.split(" | ")
    assert engine == "auto"
    assert computing.startswith("cpu, ")
    assert "; compiled: " in computing
    assert said.startswith("train.engine = compiled cannot be had (compiled: ")
