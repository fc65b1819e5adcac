"""A finished run's weights, kept on request: safetensors, with configuration and tokenizer beside them.

    from model.training.weights import load_weights
    model, config = load_weights("runs/<database id>/7/a1")

Written beside and renamed, the configuration first: where the weights are, everything is. Optimizers and
random streams are not in it; what a run resumes from is model/training/checkpoint.py's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.config import ConfigError, RunConfig, canonical_json
from model.network.transformer import LanguageModel, build
from model.text.tokenizer import Tokenizer

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
TOKENIZER = "tokenizer"
"""A folder as transformers reads it: tokenizer.json, and which token ends a document."""


def save_weights(model: LanguageModel, config: RunConfig, folder: Path) -> Path:
    """Write both files; returns the path of the weights.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    text = json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n"
    _replace(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    header = {"config_hash": config.hash, "config": canonical_json(config.to_dict())}
    _replace(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata=header))
    return folder / WEIGHTS


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer so that `AutoTokenizer.from_pretrained(folder / TOKENIZER)` reads it.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    place = folder / TOKENIZER
    place.mkdir(parents=True, exist_ok=True)
    ends = tokenizer.backend.id_to_token(tokenizer.end_id)
    told = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": ends}, indent=1)
    _replace(place / "tokenizer_config.json", lambda path: path.write_text(told + "\n", encoding="utf-8"))
    _replace(place / "tokenizer.json", lambda path: tokenizer.backend.save(str(path)))


def load_weights(folder: str | Path, device: str = "cpu") -> tuple[LanguageModel, RunConfig]:
    """The trained model, ready to evaluate, and its configuration.

    Raises:
        ConfigError: there are no such files in the folder.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: no {WEIGHTS} with its {CONFIG}; `work --keep-weights` writes them")
    config = RunConfig.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    model = build(config.model, config.train.seq_len, 0, torch.device(device), routing=config.routing)
    model.load_state_dict(load_file(folder / WEIGHTS, device=device))
    return model.eval(), config


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    beside = path.with_name(path.name + ".part")
    try:
        write(beside)
    except Exception as error:  # safetensors has an exception of its own for a full disk
        beside.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written: {error}") from error
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    beside.rename(path)
