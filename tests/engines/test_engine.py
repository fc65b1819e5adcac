"""The engines: each fast operation against the plain one and its own gradient, then streams and whole runs.

Shapes: B batch, T time, N tokens, D d_model, H heads, C channels of a head, F d_ff, E experts, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from model.config import RoutingConfig, RunConfig
from model.engines import choice, cpu, cpu_experts, cuda, head, plain
from model.engines.dropout import Keep
from model.network.transformer import build, rotary_tables
from model.training.optimizer import orthogonalize, orthogonalize_singly
from tests.training_runs import TINY, measured, run

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def settled() -> Any:
    """Bits depend on the thread count; the library of products is a setting of the process."""
    torch.set_num_threads(1)
    yield
    cpu_experts.choose(False)


@pytest.fixture
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of operations. On a CPU `grouped` does without its kernel, by slices like older GPUs.

    `kernels` with a product for each expert; "even" with one of stacks for all.
    """
    monkeypatch.setattr(cpu_experts, "CALL", 10**9 if request.param == "even" else 0)
    return cpu if request.param == "even" else request.param


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def answers(f: Callable[..., Tensor], *arguments: Tensor) -> list[Tensor]:
    """What a function returns, and its gradients under uneven weights."""
    given = inputs(*arguments)
    output = f(*given)
    weights = torch.linspace(-1.0, 1.0, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), given)]


def assert_alike(one: list[Tensor], other: list[Tensor], **close: float) -> None:
    for found, due in zip(one, other, strict=True):
        torch.testing.assert_close(found, due, **(close or CLOSE))


def choices(n: int, k: int, n_experts: int, seed: int = 0) -> Tensor:
    """k different experts for each token; the last expert gets none."""
    return normal(n, n_experts - 1, seed=seed).topk(k).indices


# Each operation against the plain one, without dropout


@pytest.mark.parametrize("fast", [cpu, "even", cuda], indirect=True)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_experts(fast: Any, k: int) -> None:
    chosen = choices(37, k, 5)
    given = normal(37, 6), normal(37, k, seed=1), normal(5, 9, 6, seed=2), normal(5, 6, 9, seed=3)

    def of(ops: Any) -> Callable[..., Tensor]:
        return lambda x, weights, w1, w2: ops.experts(x, weights, chosen, w1, w2, 0.0)[0]

    assert_alike(answers(of(fast), *given), answers(of(plain), *given))
    counts = fast.experts(given[0], given[1], chosen, *given[2:], 0.0)[1]
    assert counts.tolist() == [(chosen == e).sum().item() for e in range(5)]
    assert counts[4] == 0


