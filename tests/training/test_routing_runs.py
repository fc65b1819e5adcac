"""Runs with each routing variant: gradients, determinism, resumption, counts, under both engines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import RunConfig
from model.engines import choice as engines
from model.engines.choice import operations
from model.events import Finished, Request
from model.network.moe import MoE, Routing, shift_bias
from model.network.transformer import LanguageModel, build
from model.randomness import stream_seed
from model.training.evaluation import Tally
from model.training.optimizer import Optimizers, muon_matrices
from model.training.weights import load_weights
from tests.training_runs import (
    TINY,
    Numbers,
    checkpoints,
    column,
    measured,
    run,
    run_until,
    same_tensors,
    tensors,
    timeless,
)

CPU = torch.device("cpu")
VARIANTS: dict[str, dict[str, Any]] = {
    "annealed": {"noise": "annealed"},
    "jitter": {"noise": "jitter"},
    "learned": {"noise": "learned", "z_loss_weight": 0.01},
    "gumbel": {"noise": "gumbel", "balance": "batch"},
    "bias": {"bias_rate": 0.02, "load_balancing_weight": 0.0},
    "dense": {"n_experts": 1, "top_k": 1},
    "pieces": {"batch_size": 5, "micro_batch": 2},
}


pytestmark = pytest.mark.usefixtures("counting")


# The default is what it was


def former(
    self: MoE, x_BTD: Tensor, noise_std: float, noise: Tensor, seen_E: None, micro_batches: int
) -> tuple[Tensor, Routing]:
    """The layer as it was before there were variants: its formula, plainly."""
    assert seen_E is None
    assert micro_batches == 1
    x_ND = x_BTD.flatten(0, 1)
    clean_NE = F.linear(x_ND, self.gate.weight)
    noisy_NE = clean_NE + noise_std * noise
    logits_NE = noisy_NE if self.training else clean_NE
    probabilities_NE = logits_NE.softmax(-1)
    chosen_NK, experts_NK = logits_NE.topk(self.top_k)
    p = self.dropout if self.training else 0.0
    experts = operations(self.engine, x_ND).experts
    y_ND, counts_E = experts(x_ND, chosen_NK.softmax(-1), experts_NK, self.w1, self.w2, p)
    aux = counts_E.numel() * (counts_E.float() / counts_E.sum() * probabilities_NE.mean(0)).sum()
    if self.training:
        return y_ND.view_as(x_BTD), Routing(counts_E, aux, None, None, None, None)
    kept_NK = (experts_NK.unsqueeze(-1) == noisy_NE.topk(self.top_k).indices.unsqueeze(-2)).any(-1)
    entropy = torch.special.entr(probabilities_NE).sum(-1).mean()
    top1, agreement = probabilities_NE.amax(-1).mean(), kept_NK.float().mean()
    return y_ND.view_as(x_BTD), Routing(counts_E, aux, None, entropy, top1, agreement)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_without_a_variant_the_bits_are_those_of_the_plain_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    config = TINY.with_values({"engine": engine})
    monkeypatch.setattr(engines, "TOKENS_AT_ONCE", {})
    found = run(config, tmp_path / "found", checkpoint_seconds=0)
    monkeypatch.setattr(MoE, "forward", former)
    due = run(config, tmp_path / "due", checkpoint_seconds=0)
    assert measured(found) == measured(due)
    assert timeless(found[-1].results) == timeless(due[-1].results)
    assert same_tensors(checkpoints(found)[0][0], checkpoints(due)[0][0])


# What an update computes


@pytest.mark.parametrize(
    "values",
    [
        {"z_loss_weight": 0.3},
        {"balance": "batch"},
        {"balance": "batch", "batch_size": 4, "micro_batch": 3},
        {"batch_size": 4, "micro_batch": 2, "z_loss_weight": 0.3},
    ],
    ids=str,
)
def test_the_first_update_against_one_graph(tmp_path: Path, values: dict[str, Any]) -> None:
    """Plain autograd over all pieces of the update, without dropout and noise."""
    still = {"dropout": 0.0, "noise_std": 0.0, "load_balancing_weight": 0.5, "grad_clip": 1000.0}
    config = TINY.with_values({**still, "accumulate": 4, "steps": 4, "eval_every": 0, **values})
    events = run(config, tmp_path)
    model = build(config.model, 8, stream_seed(config.seed, "init"), CPU, "plain", config.routing).train()
    size, pieces = config.train.micro_batch or config.train.batch_size, []
    for step in range(4):
        inputs, targets = (torch.from_numpy(a.copy()) for a in Numbers(config).batch(step))
        for rows, due in zip(inputs.split(size), targets.split(size), strict=True):
            logits, routing = model(rows, 0.0, torch.Generator())
            probabilities = [_softmax(model, rows, layer) for layer in range(2)]
            loss = F.cross_entropy(logits.flatten(0, 1), due.flatten())
            pieces.append((len(rows) / len(inputs) / 4, loss, routing, probabilities))
    total, aux_mean = torch.zeros(()), torch.zeros(())
    seen_LE = torch.zeros(2, 4)
    for share, loss, routing, probabilities in pieces:
        seen_LE = routing.counts_E + (seen_LE if config.routing.balance == "batch" else 0.0)
        f_LE = seen_LE / seen_LE.sum(1, keepdim=True)
        aux = sum(4 * (f_LE[layer] * p.mean(0)).sum() for layer, p in enumerate(probabilities))
        z = routing.z_loss.sum() if routing.z_loss is not None else 0.0
        total = total + share * (loss + 0.5 * aux + config.routing.z_loss_weight * z)
        aux_mean = aux_mean + share * aux.detach()
    total.backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
    assert column(events, "gradient_norm") == [pytest.approx(norm, rel=1e-5)]
    assert column(events, "unweighted_aux_loss") == [pytest.approx(aux_mean.item(), rel=1e-6)]
    losses = sum(share * loss.item() for share, loss, _, _ in pieces)
    assert column(events, "loss") == [pytest.approx(losses, rel=1e-6)]


def _softmax(model: LanguageModel, tokens_BT: Tensor, layer: int) -> Tensor:
    """A layer's probabilities, with their graph, from what its gate read."""
    read: list[Tensor] = []
    moe = model.blocks[layer].moe
    hook = moe.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    model(tokens_BT, 0.0, torch.Generator())
    hook.remove()
    return F.linear(read[0].flatten(0, 1), moe.gate.weight).softmax(-1)


