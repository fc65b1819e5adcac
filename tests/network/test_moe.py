"""The MoE layer: against a dense loop over every expert, then invariants, streams and precision.

Shapes: N tokens, D d_model, F d_ff, E experts, K top-k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig, RoutingConfig
from model.engines import cuda
from model.engines.cuda import GatherRows, expert_matmul
from model.network.moe import MoE, Routing, gate_logits, load_balancing_loss, route

D, FF, E = 8, 16, 4


def layer(
    top_k: int = 2, dtype: torch.dtype = torch.float64, dropout: float = 0.0, seed: int = 0, **routing: Any
) -> MoE:
    """A layer with weights large enough that the experts differ."""
    config = ModelConfig(
        d_model=D, n_heads=2, d_ff=FF, n_experts=E, top_k=top_k, dropout=dropout, vocab_size=16
    )
    made = MoE(config, routing=RoutingConfig(**routing))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return made.to(dtype)


def tokens(batch: int = 3, time: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, time, D, generator=torch.Generator().manual_seed(1), dtype=dtype)


def noise(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def routed(
    made: MoE, x_BTD: Tensor, noise_std: float, generator: torch.Generator, seen_E: Tensor | None = None
) -> tuple[Tensor, Routing]:
    """The layer's answer, with what the generator draws for it."""
    return made(x_BTD, noise_std, made.draw(x_BTD.shape[0] * x_BTD.shape[1], generator), seen_E)


def dense(
    made: MoE, x_BTD: Tensor, logits_NE: Tensor, bias: Sequence[float] = (0.0,) * E
) -> tuple[Tensor, Tensor, Tensor]:
    """Every expert on every token, one by one, weighted by a matrix that is mostly zero."""
    x_ND = x_BTD.reshape(-1, D)
    weights_NE, counts_E = torch.zeros_like(logits_NE), torch.zeros(E, dtype=torch.int64)
    full_NE = torch.exp(logits_NE) / torch.exp(logits_NE).sum(1, keepdim=True)
    for n in range(len(x_ND)):
        chosen = sorted(range(E), key=lambda e: -logits_NE[n, e].item() - bias[e])[: made.top_k]
        for e in chosen:
            counts_E[e] += 1
            others = torch.exp(logits_NE[n, chosen]).sum()
            weights_NE[n, e] = full_NE[n, e] if made.top_k == 1 else torch.exp(logits_NE[n, e]) / others
    y_ND = torch.zeros_like(x_ND)
    for e in range(E):
        hidden = x_ND @ made.w1[e].T
        y_ND = y_ND + weights_NE[:, e : e + 1] * ((hidden * torch.sigmoid(hidden)) @ made.w2[e].T)
    aux = E * sum(counts_E[e].item() / (len(x_ND) * made.top_k) * full_NE[:, e].mean() for e in range(E))
    return y_ND.view_as(x_BTD), counts_E, aux


def gradients(output: Tensor, aux: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1.0, 1.0, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum() + aux, inputs)


# Against a reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("top_k", [1, 2, 3, E])
@pytest.mark.parametrize("noise_std", [0.0, 0.5])
def test_forward_and_backward_equal_a_dense_loop(top_k: int, dtype: torch.dtype, noise_std: float) -> None:
    made, x = layer(top_k, dtype).train(), tokens(dtype=dtype).requires_grad_()
    output, routing = routed(made, x, noise_std, noise())

    x_dense = x.detach().clone().requires_grad_()
    clean_NE = x_dense.reshape(-1, D) @ made.gate.weight.T
    unit_NE = torch.randn(clean_NE.shape, generator=noise(), dtype=dtype)
    expected, counts_E, aux = dense(made, x_dense, clean_NE + noise_std * unit_NE)

    close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(output, expected, **close)
    assert torch.equal(routing.counts_E, counts_E)
    torch.testing.assert_close(routing.aux_loss, aux, **close)
    found = gradients(output, routing.aux_loss, [x, *made.parameters()])
    due = gradients(expected, aux, [x_dense, *made.parameters()])
    for one, other in zip(found, due, strict=True):
        torch.testing.assert_close(one, other, **close)


