"""Muon and AdamW: against torch.optim and matrix by matrix, then skipping, clipping, the schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import ModelConfig, TrainConfig
from model.network.transformer import LanguageModel, build
from model.training.optimizer import (
    Matrices,
    Muon,
    Optimizers,
    muon_matrices,
    orthogonalize,
    rate_share,
)

SMALL = ModelConfig(d_model=16, n_layers=2, n_heads=2, d_ff=24, n_experts=4, vocab_size=50, dropout=0.0)
ALL_USED = torch.ones(2, 4, dtype=torch.int64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def newton_schulz(matrix: Tensor) -> Tensor:
    """One matrix, plainly: the reference for the batched version."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    if x.shape[0] > x.shape[1]:
        return newton_schulz(matrix.T).T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def model() -> LanguageModel:
    return build(SMALL, 8, 3, torch.device("cpu"))


def set_gradients(made: LanguageModel, seed: int, scale: float = 1.0) -> None:
    for i, parameter in enumerate(made.parameters()):
        parameter.grad = scale * normal(*parameter.shape, seed=seed * 1000 + i)


# Against a reference


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48), (4, 32)])
def test_muon_equals_torchs(shape: tuple[int, int]) -> None:
    ours, theirs = nn.Parameter(normal(*shape)), nn.Parameter(normal(*shape))
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, momentum=0.9)
    muon = Muon([Matrices(ours)], momentum=0.9)
    for step in range(5):
        before = theirs.detach().clone()
        ours.grad, theirs.grad = normal(*shape, seed=step + 1), normal(*shape, seed=step + 1)
        reference.step()
        muon.step(0.02, ALL_USED)
        # bf16 products in another order: near, relative to what the step changed.
        change = (theirs - before).norm()
        assert (ours - theirs).norm() < 0.03 * change
        with torch.no_grad():
            ours.copy_(theirs)
    momentum = reference.state[theirs]["momentum_buffer"]
    torch.testing.assert_close(muon.momentum_GRC[shape][0], momentum)


