"""What a device can do, told by a card that is not here: torch.cuda's answers are injected."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from model.config import ConfigError, ModelConfig
from model.engines import cuda, device

CARD = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A card of this compute capability, whose flash attention takes the model's shapes or not."""

    def put(capability: tuple[int, int], takes_flash: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A card")
        monkeypatch.setattr(device, "_takes_flash", lambda *_: takes_flash)

    return put


def test_a_device_is_started_and_made_current_before_anything_counts_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[object] = []
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "none that repeats")
    monkeypatch.setattr(torch.cuda, "init", lambda: done.append(os.environ["CUBLAS_WORKSPACE_CONFIG"]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    assert device.prepare("cuda") == torch.device("cuda", 2)
    assert done == [":4096:8", torch.device("cuda", 2)]  # cuBLAS is told before CUDA starts
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert device.prepare("cuda:1") == torch.device("cuda", 1)
    assert done[2:] == [":16:8", torch.device("cuda", 1)]  # what the user chose repeats too
    assert device.prepare("cpu") == torch.device("cpu")
    assert len(done) == 4


@pytest.mark.parametrize(
    ("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")]
)
def test_bf16_begins_with_capability_8(
    card: Callable[..., None], capability: tuple[int, int], precision: str
) -> None:
    card(capability)
    assert device.multiplies_bf16(CARD) is (precision == "bf16")
    assert device.precision_of("auto", CARD) == precision
    assert device.precision_of("fp32", CARD) == "fp32"
    if precision == "bf16":
        assert device.precision_of("bf16", CARD) == "bf16"
    else:
        with pytest.raises(ConfigError, match=r"bf16: A card has compute capability 7\.5.*precision=auto"):
            device.precision_of("bf16", CARD)


@pytest.mark.parametrize(
    ("precision", "takes_flash", "kernel"),
    [("bf16", True, "flash"), ("bf16", False, "math"), ("fp32", True, "math")],
)
def test_one_kernel_of_attention_is_allowed(
    card: Callable[..., None], precision: str, takes_flash: bool, kernel: str
) -> None:
    card((8, 0), takes_flash)
    kernels = torch.backends.cuda
    before = {
        kernels.enable_flash_sdp: kernels.flash_sdp_enabled(),
        kernels.enable_math_sdp: kernels.math_sdp_enabled(),
        kernels.enable_mem_efficient_sdp: kernels.mem_efficient_sdp_enabled(),
        kernels.enable_cudnn_sdp: kernels.cudnn_sdp_enabled(),
    }
    try:
        assert device.choose_attention(ModelConfig(), 32, precision, CARD) == kernel
        assert kernels.flash_sdp_enabled() == (kernel == "flash")
        assert kernels.math_sdp_enabled() == (kernel == "math")
        assert not kernels.mem_efficient_sdp_enabled()
        assert not kernels.cudnn_sdp_enabled()
    finally:
        for restore, value in before.items():
            restore(value)


def test_strict_mode_raises_where_warnings_would_let_through() -> None:
    device.make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    device.make_deterministic(strict=False)
    assert torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize(("major", "grouped"), [(7, False), (8, False), (9, True), (10, True), (12, False)])
def test_the_grouped_kernel_is_used_where_its_fast_path_is(
    card: Callable[..., None], monkeypatch: pytest.MonkeyPatch, major: int, grouped: bool
) -> None:
    card((major, 0))
    monkeypatch.setattr(F, "grouped_mm", None, raising=False)
    rows = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device=CARD)
    assert cuda.has_grouped_kernel(rows, 384, 1536) == grouped
    assert not cuda.has_grouped_kernel(rows, 384, 1500)