@pytest.mark.parametrize("top_k", [1, 2])
def test_an_expert_without_tokens_gets_no_gradient(top_k: int) -> None:
    made = layer(top_k).train()
    x = tokens().abs().requires_grad_()
    with torch.no_grad():
        made.gate.weight[1] = -100.0  # positive inputs never choose expert 1
    output, routing = routed(made, x, 0.0, noise())
    expected, counts_E, _ = dense(made, x, x.reshape(-1, D) @ made.gate.weight.T)
    assert routing.counts_E[1] == 0
    assert torch.equal(routing.counts_E, counts_E)
    torch.testing.assert_close(output, expected)
    w1, w2 = torch.autograd.grad(output.sum(), [made.w1, made.w2])
    assert not w1[1].any()
    assert not w2[1].any()
    assert w1[[0, 2, 3]].flatten(1).any(1).all()


def test_top_1_leaves_the_router_in_the_language_loss() -> None:
    made = layer(top_k=1).train()
    output, _ = routed(made, tokens(), 0.0, noise())
    (gate,) = torch.autograd.grad(output.sum(), [made.gate.weight])
    assert gate.abs().max() > 1e-3


def test_load_balancing_loss_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=torch.float64)
    counts = torch.tensor([[1, 3, 0]])
    # f = (1/4, 3/4, 0), P = (0.3, 0.45, 0.25): 3 · (0.075 + 0.3375 + 0) = 1.2375
    assert load_balancing_loss(probabilities, counts).item() == pytest.approx(1.2375, rel=1e-12)


def test_load_balancing_loss_is_one_when_even_and_n_experts_when_collapsed() -> None:
    even = torch.full((10, E), 1 / E, dtype=torch.float64)
    assert load_balancing_loss(even, torch.full((1, E), 5)).item() == pytest.approx(1.0)
    collapsed = torch.zeros(10, E, dtype=torch.float64)
    collapsed[:, 0] = 1.0
    assert load_balancing_loss(collapsed, torch.tensor([[20, 0, 0, 0]])).item() == pytest.approx(E)