def test_the_bias_follows_the_counts_of_each_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[Tensor] = []
    original = Optimizers.move

    def noted(self: Optimizers, counts_LE: Tensor) -> Any:
        counts.append(counts_LE.clone())
        return original(self, counts_LE)

    monkeypatch.setattr(Optimizers, "move", noted)
    config = TINY.with_values(VARIANTS["bias"])
    events = run(config, tmp_path, checkpoint_seconds=0, keep_weights=True)
    saved = dict(tensors(checkpoints(events)[0][0]))  # one update before the end
    model, _ = load_weights(tmp_path)
    for layer in range(2):
        due = torch.zeros(4)
        for update_counts_LE in counts[:-1]:
            shift_bias(due, update_counts_LE[layer], 0.02)
        assert due.any()
        assert torch.equal(saved[f"model.blocks.{layer}.moe.bias_E"], due)
        shift_bias(due, counts[-1][layer], 0.02)
        assert torch.equal(model.blocks[layer].moe.bias_E, due)


def test_annealed_noise_goes_by_the_update_in_training_and_in_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[float] = []
    evaluated: list[float] = []
    loss, begin = LanguageModel.loss, Tally.__init__

    def noted_loss(self: LanguageModel, *arguments: Any) -> Any:
        trained.append(arguments[2])
        return loss(self, *arguments)

    def noted_begin(self: Tally, *arguments: Any) -> None:
        evaluated.append(arguments[3])
        begin(self, *arguments)

    monkeypatch.setattr(LanguageModel, "loss", noted_loss)
    monkeypatch.setattr(Tally, "__init__", noted_begin)
    events = run(TINY.with_values({"noise": "annealed"}), tmp_path)
    assert trained == pytest.approx([0.3 * (1 - update / 16) for update in range(16)])
    assert evaluated == pytest.approx([0.3 * 0.75, 0.3 * 0.5, 0.3 * 0.25, 0.0, 0.0])
    found = measured(events)
    assert found[8, "val"][0]["noisy_agreement"] < 1.0
    assert found[32, "val"][0]["noisy_agreement"] == found[32, "test"][0]["noisy_agreement"] == 1.0


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("values", [{"bias_rate": 0.1}, {"bias_rate": 0.1, "noise": "learned"}])
def test_an_expert_that_the_bias_keeps_out_is_left_alone(values: dict[str, Any], engine: str) -> None:
    """Muon skips it, momentum included; the gates move, and W_noise."""
    config = TINY.with_values({**values, "engine": engine})
    model = build(config.model, 8, 3, CPU, engine, config.routing).train()
    optimizers = Optimizers(model, config.train, "sound")
    for block in model.blocks:
        block.moe.bias_E[2] = -1000.0
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    inputs, targets = (torch.from_numpy(a.copy()) for a in Numbers(config).batch(0))
    model.open_gradients()
    loss, routing = model.loss(inputs, targets, 0.3, torch.Generator().manual_seed(0))
    (loss + routing.aux_loss.sum()).backward()
    assert routing.counts_E[:, 2].tolist() == [0, 0]
    optimizers.step(5, routing.counts_E)
    for name, parameter in model.named_parameters():
        if name.endswith((".w1", ".w2")):
            assert torch.equal(parameter[2], before[name][2])
            assert not torch.equal(parameter[0], before[name][0])
        elif "gate" in name:
            assert not torch.equal(parameter, before[name]), name
    assert sum(not momentum.any() for momentum in optimizers.muon.momentum_GRC[16, 16]) >= 4


