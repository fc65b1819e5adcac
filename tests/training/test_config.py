"""Configurations and events: the counts, every refusal, what the hash holds, and the way through JSON."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import fields
from model.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    RoutingConfig,
    RunConfig,
    TrainConfig,
    all_keys,
    canonical_json,
    full_key,
)
from model.events import (
    Checkpointed,
    Event,
    Finished,
    Measured,
    Phase,
    Progressed,
    Resumed,
    from_json,
    to_json,
)

PROJECT = Path(__file__).resolve().parents[2]


def refusal(**values: Any) -> str:
    """The message that the values are refused with."""
    with pytest.raises(ConfigError) as caught:
        RunConfig().with_values(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Counts


def test_parameter_counts_of_the_published_model() -> None:
    model = ModelConfig()
    assert model.total_parameters == 79_059_840
    assert model.muon_parameters == 60_180_480
    assert model.adamw_parameters == 18_879_360
    assert model.active_parameters == 36_592_512


def test_parameter_counts_by_hand_for_a_small_model() -> None:
    model = ModelConfig(d_model=4, n_layers=1, n_heads=2, d_ff=3, n_experts=3, top_k=1, vocab_size=10)
    attention, gate, expert, embedding, norms = 4 * 12 + 4 * 4, 3 * 4, 2 * 4 * 3, 10 * 4, 3 * 4
    assert model.muon_parameters == attention + gate + 3 * expert
    assert model.adamw_parameters == embedding + norms
    assert model.active_parameters == attention + gate + expert + embedding + norms


def test_derived_quantities() -> None:
    config = RunConfig()
    assert config.model.d_head == 48
    assert config.train.updates == 100
    assert config.train.tokens_per_step == 12_288
    assert config.tokens_seen == 400 * 12_288


# Every refusal: the field, its value, and the remedy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 9}, "model.top_k = 9: more than model.n_experts = 8; choose 1 to 8"),
        ({"d_model": 380}, "model.d_model = 380: not divisible by model.n_heads = 8; try 384"),
        (
            {"d_model": 24},
            "model.n_heads = 8: heads of 3 channels, but rotary embeddings need an even number; "
            "try model.d_model = 32",
        ),
        ({"steps": 399}, "train.steps = 399: not a multiple of train.accumulate = 4; try 400"),
        ({"steps": 1}, "train.steps = 1: not a multiple of train.accumulate = 4; try 4"),
        ({"eval_every": 50}, "train.eval_every = 50: not a multiple of train.accumulate = 4; try 48"),
        (
            {"seq_len": 512, "tokens": 512},
            "data.tokens = 512: less than one window of train.seq_len + 1 = 513 tokens; "
            "raise it or shorten the window",
        ),
        (
            {"held_out_tokens": 100},
            "data.held_out_tokens = 100: less than one window of train.seq_len + 1 = 513 tokens; "
            "raise it or shorten the window",
        ),
        ({"noise_std": -0.1}, "routing.noise_std = -0.1: must lie between 0.0 and 100.0"),
        ({"noise_std": math.nan}, "routing.noise_std = nan: must be a finite number"),
        ({"muon_lr": math.inf}, "train.muon_lr = inf: must be a finite number"),
        ({"noise_std": "0.1"}, "routing.noise_std = '0.1': must be a number"),
        ({"noise_std": True}, "routing.noise_std = True: must be a number"),
        ({"top_k": 2.0}, "model.top_k = 2.0: must be a whole number"),
        ({"top_k": True}, "model.top_k = True: must be a whole number"),
        ({"corpus": 7}, "data.corpus = 7: must be text"),
        ({"seed": -1}, "seed = -1: must lie between 0 and 2147483647"),
        ({"seed": None}, "seed = None: must be a whole number"),
        (
            {"noise": "laplace"},
            "routing.noise = 'laplace': choose one of gaussian, annealed, jitter, learned, gumbel",
        ),
        (
            {"noise": "jitter", "noise_std": 0.6},
            "routing.noise_std = 0.6: jitter's factor, 1 ± √3 · noise_std, would turn negative; "
            "choose at most 0.5773, or another routing.noise",
        ),
        ({"balance": "global"}, "routing.balance = 'global': choose one of micro-batch, batch"),
        ({"precision": "fp16"}, "train.precision = 'fp16': choose one of auto, fp32, bf16"),
        ({"protocol": "mine"}, "protocol = 'mine': choose one of sound, published"),
        ({"noise_sdt": 0.1}, "'noise_sdt': no such key; did you mean routing.noise_std?"),
        ({"learning_rate": 0.1}, "'learning_rate': no such key; did you mean train.muon_lr?"),
        ({"train.stepz": 4}, "'train.stepz': no such key; did you mean train.steps?"),
    ],
)
def test_refusals(values: dict[str, Any], message: str) -> None:
    assert refusal(**values) == message


@pytest.mark.parametrize(
    ("part", "values"),
    [
        (ModelConfig, {"dropout": 1.0}),
        (ModelConfig, {"n_layers": 0}),
        (ModelConfig, {"vocab_size": 1}),
        (RoutingConfig, {"load_balancing_weight": -1e-9}),
        (TrainConfig, {"accumulate": 0}),
        (TrainConfig, {"grad_clip": 0.0}),
        (TrainConfig, {"muon_momentum": 1.0}),
        (DataConfig, {"documents": 2}),
    ],
)
def test_every_part_holds_its_ranges_by_itself(part: type, values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=rf"{name} = .*: must lie between"):
        part(**values)


def test_a_key_without_a_neighbour_lists_all_keys() -> None:
    message = refusal(qqqqqqqq=1)
    assert message.startswith("'qqqqqqqq': no such key; keys: model.d_model, ")
    assert all(key in message for key in all_keys())


def test_a_part_cannot_be_replaced_by_a_value() -> None:
    assert refusal(train=3).startswith("'train': no such key;")
    with pytest.raises(ConfigError, match="train = 3: a part of the configuration; set its keys instead"):
        RunConfig(train=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'train\.learning_rate': no such key"):
        RunConfig.from_dict({"train": {"learning_rate": 1}})


def test_whole_numbers_are_widened_where_a_number_is_due() -> None:
    config = RunConfig().with_values({"noise_std": 1})
    assert isinstance(config.routing.noise_std, float)
    assert config.hash == RunConfig().with_values({"noise_std": 1.0}).hash


def test_values_are_checked_together_once_all_are_in_place() -> None:
    # Neither half would pass alone: 10 is above the 8 experts, and 16 experts come later.
    config = RunConfig().with_values({"top_k": 10, "n_experts": 16})
    assert (config.model.top_k, config.model.n_experts) == (10, 16)


def test_configurations_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RunConfig().seed = 1  # type: ignore[misc]


# Keys


def test_short_and_dotted_keys_mean_the_same() -> None:
    for key in all_keys():
        assert full_key(key) == key
        assert full_key(key.rsplit(".", 1)[-1]) == key
        assert RunConfig().value(key) == RunConfig().value(key.rsplit(".", 1)[-1])


def test_an_ambiguous_short_key_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        fields.full_key([*all_keys(), "other.steps"], "steps")
    assert str(caught.value) == "steps: ambiguous; write train.steps or other.steps"


# The hash


def test_the_hash_is_stable() -> None:
    """Stored results are found again by it: it may change only with a migration of every database."""
    assert RunConfig().hash == "d9b6397f4603f211bdf2e0956b63a05990826f696f3ea03f058eb8d0c791e400"
    assert canonical_json({"b": 1.0, "a": [1, "é"]}) == '{"a":[1,"\\u00e9"],"b":1.0}'


def test_routing_variants_are_in_the_hash_only_when_chosen() -> None:
    """Earlier results keep their hash; naming a default changes nothing."""
    default = RunConfig().identity()
    assert set(default["routing"]) == {"noise_std", "load_balancing_weight"}
    assert "micro_batch" not in default["train"]
    names = {
        "noise": "gaussian",
        "balance": "micro-batch",
        "z_loss_weight": 0.0,
        "bias_rate": 0,
        "micro_batch": 0,
    }
    assert RunConfig().with_values(names).hash == RunConfig().hash
    chosen = {"noise": "jitter", "balance": "batch", "z_loss_weight": 0.001, "bias_rate": 0.01}
    assert RunConfig().with_values(chosen).identity()["routing"] == {**default["routing"], **chosen}


def test_jitter_may_be_as_strong_as_its_factor_stays_positive() -> None:
    assert RoutingConfig(noise="jitter", noise_std=0.577).noise_std == 0.577
    assert RoutingConfig(noise="gumbel", noise_std=5.0).noise_std == 5.0


def test_every_value_that_defines_the_result_changes_the_hash() -> None:
    other = {
        "d_model": 400, "n_layers": 5, "n_heads": 4, "d_ff": 1_000, "n_experts": 9, "top_k": 1,
        "dropout": 0.0, "vocab_size": 4_096, "noise_std": 0.5, "load_balancing_weight": 0.0,
        "steps": 404, "batch_size": 23, "seq_len": 511, "accumulate": 2, "eval_every": 0, "muon_lr": 0.02,
        "muon_momentum": 0.9, "weight_decay": 0.0, "grad_clip": 2.0, "precision": "fp32", "target_loss": 5.0,
        "corpus": "smollm", "corpus_id": "a", "tokenizer": "b", "tokenizer_id": "c", "documents": 1_999,
        "document_characters": 2_999, "tokens": 499_999, "held_out_tokens": 99_999,
        "protocol": "published", "seed": 43, "repeat": 1, "noise": "gumbel", "balance": "batch",
        "z_loss_weight": 0.001, "bias_rate": 0.001, "micro_batch": 12, "text_column": "body",
    }  # fmt: skip
    assert {full_key(key) for key in other} | {"train.engine"} == set(all_keys())
    hashes = {RunConfig().with_values({key: value}).hash for key, value in other.items()}
    assert len(hashes | {RunConfig().hash}) == len(other) + 1


def test_the_hash_holds_what_the_text_is_not_where_it_lies() -> None:
    ids = {"corpus_id": "sha256:1", "tokenizer_id": "sha256:2"}
    here = RunConfig().with_values({**ids, "corpus": "/here/text.jsonl", "tokenizer": "/here/tokenizer"})
    there = RunConfig().with_values({**ids, "corpus": "/there/text.jsonl", "tokenizer": "/there/tokenizer"})
    assert here.hash == there.hash
    assert here != there
    assert here.hash != here.with_values({"corpus_id": "sha256:3"}).hash


def test_the_hash_holds_the_precision_only_when_it_is_chosen() -> None:
    assert "precision" not in RunConfig().identity()["train"]
    chosen = RunConfig().with_values({"precision": "bf16"})
    assert chosen.identity()["train"]["precision"] == "bf16"


def test_the_hash_holds_no_engine_and_a_target_loss_only_when_it_is_declared() -> None:
    assert RunConfig().with_values({"engine": "plain"}).hash == RunConfig().hash
    assert not {"engine", "target_loss"} & set(RunConfig().identity()["train"])
    assert RunConfig().with_values({"target_loss": 4.5}).identity()["train"]["target_loss"] == 4.5


@given(
    st.fixed_dictionaries(
        {
            "noise_std": st.floats(0.0, 100.0),
            "load_balancing_weight": st.floats(0.0, 100.0),
            "seed": st.integers(0, 2**31 - 1),
            "muon_lr": st.floats(0.0, 10.0),
            "corpus": st.text(max_size=5),
        }
    )
)
def test_a_configuration_survives_json(values: dict[str, Any]) -> None:
    config = RunConfig().with_values(values)
    back = RunConfig.from_dict(json.loads(canonical_json(config.to_dict())))
    assert back == config
    assert back.hash == config.hash


# Events

EVENTS: list[Event] = [
    Resumed(0),
    Resumed(8, "runs/step-8.safetensors", exact=False, refused=["a: damaged"]),
    Progressed(Phase.COMPILE, 0),
    Progressed(Phase.STEP, 3, 2.5, 1e4),
    Measured(4, "train", {"loss": 1.5}),
    Measured(4, "val", {"loss": math.inf}, [[1, 2], [3, 0]]),
    Checkpointed(4, "step-4.safetensors", "ab", 12, 0.5),
    Finished(8, {"val_loss": 1.0, "steps_to_loss": None, "loss_spikes": 0}),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_survive_json(event: Event) -> None:
    back = from_json(json.loads(json.dumps(to_json(event))))
    assert back == event
    assert type(back) is type(event)


def test_a_phase_read_from_json_equals_its_phase() -> None:
    back = from_json(json.loads(json.dumps(to_json(Progressed(Phase.SAVE, 1)))))
    assert isinstance(back, Progressed)
    assert back.phase == Phase.SAVE


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(KeyError):
        from_json({"event": "Exploded", "step": 1})


def test_neither_module_imports_torch() -> None:
    code = "import sys, model.config, model.events, model.randomness; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0