def test_gather_rows_has_the_gradient_of_indexing() -> None:
    k, n = 3, 4
    order = torch.randperm(n * k, generator=noise())
    inverse = order.argsort()
    x = torch.randn(n, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(GatherRows.apply(x, order // k, inverse, k), x[order // k])
    assert torch.autograd.gradcheck(lambda t: GatherRows.apply(t, order // k, inverse, k), x)
    assert torch.autograd.gradcheck(
        lambda t: GatherRows.apply(t, inverse, order, 1), torch.randn(n * k, 2).double().requires_grad_()
    )


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped kernel")
def test_the_grouped_kernel_equals_the_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(24, 16, generator=noise(), dtype=torch.float32).bfloat16()
    weights = torch.randn(E, 32, 16, generator=noise(3), dtype=torch.float32).bfloat16()
    ends = torch.tensor([5, 5, 20, 24])
    answers = []
    for one_kernel in (False, True):
        monkeypatch.setattr(cuda, "has_grouped_kernel", lambda *_, answer=one_kernel: answer)
        a, b = x.clone().requires_grad_(), weights.clone().requires_grad_()
        output = expert_matmul(a, b, ends)
        answers.append([output, *torch.autograd.grad(output.float().square().sum(), [a, b])])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


# Invariants


def test_counts_sum_to_tokens_times_top_k() -> None:
    for top_k in (1, 2, E):
        _, routing = routed(layer(top_k), tokens(2, 5), 0.3, noise())
        assert routing.counts_E.sum() == 2 * 5 * top_k
        assert routing.counts_E.dtype == torch.int64


def test_the_order_of_experts_does_not_matter() -> None:
    made, shuffled, x = layer(), layer(), tokens()
    turn = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for name in ("gate.weight", "w1", "w2"):
            shuffled.get_parameter(name).copy_(made.get_parameter(name)[turn])
    one, routing = routed(made.eval(), x, 0.0, noise())
    other, turned = routed(shuffled.eval(), x, 0.0, noise())
    torch.testing.assert_close(one, other)
    assert torch.equal(routing.counts_E[turn], turned.counts_E)


def test_a_token_is_answered_alike_in_any_company() -> None:
    made, x = layer().eval(), tokens(1, 6)
    together, _ = routed(made, x, 0.0, noise())
    for t in range(6):
        alone, _ = routed(made, x[:, t : t + 1], 0.0, noise())
        torch.testing.assert_close(alone, together[:, t : t + 1])


def test_weights_are_a_softmax_over_the_chosen_or_at_top_1_over_all() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]], dtype=torch.float64)
    weights, experts, probabilities = route(logits, 2)
    assert experts.tolist() == [[1, 2]]
    assert weights[0, 0].item() == pytest.approx(math.exp(2) / (math.exp(2) + math.exp(1)))
    weights, experts, _ = route(logits, 1)
    total = sum(math.exp(v) for v in (0.0, 2.0, 1.0, -1.0))
    assert weights.tolist() == [[pytest.approx(math.exp(2) / total)]]
    assert probabilities.sum().item() == pytest.approx(1.0)


def test_noise_routes_in_training_only_and_its_loss_sees_the_noisy_softmax() -> None:
    made, x = layer(), tokens()
    clean, evaluated = routed(made.eval(), x, 0.0, noise())
    still, still_evaluated = routed(made, x, 5.0, noise())
    assert torch.equal(clean, still)
    assert torch.equal(evaluated.counts_E, still_evaluated.counts_E)
    moved, trained = routed(made.train(), x, 5.0, noise())
    assert not torch.equal(clean, moved)
    assert trained.aux_loss.item() != pytest.approx(evaluated.aux_loss.item())


def test_statistics_are_measured_in_evaluation_only() -> None:
    made, x = layer(), tokens()
    _, trained = routed(made.train(), x, 0.1, noise())
    assert (trained.entropy, trained.top1_probability, trained.agreement) == (None, None, None)
    with torch.no_grad():
        made.gate.weight.zero_()
    _, flat = routed(made.eval(), x, 0.0, noise())
    assert flat.entropy.item() == pytest.approx(math.log(E))
    assert flat.top1_probability.item() == pytest.approx(1 / E)


def test_agreement_is_the_share_of_choices_that_noise_keeps() -> None:
    made, x = layer().eval(), tokens(4, 50)
    shares = [routed(made, x, std, noise())[1].agreement.item() for std in (0.0, 0.5, 1000.0)]
    assert shares[0] == 1.0
    assert 0.5 < shares[1] < 1.0
    # Noise alone: two of four experts by chance keep K / E of the choices.
    assert shares[2] == pytest.approx(2 / E, abs=0.1)


# Streams and precision


def test_noise_is_drawn_at_std_zero_too() -> None:
    made, x = layer().train(), tokens()
    zero, half = noise(), noise()
    routed(made, x, 0.0, zero)
    routed(made, x, 0.5, half)
    assert torch.equal(zero.get_state(), half.get_state())
    assert not torch.equal(zero.get_state(), noise().get_state())


def test_dropout_draws_do_not_depend_on_the_routing() -> None:
    x, states = tokens(), []
    for seed in (0, 5):
        torch.manual_seed(3)
        made = layer(dropout=0.5, seed=seed).train()
        routed(made, x, 0.0, noise())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_dropout_zeroes_hidden_channels_and_keeps_the_mean() -> None:
    made, x = layer(dropout=0.5), tokens(8, 32)
    plain, _ = routed(made.eval(), x, 0.0, noise())
    torch.manual_seed(0)
    mean = torch.stack([routed(made.train(), x, 0.0, noise())[0] for _ in range(200)]).mean(0)
    assert not torch.allclose(mean, plain, rtol=1e-6)
    assert (mean - plain).abs().mean() < 0.15 * plain.abs().mean()


def test_the_router_stays_in_float32_under_autocast() -> None:
    made, x = layer(dtype=torch.float32).train(), tokens(dtype=torch.float32)
    expected, routing = routed(made, x, 0.1, noise())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, cast = routed(made, x, 0.1, noise())
        assert gate_logits(x.flatten(0, 1).bfloat16(), made.gate).dtype == torch.float32
    assert torch.equal(routing.counts_E, cast.counts_E)
    assert torch.equal(routing.aux_loss, cast.aux_loss)
    # The experts do compute in bf16: near, and further off than float32 could round.
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    assert (output.float() - expected).abs().max() > 2**-14 * expected.abs().max()
    gradient = torch.autograd.grad(output.float().sum(), [made.w1])[0]
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
