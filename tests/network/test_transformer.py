"""The language model: against independent computations, then counts, initialisation and invariants.

Shapes: B batch, T time, D d_model, H heads, C channels of a head, V vocabulary, L layers, E experts.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from model.config import ModelConfig, RoutingConfig
from model.engines.plain import rotate
from model.network import transformer
from model.network.transformer import (
    Attention,
    LanguageModel,
    build,
    init_weights,
    rms_norm,
    rotary_tables,
)

SMALL = ModelConfig(
    d_model=16, n_layers=2, n_heads=2, d_ff=24, n_experts=4, top_k=2, dropout=0.0, vocab_size=50
)
CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(config: ModelConfig = SMALL, seq_len: int = 12, seed: int = 7) -> LanguageModel:
    return build(config, seq_len, seed, CPU)


def some_tokens(batch: int = 2, time: int = 12) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, (batch, time), generator=generator(1))


def complex_rotation(x_BTHC: Tensor) -> Tensor:
    """Rotary embedding as multiplication by e^(i · position · base^(-2j / C)) of x0 + i · x1."""
    channels = x_BTHC.shape[-1]
    frequencies = torch.tensor([10_000 ** (-2 * j / channels) for j in range(channels // 2)]).double()
    angles = torch.arange(x_BTHC.shape[1]).double()[:, None] * frequencies
    pairs = torch.view_as_complex(x_BTHC.double().reshape(*x_BTHC.shape[:-1], channels // 2, 2))
    return torch.view_as_real(pairs * torch.exp(1j * angles)[None, :, None]).flatten(-2)


def attention_by_hand(made: Attention, x_BTD: Tensor, heads: int) -> Tensor:
    """Each head alone, with an explicit mask and softmax."""
    b, t, d = x_BTD.shape
    q, k, v = (x_BTD @ part.T for part in made.qkv.weight.chunk(3))
    q, k = (complex_rotation(part.view(b, t, heads, -1)) for part in (q, k))
    v, outputs = v.view(b, t, heads, -1), []
    for h in range(heads):
        scores = q[:, :, h] @ k[:, :, h].mT / math.sqrt(d // heads)
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
        outputs.append(torch.softmax(scores, -1) @ v[:, :, h])
    return torch.cat(outputs, -1) @ made.out.weight.T


def normed(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1.1920929e-07).sqrt() * gain


def moe_by_hand(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    logits = x_BTD @ layer.gate.weight.T
    y = torch.zeros_like(x_BTD)
    chosen = logits >= logits.sort(-1).values[..., -layer.top_k, None]
    weights = torch.where(chosen, logits.exp(), 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    for e in range(logits.shape[-1]):
        hidden = x_BTD @ layer.w1[e].T
        y = y + weights[..., e, None] * ((hidden * hidden.sigmoid()) @ layer.w2[e].T)
    return y


# Against a reference


def test_rotation_equals_multiplication_of_complex_numbers() -> None:
    x = torch.randn(2, 30, 3, 8, dtype=torch.float64, generator=generator())
    cos, sin = rotary_tables(30, 4)
    torch.testing.assert_close(rotate(x, cos.double(), sin.double()), complex_rotation(x), rtol=0, atol=1e-6)
    assert torch.equal(rotate(x, cos, sin)[:, 0], x[:, 0])  # position 0 does not turn


def test_attention_equals_explicit_softmax() -> None:
    made = model().double().blocks[0].attention
    x = torch.randn(2, 12, 16, dtype=torch.float64, generator=generator()) * 20
    cos, sin = (table.double() for table in rotary_tables(12, 4))
    torch.testing.assert_close(made(x, (cos, sin)), attention_by_hand(made, x, heads=2), rtol=0, atol=1e-7)


@pytest.mark.slow
def test_attention_equals_llamas_after_permuting_channels() -> None:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=16, num_attention_heads=2, num_key_value_heads=2, attn_implementation="eager"
    )
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0}
    theirs, ours = LlamaAttention(config, layer_idx=0).eval(), model().blocks[0].attention
    # Llama turns channel j with channel j + C/2; ours are neighbours: even channels first, then the odd ones.
    turn = torch.cat([torch.arange(0, 8, 2), torch.arange(1, 8, 2)])
    q, k, v = ours.qkv.weight.detach().chunk(3)
    with torch.no_grad():
        theirs.q_proj.weight.copy_(q.view(2, 8, 16)[:, turn].reshape(16, 16))
        theirs.k_proj.weight.copy_(k.view(2, 8, 16)[:, turn].reshape(16, 16))
        theirs.v_proj.weight.copy_(v)
        theirs.o_proj.weight.copy_(ours.out.weight)
        x = torch.randn(2, 12, 16, generator=generator()) * 20
        mask = torch.full((12, 12), -math.inf).triu(1)[None, None]
        rotation = LlamaRotaryEmbedding(config)(x, torch.arange(12)[None])
        expected = theirs(x, position_embeddings=rotation, attention_mask=mask)[0]
        torch.testing.assert_close(ours(x, rotary_tables(12, 4)), expected, rtol=1e-4, atol=1e-5)


def test_the_whole_model_equals_its_definition() -> None:
    made, tokens = model().double().eval(), some_tokens()
    with torch.no_grad():
        for name, parameter in made.named_parameters():  # larger, so that every part shows in the logits
            parameter.mul_(1.5 if "norm" in name else 8.0)
        x = made.embedding.weight[tokens] * 16**0.5
        for block in made.blocks:
            x = x + attention_by_hand(block.attention, normed(x, block.attention_norm.weight), heads=2)
            x = x + moe_by_hand(block.moe, normed(x, block.moe_norm.weight))
        expected = normed(x, made.norm.weight) @ made.embedding.weight.T
        logits, routing = made(tokens, 0.0, generator())
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert routing.counts_E.shape == (2, 4)
    assert routing.counts_E.sum(1).tolist() == [tokens.numel() * 2] * 2
    assert routing.aux_loss.shape == routing.entropy.shape == (2,)


# Counts and initialisation


def test_parameter_counts_at_full_size() -> None:
    config = ModelConfig()
    with torch.device("meta"):
        made = LanguageModel(config, 512)
    assert sum(p.numel() for p in made.parameters()) == 79_059_840 == config.total_parameters
    experts = sum(p.numel() for p in made.parameters() if p.ndim == 3)
    assert 79_059_840 - experts == 22_436_736  # the published study's "active"
    assert 79_059_840 - experts * 6 // 8 == 36_592_512 == config.active_parameters
    assert not any("bias" in name for name, _ in made.named_parameters())


def test_weights_are_normal_and_gains_are_one() -> None:
    config = ModelConfig(d_model=64, n_layers=1, n_heads=2, d_ff=128, n_experts=4, vocab_size=512)
    for name, parameter in model(config).named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
            continue
        tolerance = 5 * 0.02 / math.sqrt(2 * parameter.numel())
        assert abs(parameter.std().item() - 0.02) < tolerance, name
        assert abs(parameter.mean().item()) < 5 * 0.02 / math.sqrt(parameter.numel()), name


def test_initialisation_is_a_function_of_its_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = model(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = model(seed=3), model(seed=4)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    assert not torch.equal(one.blocks[1].moe.w2, other.blocks[1].moe.w2)


def test_norms_use_float32s_epsilon() -> None:
    tiny = torch.full((1, 16), 1e-4)
    expected = 1e-4 / math.sqrt(1e-8 + 1.1920929e-07)
    assert rms_norm(16)(tiny)[0, 0].item() == pytest.approx(expected, rel=1e-5)


# Invariants


def test_no_token_sees_a_later_one() -> None:
    made, tokens = model().eval(), some_tokens(1)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % SMALL.vocab_size
    one, other = made(tokens, 0.0, generator())[0], made(changed, 0.0, generator())[0]
    torch.testing.assert_close(one[:, :7], other[:, :7])
    assert (one[:, 7:] - other[:, 7:]).abs().amax(-1).gt(1e-6).all()


def test_attention_knows_distances_not_places() -> None:
    x = torch.randn(1, 1, 2, 8, generator=generator()).expand(1, 12, 2, 8)
    turned = rotate(x, *rotary_tables(12, 4))
    scores = torch.einsum("thc,shc->hts", turned[0], turned[0])
    for distance in range(5):
        diagonal = scores.diagonal(distance, 1, 2)
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal), rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    config = ModelConfig(d_model=16, n_layers=1, n_heads=2, d_ff=8, n_experts=2, dropout=0.5, vocab_size=50)
    made, tokens = model(config), some_tokens()
    torch.manual_seed(0)
    one, other = (made.train()(tokens, 0.0, generator())[0] for _ in range(2))
    assert not torch.equal(one, other)
    before = torch.get_rng_state()
    one, other = (made.eval()(tokens, 0.0, generator())[0] for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_shorter_windows_than_built_for() -> None:
    made, tokens = model().eval(), some_tokens()
    whole, _ = made(tokens, 0.0, generator())
    short, _ = made(tokens[:, :5], 0.0, generator())
    torch.testing.assert_close(short, whole[:, :5])


def test_bf16_autocast_is_near_float32_forward_and_backward() -> None:
    made, tokens = model().train(), some_tokens()
    logits, plain = made(tokens, 0.1, generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, routing = made(tokens, 0.1, generator())
        loss = nn.functional.cross_entropy(cast.flatten(0, 1), tokens.flatten())
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), logits, rtol=0.05, atol=0.02)
    assert (plain.counts_E - routing.counts_E).abs().sum() <= 4
    (loss + routing.aux_loss.sum()).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


def test_the_weights_of_a_seed_are_drawn_once_and_shared_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def noted(model: LanguageModel, generator: torch.Generator) -> None:
        drawn.append(generator.initial_seed())
        init_weights(model, generator)

    transformer._drawn.cache_clear()
    monkeypatch.setattr(transformer, "init_weights", noted)
    config = ModelConfig(vocab_size=32, d_model=16, n_layers=1, n_heads=2, d_ff=16, n_experts=4)
    one = build(config, 8, 5, torch.device("cpu"))
    kept = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    with torch.no_grad():
        one.embedding.weight.zero_()  # as training would
    other = build(config, 8, 5, torch.device("cpu"))
    assert drawn == [5]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in other.state_dict().items())
    learned = build(config, 8, 5, torch.device("cpu"), routing=RoutingConfig(noise="learned", bias_rate=0.1))
    assert drawn == [5, 5]  # another kind has other tensors
    assert not learned.blocks[0].moe.noise_gate.weight.any()
    assert learned.blocks[0].moe.bias_E.count_nonzero() == 0
    assert torch.equal(learned.embedding.weight, other.embedding.weight)