@pytest.mark.parametrize("time", [1, 7, cpu.QUERY_ROWS, 2 * cpu.QUERY_ROWS + 5])
def test_attention(time: int) -> None:
    rotation = [table.double() for table in rotary_tables(time, 3)]
    of = [lambda qkv, ops=ops: ops.attend(qkv, rotation, 0.0) for ops in (cpu, plain)]
    one, other = (answers(f, normal(2, time, 3, 2, 6)) for f in of)
    assert_alike(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n", [3, head.CHUNK["cpu"], head.CHUNK["cpu"] + 1])
def test_the_head_and_its_loss(n: int) -> None:
    targets = torch.randint(0, 11, (n,), generator=torch.Generator().manual_seed(1))
    given = normal(n, 4), 3.0 * normal(11, 4, seed=2)
    of = [lambda x, w, ops=ops: ops.head_loss(x, w, targets).view(1) * 3.0 for ops in (cpu, plain)]
    assert_alike(*(answers(f, *given) for f in of))
    (losses, hits), (due, due_hits) = (ops.head_scores(*given, targets) for ops in (cpu, plain))
    # One is in float32: a log-sum-exp is off by a few roundings of its largest logit.
    atol = 4 * 2**-24 * (given[0] @ given[1].T).abs().max().item()
    torch.testing.assert_close(losses, due.double(), rtol=1e-6, atol=atol)
    assert torch.equal(hits, due_hits)


def test_the_loss_of_an_unlikely_target_is_finite() -> None:
    """Its probability is 0 in float32; its logit is not."""
    x, weight = torch.tensor([[1.0]]), torch.tensor([[400.0], [0.0], [-400.0]])
    for target, due in ((0, 0.0), (1, 400.0), (2, 800.0)):
        assert cpu.head_loss(x, weight, torch.tensor([target])).item() == pytest.approx(due, abs=1e-6)


def test_of_equal_logits_the_first_is_the_likeliest() -> None:
    x, weight = torch.ones(3, 1), torch.tensor([[1.0], [2.0], [2.0]])
    for ops in (cpu, plain):
        assert ops.head_scores(x, weight, torch.tensor([0, 1, 2]))[1].tolist() == [False, True, False]


def test_norm_and_embedding() -> None:
    norm = nn.RMSNorm(6, eps=1e-5, dtype=torch.float64)
    of = [lambda x, gain, ops=ops: ops.rms_norm(x, _with(norm, gain)) for ops in (cpu, plain)]
    assert_alike(*(answers(f, normal(2, 3, 6), normal(6, seed=1)) for f in of))
    tokens = torch.tensor([[3, 0, 3], [1, 3, 0]])
    of = [lambda weight, ops=ops: ops.embed(tokens, weight) for ops in (cpu, plain)]
    assert_alike(*(answers(f, normal(5, 6)) for f in of))


def _with(norm: nn.RMSNorm, gain: Tensor) -> Any:
    """The norm with a gain that is not a parameter."""
    made = nn.RMSNorm(norm.normalized_shape, eps=norm.eps, dtype=gain.dtype)
    del made.weight
    made.weight = gain
    return made


# Each gradient against differences, with dropout


@pytest.mark.slow
@pytest.mark.parametrize("call", [0, 10**9])
def test_gradients_are_those_of_what_was_computed(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The same draw each time: with its mask held, dropout is a smooth function too."""
    monkeypatch.setattr(cpu_experts, "CALL", call)
    chosen, targets = choices(9, 2, 4), torch.tensor([1, 4, 4, 0])
    rotation = [table.double() for table in rotary_tables(5, 1)]
    cases: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
        (
            lambda x, weights, w1, w2: cpu.experts(x, weights, chosen, w1, w2, 0.3)[0],
            [normal(9, 3), normal(9, 2), normal(4, 5, 3), normal(4, 3, 5)],
        ),
        (lambda qkv: cpu.attend(qkv, rotation, 0.3), [normal(2, 5, 3, 2, 2)]),
        (lambda x: cpu.dropout(x, 0.3), [normal(4, 5)]),
        (lambda x, y: cpu.add_dropout(x, y, 0.3), [normal(4, 5), normal(4, 5, seed=1)]),
        (lambda x, w: cpu.head_loss(x, w, targets), [normal(4, 3), normal(6, 3)]),
        (
            lambda x, gain: cpu.rms_norm(x, _with(nn.RMSNorm(4, eps=1e-5), gain)),
            [normal(2, 4), normal(4)],
        ),
        (lambda w: cpu.embed(chosen, w), [normal(4, 3)]),
    ]
    for f, given in cases:

        def seeded(*arguments: Tensor, f: Callable[..., Tensor] = f) -> Tensor:
            torch.manual_seed(0)
            return f(*arguments)

        assert gradcheck(seeded, inputs(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_there_is_added_to(dtype: torch.dtype) -> None:
    chosen, targets = choices(9, 2, 4), torch.tensor([1, 4, 4, 0])
    w1, w2 = (nn.Parameter(normal(*shape, dtype=torch.float32)) for shape in ((4, 5, 3), (4, 3, 5)))
    table = nn.Parameter(normal(6, 3, dtype=torch.float32))
    x, weights = normal(9, 3, dtype=torch.float32), normal(9, 2, dtype=torch.float32)

    def total() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            answer = cpu.experts(x, weights, chosen, w1, w2, 0.0)[0].square().sum()
            return answer + cpu.head_loss(cpu.embed(targets, table), table, targets) / 3

    total().backward()
    once = [p.grad.clone() for p in (w1, w2, table)]
    assert all(gradient.any() for gradient in once)
    total().backward()
    for parameter, gradient in zip((w1, w2, table), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


# Dropout's draws


def test_dropout_keeps_the_share_and_the_mean() -> None:
    torch.manual_seed(0)
    for p in (0.1, 0.5, 0.99):
        keep = Keep((400, 1000), p)
        mask = keep.mask(torch.float32)
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        share = mask.mean().item()
        assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / 400_000)
        assert keep.scale * (1 - round(p * 65_536) / 65_536) == pytest.approx(1.0, abs=1e-12)
        # No row or column stands out, and neighbours know nothing of each other.
        for axis, length in ((0, 400), (1, 1000)):
            spread = mask.mean(axis).sub(share).abs().max().item()
            assert spread < 6 * math.sqrt(p * (1 - p) / length)
        a, b = mask[:, 1:].flatten() - share, mask[:, :-1].flatten() - share
        assert abs((a * b).mean().item()) < 5 * p * (1 - p) / math.sqrt(400_000)


def test_draws_are_a_function_of_the_stream() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, next_one = Keep((5, 7), 0.4), Keep((5, 7), 0.4)
    torch.set_rng_state(before)
    assert torch.equal(one.bits, Keep((5, 7), 0.9).bits)
    assert torch.equal(next_one.bits, Keep((5, 7), 0.4).bits)
    assert not torch.equal(one.bits, next_one.bits)


def test_the_draws_of_a_seed_never_change() -> None:
    """A known answer: another numpy or torch that draws otherwise would change every run's bits."""
    torch.manual_seed(42)
    assert Keep((8,), 0.1).bits.tolist() == [-24883, -21916, -25924, 23086, -10822, -5578, -25463, 27964]


# Which library multiplies


def test_float32_products_stay_float32() -> None:
    """With whichever library was chosen: bf16 factors would be off by 2^-9."""
    torch.manual_seed(0)
    for n, i, o in ((64, 100, 70), (513, 384, 40), (16, 1536, 384)):
        a, b = torch.randn(n, i), torch.randn(i, o)
        for fast in (True, False):
            cpu_experts.choose(fast)
            torch.testing.assert_close(a @ b, (a.double() @ b.double()).float(), rtol=1e-4, atol=3e-4)


def test_a_library_that_rounds_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_experts, "_stays_exact", lambda: False)
    assert cpu_experts.choose(True) == "BLAS"
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


def test_the_probe_notices_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product whose factors go through bf16, as on a processor with matrix units for it."""
    original = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: original(a.bfloat16().float(), b))
    assert not cpu_experts._stays_exact.__wrapped__()
    monkeypatch.undo()
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


def test_each_run_settles_its_process_anew() -> None:
    assert choice.settle("auto", CPU).startswith("cpu, ")
    assert choice.settle("plain", CPU) == "plain, BLAS"
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    assert choice.operations("plain", torch.empty(0)) is plain
    assert choice.operations("auto", torch.empty(0)) is cpu
    assert choice.operations("auto", torch.empty(0, device="meta")) is cuda


# Whole models and runs


def test_the_engines_agree_on_a_model_and_its_gradients() -> None:
    config = TINY.with_values({"dropout": 0.0}).model
    found = []
    for name in ("auto", "plain"):
        model = build(config, 8, 3, CPU, name).double().train()
        tokens = torch.arange(32).view(4, 8) % config.vocab_size
        loss, routing = model.loss(tokens, tokens.roll(1, 1), 0.3, torch.Generator().manual_seed(0))
        (loss + routing.aux_loss.sum()).backward()
        found.append([loss.detach(), routing.counts_E, *(p.grad for p in model.parameters())])
    assert_alike(*found)


@pytest.mark.parametrize("balance", ["micro-batch", "batch"])
@pytest.mark.parametrize("name", ["auto", "plain"])
def test_micro_batches_together_are_the_mean_of_each_alone(name: str, balance: str) -> None:
    """The same noise, loads balanced one by one, and the gradient of their mean; all but dropout's masks."""
    config = TINY.with_values({"dropout": 0.0}).model
    routing = RoutingConfig(z_loss_weight=1.0)
    tokens = torch.randint(config.vocab_size, (6, 8), generator=torch.Generator().manual_seed(0))
    found = []
    for together in (1, 3):
        model = build(config, 8, 3, CPU, name, routing).double().train()
        stream, counts_LE = torch.Generator().manual_seed(0), torch.zeros(2, 4, dtype=torch.int64)
        losses = torch.zeros(3, dtype=torch.float64)
        for batch in tokens.chunk(3 // together):
            seen = counts_LE if balance == "batch" else None
            loss, layers = model.loss(batch, batch.roll(1, 1), 0.5, stream, seen, together)
            assert layers.z_loss is not None
            parts = torch.stack([loss, layers.aux_loss.sum(), layers.z_loss.sum()]) * (together / 3)
            parts.sum().backward()
            losses, counts_LE = losses + parts.detach(), counts_LE + layers.counts_E
        found.append([losses, counts_LE, *(p.grad for p in model.parameters())])
    assert_alike(*found)


@pytest.mark.parametrize(
    ("values", "due"),
    [
        ({}, 1),  # 12,288 tokens a step
        ({"batch_size": 8, "seq_len": 128}, 4),
        ({"batch_size": 8, "seq_len": 256}, 4),
        ({"batch_size": 8, "seq_len": 512}, 2),
        ({"batch_size": 8, "seq_len": 512, "accumulate": 5, "steps": 5}, 1),  # 2 does not divide 5
        ({"batch_size": 8, "seq_len": 128, "micro_batch": 4}, 1),
        ({"batch_size": 8, "seq_len": 128, "micro_batch": 8}, 4),
        ({"batch_size": 8, "seq_len": 128, "engine": "plain"}, 1),
    ],
    ids=str,
)
def test_how_many_steps_go_together_on_a_cpu(values: dict[str, Any], due: int) -> None:
    train = RunConfig().with_values({"eval_every": 0, **values}).train
    assert choice.steps_at_once(train, CPU) == due
    assert choice.steps_at_once(train, torch.device("meta")) == 1


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 3e-2)])
def test_an_update_is_the_same_with_both_engines(
    numbers: None, tmp_path: Path, precision: str, tolerance: float
) -> None:
    """From equal weights, and after it: more updates would let rounding grow, through each choice of experts.

    The gradients themselves are compared in float64, above.
    """
    config = TINY.with_values({"dropout": 0.0, "steps": 2, "eval_every": 0, "precision": precision})
    found = []
    for name in ("auto", "plain"):
        events = run(config.with_values({"engine": name}), tmp_path)
        assert ("plain" in events[0].environment["engine"]) == (name == "plain")
        values = measured(events)
        train, val = values[2, "train"][0], values[2, "val"][0]
        found.append([train["loss"], train["gradient_norm"], val["loss"], val["router_entropy"]])
    assert found[0] == pytest.approx(found[1], rel=tolerance)


@pytest.mark.slow
def test_the_plain_engine_is_as_determined(numbers: None, tmp_path: Path) -> None:
    """And leaves nothing behind for the next run of the process."""
    config = TINY.with_values({"steps": 8, "eval_every": 0})
    first = run(config, tmp_path / "first", checkpoint_seconds=0)
    twice = [
        run(config.with_values({"engine": "plain"}), tmp_path / str(i), checkpoint_seconds=0)
        for i in range(2)
    ]
    assert measured(twice[0]) == measured(twice[1])
    again = run(config, tmp_path / "again", checkpoint_seconds=0)
    assert measured(first) == measured(again)


@pytest.mark.parametrize("shape", [(5, 12, 30), (5, 30, 12)])
def test_batched_and_single_newton_schulz_agree(shape: tuple[int, ...]) -> None:
    stack = normal(*shape, dtype=torch.float32)
    for one, other in zip(orthogonalize(stack), orthogonalize_singly(stack), strict=True):
        assert (one.float() - other.float()).norm() < 0.03 * one.float().norm()
