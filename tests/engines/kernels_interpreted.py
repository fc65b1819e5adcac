"""The Triton kernels under Triton's interpreter: run by test_triton.py in a process with TRITON_INTERPRET=1.

Each kernel, forward and backward, against the plain formulas by model/engines/self_check.py's comparisons,
over other shapes than a run's; then the engine as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import ModelConfig, RoutingConfig
from model.engines import choice, self_check, triton
from model.engines.kernels import activation, residual_norm, sorting
from model.engines.kernels.masks import Drop
from model.engines.self_check import COMPARISONS, PRECISIONS, Sizes, furthest
from model.network.transformer import build
from model.training import rehearsal, setting
from tests.training_runs import TINY

CPU = torch.device("cpu")
SMALL = ModelConfig(
    d_model=12, n_layers=1, n_heads=2, d_ff=10, n_experts=4, top_k=2, vocab_size=19, dropout=0.2
)
ODD = Sizes(tokens=9, width=18, hidden=21, heads=3, experts=5, top_k=2, vocabulary=23, dropout=0.3)


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    """Few rows of odd widths; the last expert is empty, and with few tokens so are others."""
    experts, heads = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    return Sizes(
        tokens=draw(st.integers(1, 9)),
        width=heads * 2 * draw(st.integers(1, 4)),
        hidden=draw(st.integers(1, 21)),
        heads=heads,
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        vocabulary=draw(st.integers(2, 23)),
        dropout=draw(st.sampled_from([0.0, 0.1, 0.5])),
    )


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("compare", COMPARISONS.values(), ids=lambda compare: compare.__name__)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(sizes())
@example(ODD)
@example(Sizes(tokens=1, width=2, hidden=1, heads=1, experts=1, top_k=1, vocabulary=2, dropout=0.0))
def test_kernel_is_its_formula(compare: Callable[..., Any], dtype: torch.dtype, sizes: Sizes) -> None:
    assert furthest(compare(sizes, dtype, CPU), dtype) == ""


def test_several_blocks_of_rows_and_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """More assignments than one block sorts, more columns than one block takes, tiles begun and whole."""
    monkeypatch.setattr(sorting, "COUNTERS", 1)  # blocks of 64
    monkeypatch.setattr("model.engines.kernels.cross_entropy.BLOCK", 16)
    wide = ODD._replace(tokens=100, vocabulary=37, hidden=activation.BLOCK + 3)
    for compare in (self_check.by_expert, self_check.products):
        assert furthest(compare(wide, torch.float32, CPU), torch.float32) == ""
    for compare in (self_check.softmax_gradient, self_check.silu_dropout):
        assert furthest(compare(wide._replace(tokens=3), torch.float32, CPU), torch.float32) == ""


# Dropout


def philox(counter: np.ndarray, key: int) -> np.ndarray:
    """Philox4x32-10 of counters (c, 0, 0, 0): four words each (Salmon et al. 2011, figure 4 and table 2)."""
    zero, mask = np.zeros_like(counter), np.uint64(0xFFFFFFFF)
    words = [counter, zero, zero, zero]
    keys = [np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)]
    for _ in range(10):
        one, other = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        high, low = [each >> np.uint64(32) for each in (one, other)], [each & mask for each in (one, other)]
        words = [high[1] ^ words[1] ^ keys[0], low[1], high[0] ^ words[3] ^ keys[1], low[0]]
        keys = [(keys[0] + np.uint64(0x9E3779B9)) & mask, (keys[1] + np.uint64(0xBB67AE85)) & mask]
    return np.stack(words, -1)


def test_masks_are_philox_and_the_same_in_every_kernel() -> None:
    rows, width, p = 19, 13, 0.3
    torch.manual_seed(5)
    drop = Drop(p, CPU)
    found = activation.silu_dropout(torch.ones(rows, width), drop) != 0
    torch.manual_seed(5)
    zeros = torch.zeros(rows, width)
    stream, _ = residual_norm.add_norm(zeros, zeros + 1, torch.ones(width), 1e-6, p)
    assert torch.equal(stream != 0, found)
    assert drop.key is not None
    counters = np.arange(3, dtype=np.uint64)[:, None] * np.uint64(width) + np.arange(width, dtype=np.uint64)
    words = philox(counters, int(drop.key))
    halves = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], -1).reshape(3, width, 8)
    due = torch.from_numpy((halves.transpose(0, 2, 1).reshape(24, width)[:rows] >= drop.level).copy())
    assert torch.equal(found, due)
    assert stream[stream != 0].unique().tolist() == pytest.approx([65_536 / (65_536 - round(0.3 * 65_536))])


# The engine as a whole


def test_experts_with_dropout_are_the_formula_under_their_mask() -> None:
    """Forward and backward through the one autograd function; the mask lies over the sorted rows."""
    n, k, d, f, e, p = 7, 2, 6, 10, 4, 0.4
    draw = torch.Generator().manual_seed(1)
    given = [torch.randn(*shape, generator=draw) for shape in ((n, d), (n, k), (e, f, d), (e, d, f))]
    chosen = torch.randn(n, e - 1, generator=draw).topk(k).indices
    torch.manual_seed(3)
    mask_SF = activation.silu_dropout(torch.ones(n * k, f), Drop(p, CPU)) / F.silu(torch.ones(()))

    def plainly(x: Tensor, weights: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        order = chosen.flatten().sort(stable=True).indices
        rows = [
            w2[chosen.flatten()[at]] @ (F.silu(w1[chosen.flatten()[at]] @ x[at // k]) * mask_SF[place])
            for place, at in enumerate(order.tolist())
        ]
        answers = torch.stack(rows)[order.argsort()].view(n, k, d)
        return (answers * weights.unsqueeze(-1)).sum(1)

    above = (torch.randn(n, d, generator=draw),)
    due = self_check._with_gradients(plainly, tuple(given), above)
    torch.manual_seed(3)
    found = self_check._with_gradients(
        lambda x, weights, w1, w2: triton.experts(x, weights, chosen, w1, w2, p)[0], tuple(given), above
    )
    for one, other in zip(found, due, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_model_and_its_gradients_are_those_of_the_plain_engine() -> None:
    """Over two pieces: the second adds to the gradients of the first."""
    config = ModelConfig(**{**vars(SMALL), "dropout": 0.0})
    tokens = torch.randint(config.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0))
    found = []
    for engine in ("triton", "plain"):
        model = build(config, 6, 3, CPU, engine, RoutingConfig()).train()
        model.open_gradients()
        for piece in tokens.split(1):
            noise = torch.Generator().manual_seed(0)
            loss, layers = model.loss(piece, piece.roll(1, 1), 0.5, noise)
            (loss + layers.aux_loss.sum()).backward()
        found.append([loss.detach(), layers.counts_E, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_an_update_in_bf16_repeats_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"d_model": 8, "n_heads": 1, "n_layers": 1, "d_ff": 8, "batch_size": 1, "seq_len": 4}
    config = TINY.with_values({**tiny, "vocab_size": rehearsal.VOCABULARY})
    monkeypatch.setattr(rehearsal, "_small", lambda _: config)
    assert rehearsal.twice(config, "triton", "bf16", CPU) == ""


def test_the_check_passes_and_the_engine_is_chosen(tmp_path: Path) -> None:
    assert choice.usable("triton", CPU, SMALL) == ("triton", "")
    config = TINY.with_values({**vars(SMALL), "engine": "triton"})
    found = setting.settle(config, CPU)
    assert (found.engine, found.remarks) == ("triton", [])
    assert found.computing.startswith("triton, ")


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (lambda found: found.mul_(1.01), "triton: silu with dropout in float32 is off by 0.0"),
        (lambda found: found.fill_(float("nan")), "triton: silu with dropout in float32 is off by nan"),
        (lambda found: exec("raise RuntimeError('PassManager::run failed\\nat 12:3')"), "PassManager::run"),
    ],
    ids=["wrong", "NaN", "does not compile"],
)
def test_a_kernel_that_is_wrong_or_does_not_compile_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, break_: Callable[[Tensor], object], said: str
) -> None:
    right = activation.silu_dropout

    def broken(*arguments: Any) -> Tensor:
        found = right(*arguments)
        break_(found)
        return found

    monkeypatch.setattr(activation, "silu_dropout", broken)
    choice.cannot_triton.cache_clear()
    try:
        found = setting.settle(TINY.with_values({**vars(SMALL), "engine": "triton"}), CPU)
    finally:
        choice.cannot_triton.cache_clear()
    assert found.engine == "auto"
    assert found.computing.startswith("cpu, ")
    assert said in found.computing
    assert found.remarks[0].startswith("train.engine = triton cannot be had (triton: ")
    assert found.remarks[0].endswith("; auto computes")
