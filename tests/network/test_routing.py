"""Variants of the router: kinds of noise, z-loss, bias, whose load is balanced; each against plain loops.

The layer alone; whole runs are in tests/training/test_routing_runs.py.
Shapes: N tokens, D d_model, E experts, K top-k.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig, RoutingConfig
from model.network.moe import (
    MoE,
    choose,
    load_balancing_loss,
    route,
    shift_bias,
    strength,
    z_loss,
)
from model.network.transformer import build
from model.training.optimizer import muon_matrices
from tests.network.test_moe import D, E, dense, gradients, layer, noise, routed, tokens

KINDS = ("gaussian", "annealed", "jitter", "learned", "gumbel")
CPU = torch.device("cpu")
DOUBLE = torch.float64


def loops(made: MoE, kind: str, x_ND: Tensor, std: float) -> Tensor:
    """The noisy logits, token by token and expert by expert, from the same draws."""
    n, uniform = len(x_ND), kind in ("jitter", "gumbel")
    shape = (n, D if kind == "jitter" else E)
    draw = (torch.rand if uniform else torch.randn)(shape, generator=noise(), dtype=x_ND.dtype)
    rows = []
    for i in range(n):
        row = []
        for e in range(E):
            gate = made.gate.weight[e]
            clean = sum(gate[d] * x_ND[i, d] for d in range(D))
            if kind == "jitter":
                low, high = 1 - math.sqrt(3) * std, 1 + math.sqrt(3) * std
                row.append(sum(gate[d] * x_ND[i, d] * (low + (high - low) * draw[i, d]) for d in range(D)))
            elif kind == "gumbel":
                row.append(clean + std / math.sqrt(math.pi**2 / 6) * -math.log(-math.log(draw[i, e])))
            elif kind == "learned":
                wide = sum(made.noise_gate.weight[e, d] * x_ND[i, d] for d in range(D))
                row.append(clean + draw[i, e] * torch.log(1 + torch.exp(wide)) * std / math.log(2))
            else:
                row.append(clean + std * draw[i, e])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def perturbed(made: MoE, x_ND: Tensor, clean_NE: Tensor, std: float) -> Tensor:
    """The noisy logits, with what `noise()` draws for them."""
    return made.noisy(x_ND, clean_NE, std, made.draw(len(x_ND), noise()))


# Against a reference


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_noise_equals_plain_loops(kind: str, top_k: int) -> None:
    """What the layer answers, its losses, and every gradient, those through the noise included."""
    made = layer(top_k, noise=kind, z_loss_weight=1.0).train()
    x = tokens().requires_grad_()
    output, routing = routed(made, x, 0.4, noise())
    x_dense = x.detach().clone().requires_grad_()
    logits_NE = loops(made, kind, x_dense.reshape(-1, D), 0.4)
    expected, counts_E, aux = dense(made, x_dense, logits_NE)
    z = sum(torch.log(torch.exp(row).sum()) ** 2 for row in logits_NE) / len(logits_NE)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(routing.z_loss, z)
    assert torch.equal(routing.counts_E, counts_E)
    found = gradients(output, routing.aux_loss + routing.z_loss, [x, *made.parameters()])
    due = gradients(expected, aux + z, [x_dense, *made.parameters()])
    assert len(due) == 4 + (kind == "learned")
    for one, other in zip(found, due, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_bias_chooses_and_weighs_nothing(top_k: int) -> None:
    made, x = layer(top_k, bias_rate=0.1).train(), tokens().requires_grad_()
    bias = [0.5, -1.0, 0.0, 2.0]
    assert made.bias_E is not None
    made.bias_E.copy_(torch.tensor(bias))
    output, routing = routed(made, x, 0.4, noise())
    logits_NE = loops(made, "gaussian", x.reshape(-1, D), 0.4)
    expected, counts_E, aux = dense(made, x, logits_NE, bias)
    assert torch.equal(routing.counts_E, counts_E)
    assert not torch.equal(counts_E, dense(made, x, logits_NE)[1])  # the bias does move the choice
    torch.testing.assert_close(output, expected)
    found = gradients(output, routing.aux_loss, [x, *made.parameters()])
    for one, other in zip(found, gradients(expected, aux, [x, *made.parameters()]), strict=True):
        torch.testing.assert_close(one, other)


def test_z_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]], dtype=DOUBLE)
    due = (math.log(2) ** 2 + math.log(math.exp(1) + math.exp(3)) ** 2) / 2
    assert z_loss(logits).item() == pytest.approx(due, rel=1e-12)
    assert torch.autograd.gradcheck(z_loss, torch.randn(5, 3, dtype=DOUBLE).requires_grad_())


def test_the_bias_moves_towards_the_mean_load() -> None:
    bias_E = torch.tensor([0.0, 0.5, -0.5, 1.0])
    shift_bias(bias_E, torch.tensor([10, 0, 4, 2]), 0.25)  # the mean is 4
    assert bias_E.tolist() == [-0.25, 0.75, -0.5, 1.25]
    shift_bias(bias_E, torch.tensor([1, 1, 1, 2]), 0.25)  # a mean of 1.25 is no whole number
    assert bias_E.tolist() == [0.0, 1.0, -0.25, 1.0]


def test_the_load_evens_out_under_the_bias_alone() -> None:
    made, x = layer(bias_rate=0.01).eval(), tokens(8, 64)
    with torch.no_grad():
        made.gate.weight[0] += 1.0
    before = routed(made, x, 0.0, noise())[1].counts_E
    for _ in range(300):
        counts_E = routed(made, x, 0.0, noise())[1].counts_E
        shift_bias(made.bias_E, counts_E, 0.01)
    assert counts_E.double().std() < 0.1 * before.double().std()


def test_the_balance_counts_earlier_micro_batches() -> None:
    made, x = layer().train(), tokens()
    seen_E = torch.tensor([100, 0, 50, 0])
    routing = routed(made, x, 0.2, noise(), seen_E)[1]
    alone = routed(made, x, 0.2, noise())[1]
    assert torch.equal(routing.counts_E, alone.counts_E)  # its own: the sum is the caller's
    probabilities_NE = torch.softmax(loops(made, "gaussian", x.reshape(-1, D), 0.2), -1)
    load = [(alone.counts_E[e] + seen_E[e]).item() for e in range(E)]
    due = E * sum(load[e] / sum(load) * probabilities_NE[:, e].mean() for e in range(E))
    torch.testing.assert_close(routing.aux_loss, due)
    assert routing.aux_loss.item() != pytest.approx(alone.aux_loss.item(), rel=1e-3)


# Strength


@pytest.mark.parametrize("kind", ["gaussian", "annealed", "learned", "gumbel"])
def test_strengths_match(kind: str) -> None:
    """Learned noise as it begins, with W_noise at zero."""
    made, x_ND = layer(noise=kind), torch.zeros(20_000, D, dtype=DOUBLE)
    if kind == "learned":
        made.noise_gate.weight.data.zero_()
    found = perturbed(made, x_ND, torch.zeros(20_000, E, dtype=DOUBLE), 0.3)
    assert found.std().item() == pytest.approx(0.3, rel=0.02)


def test_jitter_scales_each_entry_by_a_factor_of_that_deviation() -> None:
    made = layer(noise="jitter")
    made.gate.weight.data.copy_(torch.eye(D)[:E])
    ones = torch.ones(20_000, D, dtype=DOUBLE)
    factor_NE = perturbed(made, ones, ones[:, :E], 0.3)
    assert factor_NE.mean().item() == pytest.approx(1.0, abs=0.01)
    assert factor_NE.std().item() == pytest.approx(0.3, rel=0.02)
    assert (factor_NE - 1).abs().max() <= 0.3 * math.sqrt(3)


def test_gumbel_noise_at_its_own_deviation_draws_from_the_softmax() -> None:
    made, clean = layer(noise="gumbel"), torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=DOUBLE)
    noisy = perturbed(made, torch.zeros(40_000, D), clean.expand(40_000, E), math.pi / math.sqrt(6))
    shares = torch.bincount(noisy.argmax(-1), minlength=E) / 40_000
    torch.testing.assert_close(shares.double(), clean.softmax(-1), atol=0.01, rtol=0)


def test_a_uniform_zero_makes_no_infinite_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.zeros(shape, dtype=options["dtype"]))
    made, clean = layer(noise="gumbel"), torch.ones(3, E)
    assert perturbed(made, torch.ones(3, D), clean, 0.5).isfinite().all()
    assert torch.equal(perturbed(made, torch.ones(3, D), clean, 0.0), clean)


def test_annealed_noise_is_linear_and_the_others_are_constant() -> None:
    annealed = RoutingConfig(noise="annealed", noise_std=0.8)
    assert [strength(annealed, u, 4) for u in range(5)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert strength(annealed, 4, 4) == 0.0
    for kind in set(KINDS) - {"annealed"}:
        assert strength(RoutingConfig(noise=kind, noise_std=0.5), 3, 4) == 0.5


# Streams


@pytest.mark.parametrize("kind", KINDS)
def test_at_std_zero_as_much_is_drawn_and_nothing_moves(kind: str) -> None:
    made, x = layer(noise=kind).train(), tokens()
    zero, some = noise(), noise()
    still, routing = routed(made, x, 0.0, zero)
    routed(made, x, 0.5, some)
    assert torch.equal(zero.get_state(), some.get_state())
    assert not torch.equal(zero.get_state(), noise().get_state())
    clean, due = routed(made.eval(), x, 0.0, noise())
    torch.testing.assert_close(still, clean, rtol=0, atol=0)
    assert torch.equal(routing.counts_E, due.counts_E)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_moves_the_routing_in_training_only(kind: str) -> None:
    made, x = layer(noise=kind), tokens(4, 50)
    clean, routing = routed(made.eval(), x, 0.0, noise())
    still, measured = routed(made, x, 0.5, noise())
    assert torch.equal(clean, still)
    assert routing.agreement.item() == 1.0
    assert 0.3 < measured.agreement.item() < 1.0
    assert not torch.equal(routed(made.train(), x, 0.5, noise())[0], clean)


def test_agreement_is_of_the_choices_with_their_bias() -> None:
    made, x = layer(bias_rate=0.1).eval(), tokens(4, 50)
    made.bias_E.copy_(torch.tensor([50.0, 0.0, 50.0, 0.0]))
    routing = routed(made, x, 1.0, noise())[1]
    assert routing.counts_E.tolist() == [200, 0, 200, 0]
    assert routing.agreement.item() == 1.0  # no noise outweighs the bias


# What is not chosen is not there


def test_parameters_and_buffers_are_there_only_when_chosen() -> None:
    config = ModelConfig(d_model=D, n_layers=2, n_heads=2, d_ff=8, n_experts=E, vocab_size=16)
    plain = build(config, 4, 3, CPU)
    assert [name for name, _ in plain.named_buffers()] == ["cos_TC", "sin_TC"]
    for routing, extra in (
        (RoutingConfig(noise="learned"), "noise_gate.weight"),
        (RoutingConfig(bias_rate=0.1), "bias_E"),
    ):
        made = build(config, 4, 3, CPU, "auto", routing)
        added = made.state_dict().keys() - plain.state_dict().keys()
        assert added == {f"blocks.{i}.moe.{extra}" for i in range(2)}
        assert not any(made.state_dict()[name].any() for name in added)  # zero, and nothing was drawn
        assert all(torch.equal(made.state_dict()[name], value) for name, value in plain.state_dict().items())
    assert made(torch.zeros(1, 4, dtype=torch.int64), 0.1, noise())[1].z_loss is None


def test_learned_noise_is_trained_by_muon_as_the_gates_are() -> None:
    config = ModelConfig(d_model=D, n_layers=2, n_heads=2, d_ff=8, n_experts=E, vocab_size=16)
    matrices = muon_matrices(build(config, 4, 3, CPU, "auto", RoutingConfig(noise="learned")))
    shapes = [tuple(entry.parameter.shape) for entry in matrices]
    assert shapes.count((E, D)) == 4
    assert all(entry.layer is None for entry in matrices if entry.parameter.shape == (E, D))


def test_route_without_a_bias_is_route_with_a_bias_of_zero() -> None:
    logits = torch.randn(50, E, generator=noise())
    for top_k in (1, 2, E):
        for one, other in zip(route(logits, top_k), route(logits, top_k, torch.zeros(E)), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(choose(logits, top_k, None), logits.topk(top_k).indices)


def test_one_expert_is_a_dense_layer() -> None:
    config = ModelConfig(d_model=D, n_heads=2, d_ff=8, n_experts=1, top_k=1, dropout=0.0, vocab_size=16)
    for engine in ("auto", "plain"):
        made, x = MoE(config, engine).double().train(), tokens().requires_grad_()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.5, generator=noise(7))
        output, routing = routed(made, x, 0.5, noise())
        due = torch.nn.functional.silu(x @ made.w1[0].T) @ made.w2[0].T
        torch.testing.assert_close(output, due)
        assert routing.counts_E.tolist() == [21]
        assert routing.aux_loss.item() == pytest.approx(1.0)
        inputs = [x, made.w1, made.w2]
        for one, other in zip(
            gradients(output, routing.aux_loss, inputs), gradients(due, due.sum() * 0, inputs), strict=True
        ):
            torch.testing.assert_close(one, other)
        (gate,) = torch.autograd.grad(routed(made, x, 0.5, noise())[0].sum(), [made.gate.weight])
        assert gate.abs().max() < 1e-12  # there is nothing to choose
        assert routed(made.eval(), x, 0.5, noise())[1].agreement.item() == 1.0


def test_the_load_balancing_loss_of_no_load_but_one_experts_is_that_experts_share() -> None:
    probabilities = torch.tensor([[0.25, 0.75]], dtype=DOUBLE)
    assert load_balancing_loss(probabilities, torch.tensor([[0, 7]])).item() == pytest.approx(2 * 0.75)
