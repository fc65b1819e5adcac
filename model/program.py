"""The language model as a training program: what any program offers, docs/programs.md.

Imports no torch before it trains. The configuration: model/config.py; the loop: model/training/loop.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import CALLED_ELSEWHERE, RunConfig
from model.config import RunConfig as Config
from model.events import Finished

if TYPE_CHECKING:
    from model.text.dataset import Dataset

__all__ = ["CALLED_ELSEWHERE", "METRICS", "OPTIONS", "SCALES", "SHARED", "Config", "identity", "train"]

_NATS = "nats per token"
_SECONDS = {"better": "lower", "unit": "seconds", "decimals": 1}
_CV: dict[str, Any] = {"better": "none", "decimals": 4}
_LOSS: dict[str, Any] = {"better": "lower", "unit": _NATS, "decimals": 4, "exponential": True}

METRICS: dict[str, Any] = {
    "val_loss": {**_LOSS, "label": "Val loss"},
    "val_perplexity": {"better": "lower", "decimals": 2, "label": "Val PPL"},
    "val_accuracy": {"better": "higher", "unit": "share of tokens", "decimals": 4, "label": "Accuracy"},
    "val_bits_per_byte": {"better": "lower", "unit": "bits per byte", "label": "Bits per byte"},
    "best_val_loss": _LOSS,
    "best_val_perplexity": {"better": "lower", "decimals": 2, "label": "Best Val PPL"},
    "expert_usage_cv": {**_CV, "ratio": True, "label": "Expert Usage CV"},
    "expert_usage_cv_layer_mean": {**_CV, "ratio": True, "label": "Mean layer CV"},
    "expert_usage_cv_layer_sd": _CV,
    "expert_usage_cv_layer_max": _CV,
    "train_loss_last_100": _LOSS,
    "aux_loss_last_100": {
        "better": "none",
        "unit": _NATS,
        "decimals": 5,
        "label": "Aux loss, last 100 steps",
    },
    "unweighted_aux_loss_last_100": {"better": "none", "unit": _NATS, "decimals": 4},
    "clipped_share": {"better": "none", "unit": "share of updates", "decimals": 4},
    "max_grad_norm": {"better": "none", "decimals": 4},
    "loss_spikes": {"better": "lower", "unit": "updates", "decimals": 0},
    "steps_to_loss": {"better": "lower", "unit": "steps", "decimals": 0},
    "train_loss_tail_sd": {"better": "none", "unit": _NATS, "decimals": 4},
    "training_seconds": _SECONDS,
    "evaluation_seconds": _SECONDS,
    "compile_seconds": _SECONDS,
    "waiting_seconds": _SECONDS,
    "tokens_per_second": {
        "better": "higher",
        "unit": "tokens per second",
        "decimals": 1,
        "label": "Tokens/s",
    },
    "peak_memory_bytes": {"better": "lower", "unit": "bytes", "decimals": 0},
    "tokens_seen": {"better": "none", "unit": "tokens", "decimals": 0},
    "unique_tokens": {"better": "none", "unit": "tokens", "decimals": 0},
    "parameters_total": {"better": "none", "unit": "parameters", "decimals": 0},
    "parameters_active": {"better": "none", "unit": "parameters", "decimals": 0},
}
"""What a run comes to, in the order of the tables; the first is primary. docs/schema.md says what each is."""

PACE = {
    "size": (
        *("model.d_model", "model.n_layers", "model.n_heads", "model.d_ff", "model.n_experts", "model.top_k"),
        *("train.batch_size", "train.seq_len"),
    ),
    "update": "train.accumulate",
    "evaluate_every": "train.eval_every",
    "evaluated": "data.held_out_tokens",
}
"""Keys that tell what a run costs: the vocabulary, which follows the corpus, is left out of its size."""

IMPORTS = {
    "converted": {
        "training_time_minutes": ("training_seconds", 60.0),
        "peak_memory_gb": ("peak_memory_bytes", 1e9),
    },
    "factors": ("noise_std", "load_balancing_weight"),
    "exponentials": {"val_perplexity": "val_loss"},
}
"""What a file of the published study has beside measures and keys; `export` writes such files."""

SHARED = ("protocol", "data")
"""Keys, or parts, that all runs of a study share."""
OPTIONS = {
    "data.corpus": "--corpus",
    "data.corpus_id": "--corpus",
    "data.tokenizer": "--tokenizer",
    "data.tokenizer_id": "--tokenizer",
    "model.vocab_size": "--tokenizer, whose vocabulary it follows",
}
"""Keys that have an option of their own, because more depends on them."""
SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "model.d_model": 192,
        "model.n_layers": 4,
        "model.n_heads": 6,
        "model.d_ff": 512,
        "train.batch_size": 8,
        "train.seq_len": 256,
        "train.steps": 200,
        "train.eval_every": 100,
        "data.held_out_tokens": 32_768,
    },
    "smoke": {
        "model.d_model": 128,
        "model.n_layers": 2,
        "model.n_heads": 4,
        "model.d_ff": 256,
        "train.batch_size": 8,
        "train.seq_len": 128,
        "train.steps": 120,
        "train.eval_every": 40,
        "data.held_out_tokens": 16_384,
    },
}
"""Values that each scale sets; the grid's factors, its [scales] and --set override them."""