# Determinism


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_is_the_same_bits_interrupted_or_not(tmp_path: Path, name: str, engine: str) -> None:
    config = TINY.with_values({**VARIANTS[name], "engine": engine})
    whole = run(config, tmp_path / "whole", checkpoint_seconds=0)
    assert isinstance(whole[-1], Finished)
    if name != "dense":  # a variant changes something
        assert column(whole, "loss")[1:] != column(run(TINY, tmp_path / "default"), "loss")[1:]
    first = run_until(config, tmp_path / "first", 9, Request.STOP)
    torch.rand(3)  # something else happens in the process
    last = run(config, tmp_path / "last", resume_from=checkpoints(first), checkpoint_seconds=0)
    assert last[0].exact
    assert last[0].step in (10, 12)  # the next update boundary
    assert measured(first + last) == measured(whole)
    assert timeless(last[-1].results) == timeless(whole[-1].results)
    assert same_tensors(checkpoints(last)[0][0], checkpoints(whole)[0][0])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_engines_agree_on_each_variant(name: str) -> None:
    config = TINY.with_values({**VARIANTS[name], "dropout": 0.0})
    found = []
    for engine in ("auto", "plain"):
        model = build(config.model, 8, 3, CPU, engine, config.routing).double().train()
        tokens = torch.arange(32).view(4, 8) % config.model.vocab_size
        noise, seen = torch.Generator().manual_seed(0), torch.ones(2, config.model.n_experts)
        loss, routing = model.loss(tokens, tokens.roll(1, 1), 0.3, noise, seen)
        z = 0.0 if routing.z_loss is None else routing.z_loss.sum()
        (loss + routing.aux_loss.sum() + z).backward()
        found.append([loss.detach(), routing.counts_E, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_kinds_that_draw_alike_share_their_draws(tmp_path: Path) -> None:
    """Gaussian, annealed and learned noise; jitter draws for each channel. All share dropout's draws."""
    streams = {}
    for kind in ("gaussian", "annealed", "learned", "jitter", "gumbel"):
        events = run_until(TINY.with_values({"noise": kind}), tmp_path / kind, 8, Request.STOP)
        streams[kind] = dict(tensors(checkpoints(events)[0][0]))
    assert len({saved["stream.dropout.cpu"].numpy().tobytes() for saved in streams.values()}) == 1
    noise = {kind: saved["stream.noise.cpu"].numpy().tobytes() for kind, saved in streams.items()}
    assert noise["gaussian"] == noise["annealed"] == noise["learned"] != noise["jitter"]


# Counts


def test_parameter_counts_include_learned_noise(tmp_path: Path) -> None:
    config: RunConfig = TINY.with_values({"noise": "learned", "steps": 2, "eval_every": 0})
    model = build(config.model, 8, 0, CPU, "auto", config.routing)
    assert config.noise_parameters == 2 * 4 * 16
    assert config.total_parameters == sum(p.numel() for p in model.parameters())
    assert config.muon_parameters == sum(entry.parameter.numel() for entry in muon_matrices(model))
    row = run(config, tmp_path)[-1].results
    assert row["parameters_total"] == config.total_parameters == TINY.total_parameters + 128
    assert row["parameters_active"] == TINY.active_parameters + 128


def test_the_dense_control_is_active_whole(tmp_path: Path) -> None:
    config = TINY.with_values(VARIANTS["dense"])
    row = run(config, tmp_path)[-1].results
    assert row["parameters_active"] == row["parameters_total"] == config.total_parameters
    assert row["unweighted_aux_loss_last_100"] == pytest.approx(2.0)  # 1 a layer, whatever it learns
    assert row["expert_usage_cv"] == row["expert_usage_cv_layer_max"] == 0.0
