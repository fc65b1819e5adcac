"""What an update may cost on a GPU, counted at full scale on tensors that have no memory.

Launches of Triton's kernels are counted and not made; whoever reads a value raises. The numbers are budgets:
lower them when the count has fallen, and say why when it has to rise.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import RunConfig
from model.network.moe import MoE
from model.network.transformer import LanguageModel
from model.training.memory import USABLE, estimated_bytes
from model.training.optimizer import Optimizers

FULL = RunConfig().with_values({"vocab_size": 49_152})
WINDOWS = 12
FREE = {
    "detach", "empty", "empty_like", "empty_strided", "new_empty", "alias", "_unsafe_view",
    "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip
"""Operations that launch nothing and are not views."""
SORTS = {"scatter", "scatter_", "scatter_add", "scatter_add_", "index_put", "index_put_", "sort", "topk"}
"""What strict determinism turns into a sort on a GPU, or is one."""
READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique"}
LAUNCHES = {"forward": 360, "backward": 320, "optimizer": 200}
"""Counted: 347, 308 and 190, with clipping and AdamW; `grouped` has 575, 557 and 190 where grouped_mm is one
kernel."""
KEPT_BYTES = 505_000
"""A token's, all layers together; counted: 499,660, and 684,124 with `grouped`."""
GB = 1e9


class Counting(TorchDispatchMode):
    """Operations that would launch something, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not views and name not in FREE:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Triton's kernels by name, as often as they would be started."""
    if not importlib.util.find_spec("triton"):
        pytest.skip("triton is not installed")
    from triton.runtime.jit import JITFunction

    counts: Counter[str] = Counter()

    def run(self: Any, *arguments: Any, **more: Any) -> None:
        counts[self.fn.__name__] += 1

    monkeypatch.setattr(JITFunction, "run", run)
    return counts


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> LanguageModel:
    """The model at full scale under an engine, without memory."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: torch.enable_grad())
    monkeypatch.setattr(
        MoE, "draw", lambda self, n, _: torch.randn(n, self.gate.weight.shape[0], device="meta")
    )
    # Tensors without memory have foreach operations; who calls them asks for the device's name.
    monkeypatch.setattr(clip_grad, "_device_has_foreach_support", lambda _: True)
    with torch.device("meta"):
        return LanguageModel(FULL.model, FULL.train.seq_len, request.param).train()


def phases(model: LanguageModel, launches: Counter[str]) -> Iterator[tuple[str, Counter[str]]]:
    """What each phase of a pass and its update launches, torch's operations and Triton's kernels."""
    tokens_BT = torch.zeros(WINDOWS, FULL.train.seq_len, dtype=torch.int64, device="meta")
    model.open_gradients()
    optimizers = Optimizers(model, FULL.train, "sound")
    optimizers.state()  # made before: each update but the first finds it
    total: Any = None
    counts_LE: Any = None

    def forward() -> None:
        nonlocal total, counts_LE
        loss, routing = model.loss(tokens_BT, tokens_BT, 0.1, torch.Generator())
        total, counts_LE = loss + routing.aux_loss.sum(), routing.counts_E

    steps = (
        ("forward", forward),
        ("backward", lambda: torch.autograd.backward(total)),
        ("optimizer", lambda: optimizers.step(0, counts_LE)),
    )
    for name, step in steps:
        launches.clear()
        with Counting() as counting:
            step()
        yield name, counting.counts + launches


@pytest.mark.parametrize("made", ["triton"], indirect=True)
def test_launches_of_an_update_by_phase(made: LanguageModel, launches: Counter[str]) -> None:
    """Of one pass, attention counted as the dozen operations a layer of the kernel `math`; flash is one."""
    for name, counts in phases(made, launches):
        assert sum(counts.values()) <= LAUNCHES[name], (name, counts)


@pytest.mark.parametrize("made", ["triton"], indirect=True)
def test_nothing_is_read_back_and_nothing_scattered(made: LanguageModel, launches: Counter[str]) -> None:
    for name, counts in phases(made, launches):
        assert not READS & counts.keys(), name
        sorts = {operation: counts[operation] for operation in SORTS & counts.keys()}
        # A choice of experts a layer; nothing on the way back.
        assert sorts == ({"topk": FULL.model.n_layers} if name == "forward" else {}), name


def kept_bytes(model: LanguageModel) -> int:
    """What backward keeps of a pass beside the weights."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    tokens_BT = torch.zeros(WINDOWS, FULL.train.seq_len, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(tokens_BT, tokens_BT, 0.1, torch.Generator())
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)


@pytest.mark.parametrize("made", ["triton"], indirect=True)
def test_bytes_kept_for_backward(made: LanguageModel, launches: Counter[str]) -> None:
    """In float32, with the scores of attention that `math` keeps: what a T4 would."""
    per_token = kept_bytes(made) / (WINDOWS * FULL.train.seq_len)
    assert per_token <= KEPT_BYTES


def test_a_24_gb_card_takes_two_steps_at_once_in_bf16() -> None:
    """By estimate, which is held above what is kept (tests/training/test_setting.py)."""
    peak = estimated_bytes(FULL, 2 * FULL.train.batch_size, "bf16", "flash")
    assert peak < 14 * GB
    assert peak < USABLE * 24 * GB