def identity(config: RunConfig) -> dict[str, Any]:
    """All that defines the result, and nothing else."""
    return config.identity()


def facts(config: RunConfig) -> dict[str, str]:
    """What a report says of every run of a study."""
    return {
        "protocol": config.protocol,
        "corpus": config.data.corpus,
        "corpus_id": config.data.corpus_id,
    }


def _varying(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def summary(data: Dataset, configs: Sequence[RunConfig], each: int) -> list[str]:
    """What a grid's conditions come to, if each of them is queued `each` times."""
    base, tokens = configs[0], [config.tokens_seen for config in configs]
    steps, at_once, total, active = (
        _varying(numbers)
        for numbers in (
            [config.train.steps for config in configs],
            [config.train.tokens_per_step for config in configs],
            [config.total_parameters for config in configs],
            [config.active_parameters for config in configs],
        )
    )
    epochs = [f"{seen / data.unique_tokens:.3g}" for seen in sorted({min(tokens), max(tokens)})]
    return [
        f"{total} parameters, {active} active a token; {steps} steps of {at_once} tokens; "
        f"corpus {base.data.corpus}, vocabulary {base.model.vocab_size:,}; protocol {base.protocol}",
        f"{_varying(tokens)} training tokens a run, {' to '.join(epochs)} epochs of {data.unique_tokens:,}; "
        f"{each * sum(tokens):,} in all",
    ]


def settle(
    config: RunConfig, given: tuple[str, str | None, bool, bool], cache: Path, say: Callable[[str], None]
) -> RunConfig:
    """The configuration on the corpus that is chosen at enqueue; the vocabulary follows the tokenizer.

    Raises:
        ConfigError: no such corpus or tokenizer.
    """
    from model.text.corpus import resolve

    corpus, tokenizer, _, small = given
    data, vocabulary = resolve(corpus, tokenizer, small, config.data, cache, say)
    return replace(config, data=data, model=replace(config.model, vocab_size=vocabulary))


def prepare(config: RunConfig, cache: Path) -> Dataset:
    """Read or make the cached corpus: too little text is said at enqueue, not in the night.

    Raises:
        ConfigError: the corpus cannot be had, or does not fit.
    """
    from model.text import dataset

    return dataset.prepare(config, cache)


def told(
    data: Dataset,
    configs: Sequence[RunConfig],
    given: tuple[str, str | None, bool, bool],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Say what text this is, and return what a report needs to know of it.

    Raises:
        ConfigError: the tokenizer loses text, and nobody said that it may.
    """
    say(data.summary(configs))
    if not given[2]:
        data.require_round_trip(configs[0].data.tokenizer)
    return data.facts


def open_device(name: str, threads: int) -> dict[str, Any]:
    """Import torch, start the device and say what it is; the process then serves one run after another.

    Raises:
        RuntimeError: torch cannot use it.
    """
    from model.training import setting

    return setting.open_device(name, threads)


def check_device(name: str) -> str:
    """The known answer: what is wrong with a device, by one tiny update, twice; empty where nothing is."""
    from model.training.setting import check

    return check(name)


def train(config: RunConfig, run: Any) -> dict[str, float | int | None] | None:
    """Train and evaluate one run; None if it was asked to stop. The loop tells its own events."""
    from model.training import loop

    for event in loop.train(
        config,
        run.workdir,
        cache_dir=run.cache,
        device=run.device,
        resume_from=run.checkpoints,
        asked=run.asked,
        checkpoint_seconds=run.checkpoint_seconds,
        keep_weights=run.keep_weights,
        source=run.source,
    ):
        if isinstance(event, Finished):
            return event.results
        run.tell(event)
    return None


def advise(cause: str, device: str) -> str:
    """What may help against a cause, in the words of this program; empty where it knows nothing."""
    if cause != "oom":
        return ""
    from model.training.memory import peak_of

    peak = peak_of(device) / 1e9
    remedy = "set train.micro_batch (windows at a time) below train.batch_size, or use another device"
    return f"peak {peak:.2f} GB on {device}; {remedy}"


def estimated_bytes(config: RunConfig) -> float:
    """What a run takes on a CPU, by estimate."""
    return config.estimated_cpu_bytes