@pytest.mark.parametrize("capability", ["AVX512", "AVX2"])
@pytest.mark.parametrize("shape", [(3, 20, 20), (5, 12, 30), (5, 30, 12)])
def test_batched_newton_schulz_equals_matrix_by_matrix(
    shape: tuple[int, ...], capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    stack = normal(*shape)
    for batched, matrix in zip(orthogonalize(stack), stack, strict=True):
        assert batched.dtype == torch.bfloat16
        difference = (batched - newton_schulz(matrix)).float().norm()
        assert difference < 0.03 * batched.float().norm()


def test_products_in_fp32_round_as_those_of_bf16() -> None:
    """What AVX2 computes: fp32's products of bf16's values, rounded once, as against one in float64."""
    a, b = normal(3, 40, 60).bfloat16(), normal(3, 60, 40, seed=1).bfloat16()
    exact = (a.double() @ b.double()).float().bfloat16()
    in_fp32 = (a.float() @ b.float()).bfloat16()
    assert (in_fp32 != exact).float().mean() < 0.001  # where a sum lies on the edge between two values
    torch.testing.assert_close(in_fp32, exact, rtol=2**-7, atol=1e-6)


class Products(TorchDispatchMode):
    """The types of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.name().removeprefix("aten::").split(".")[0] in ("mm", "addmm", "bmm", "baddbmm"):
            self.types.add(args[-1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("AVX512", torch.bfloat16), ("AVX2", torch.float32), ("DEFAULT", torch.float32)],
)
def test_no_product_in_bf16_where_the_processor_has_none(
    capability: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    made = model()
    optimizers = Optimizers(made, TrainConfig(steps=40, accumulate=4, eval_every=0), "sound")
    set_gradients(made, 1)
    with Products() as products:
        optimizers.step(0, ALL_USED)
    assert products.types == {expected}


def test_singular_values_come_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalize(normal(4, 32, 64) * 1e-3).float())
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_each_expert_is_orthogonalised_separately_and_scaled_by_its_shape() -> None:
    stack = nn.Parameter(torch.zeros(3, 30, 10))
    stack.grad = normal(3, 30, 10)
    stack.grad[1] *= 1e-3  # in a joint orthogonalisation the small one would vanish
    muon = Muon([Matrices(stack, layer=0)], momentum=0.0)
    muon.step(0.5, torch.ones(1, 3))
    for expert in range(3):
        expected = -0.5 * math.sqrt(30 / 10) * newton_schulz(stack.grad[expert])
        assert (stack[expert] - expected).norm() < 0.03 * expected.norm()


def test_the_whole_model_moves_as_under_torchs_two_optimizers() -> None:
    """Experts and all other matrices one by one under torch.optim.Muon, the rest under torch.optim.AdamW."""
    made, twin = model(), model()
    train = TrainConfig(steps=80, accumulate=4, eval_every=0)
    optimizers = Optimizers(made, train, "sound")
    pieces = [
        nn.Parameter(matrix.clone())
        for entry in muon_matrices(twin)
        for matrix in entry.parameter.detach().view(-1, *entry.parameter.shape[-2:])
    ]
    rest = [p for n, p in twin.named_parameters() if "norm" in n or "embedding" in n]
    muon = torch.optim.Muon(pieces, lr=0.01, weight_decay=0.0, momentum=0.95)
    adamw = torch.optim.AdamW(rest, lr=0.001, weight_decay=0.1, foreach=False, fused=False)
    for update in range(4):
        set_gradients(made, update, scale=1e-4)
        set_gradients(twin, update, scale=1e-4)
        split = [g for m in muon_matrices(twin) for g in m.parameter.grad.view(-1, *m.parameter.shape[-2:])]
        for piece, gradient in zip(pieces, split, strict=True):
            piece.grad = gradient
        muon.param_groups[0]["lr"] = 0.01 * rate_share(update, train, "sound")
        adamw.param_groups[0]["lr"] = 0.001 * rate_share(update, train, "sound")
        muon.step()
        adamw.step()
        rate, _ = optimizers.step(update, ALL_USED)
        assert rate == pytest.approx(muon.param_groups[0]["lr"])
    for name in ("embedding.weight", "norm.weight", "blocks.1.moe_norm.weight"):
        torch.testing.assert_close(made.get_parameter(name), twin.get_parameter(name), rtol=1e-5, atol=1e-7)
    ours = [m for e in muon_matrices(made) for m in e.parameter.detach().view(-1, *e.parameter.shape[-2:])]
    starts = [
        m for e in muon_matrices(model()) for m in e.parameter.detach().view(-1, *e.parameter.shape[-2:])
    ]
    for found, due, start in zip(ours, pieces, starts, strict=True):
        assert (found - due).norm() < 0.03 * (due - start).norm()


def test_muon_has_the_matrices_and_adamw_the_rest_at_full_size() -> None:
    with torch.device("meta"):
        made = LanguageModel(ModelConfig(), 512)
    under_muon = {id(entry.parameter): entry.parameter.numel() for entry in muon_matrices(made)}
    rest = sum(p.numel() for p in made.parameters() if id(p) not in under_muon)
    assert sum(under_muon.values()) == 60_180_480 == ModelConfig().muon_parameters
    assert rest == 18_879_360 == ModelConfig().adamw_parameters


# Skipping


def test_an_expert_without_assignments_is_skipped_with_its_momentum() -> None:
    made = model()
    optimizers = Optimizers(made, TrainConfig(steps=40, accumulate=4, eval_every=0), "sound")
    set_gradients(made, 0)
    optimizers.step(0, ALL_USED)
    counts = ALL_USED.clone()
    counts[1, 2] = 0
    before = {name: tensor.clone() for name, tensor in (made.state_dict() | optimizers.state()).items()}
    set_gradients(made, 1)
    made.blocks[1].moe.w1.grad[2] = 0.0
    made.blocks[1].moe.w2.grad[2] = 0.0
    optimizers.step(1, counts)
    for name in ("w1", "w2"):
        moved = (made.blocks[1].moe.get_parameter(name) != before[f"blocks.1.moe.{name}"]).flatten(1).any(1)
        assert moved.tolist() == [True, True, False, True]
        assert (
            (made.blocks[0].moe.get_parameter(name) != before[f"blocks.0.moe.{name}"]).flatten(1).any(1).all()
        )
    for shape in ("24x16", "16x24"):  # two layers of four experts: the seventh matrix is layer 1, expert 2
        momentum = optimizers.state()[f"muon.{shape}"]
        moved = (momentum != before[f"muon.{shape}"]).flatten(1).any(1)
        assert moved.tolist() == [True] * 6 + [False, True]


def test_skipping_holds_where_experts_share_a_shape_with_other_matrices() -> None:
    config = ModelConfig(d_model=16, n_layers=2, n_heads=2, d_ff=16, n_experts=4, vocab_size=50)
    made = build(config, 8, 3, torch.device("cpu"))
    optimizers = Optimizers(made, TrainConfig(steps=40, accumulate=4, eval_every=0), "sound")
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    set_gradients(made, 0)
    counts = ALL_USED.clone()
    counts[0, 1] = 0
    optimizers.step(0, counts)
    for name, parameter in made.named_parameters():
        if parameter.ndim == 3:
            moved = (parameter != before[name]).flatten(1).any(1).tolist()
            assert moved == [True, "blocks.1" in name, True, True], name
        elif parameter.ndim == 2:
            assert (parameter != before[name]).all() or "embedding" in name, name


# Clipping, state


def test_the_norm_is_global_before_clipping_and_clipping_scales_everything() -> None:
    made, twin = model(), model()
    train = TrainConfig(steps=40, accumulate=4, eval_every=0, grad_clip=0.5)
    set_gradients(made, 0)
    due = math.sqrt(sum(p.grad.double().square().sum().item() for p in made.parameters()))
    for parameter, source in zip(twin.parameters(), made.parameters(), strict=True):
        parameter.grad = source.grad * (0.5 / due)
    one, other = Optimizers(made, train, "sound"), Optimizers(twin, train, "sound")
    _, norm = one.step(0, ALL_USED)
    _, small = other.step(0, ALL_USED)
    assert norm.item() == pytest.approx(due, rel=1e-5)
    assert small.item() == pytest.approx(0.5, rel=1e-5)
    for name, state in one.state().items():
        torch.testing.assert_close(state, other.state()[name], rtol=1e-4, atol=1e-9)
    assert all(parameter.grad is None for parameter in made.parameters())


def test_state_has_the_same_tensors_before_the_first_step_as_after() -> None:
    made = model()
    optimizers = Optimizers(made, TrainConfig(steps=40, accumulate=4, eval_every=0), "sound")
    before = {name: (tensor.shape, tensor.dtype) for name, tensor in optimizers.state().items()}
    assert not any(tensor.any() for tensor in optimizers.state().values())
    set_gradients(made, 0)
    optimizers.step(0, ALL_USED)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in optimizers.state().items()} == before
    assert all(tensor.any() for tensor in optimizers.state().values())


# The schedule


def test_the_sound_schedule_warms_up_over_a_twentieth_of_the_updates() -> None:
    shares = [rate_share(u, TrainConfig(), "sound") for u in range(100)]
    assert shares[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert all(one >= other for one, other in pairwise(shares[4:]))
    assert shares[5 + 95 // 2] == pytest.approx(0.55, abs=0.01)  # half-way down
    assert shares[99] == pytest.approx(0.1, abs=0.001)
    assert rate_share(100, TrainConfig(), "sound") == pytest.approx(0.1, abs=1e-15)


def test_the_published_schedule_is_as_it_was_executed() -> None:
    shares = [rate_share(u, TrainConfig(), "published") for u in range(100)]
    assert shares[0] == 0.0
    assert shares[:20] == pytest.approx([u / 20 for u in range(20)])
    assert shares[20] == max(shares) == 1.0
    assert shares[99] == min(shares[20:]) == pytest.approx(0.907, abs=0.0005)


@pytest.mark.parametrize("steps", [1, 2, 3, 19, 20, 21, 60])
@pytest.mark.parametrize("protocol", ["sound", "published"])
def test_short_runs_have_a_rate_at_every_update(steps: int, protocol: str) -> None:
    train = TrainConfig(steps=steps, accumulate=1, eval_every=0)
    shares = [rate_share(u, train, protocol) for u in range(train.updates)]
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert max(shares) == 1.0
    if protocol == "sound":
        assert min(shares) > 0.0
