"""A kept model goes on with a text: token by token, without routing noise, as in an evaluation.

What is kept: model/training/weights.py. Who calls: `python cli.py generate`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from model.config import ConfigError
from model.text.tokenizer import load_tokenizer
from model.training.weights import TOKENIZER, load_weights


def continue_text(folder: Path, text: str, tokens: int, temperature: float, seed: int) -> str:
    """What the model makes of the text's continuation; the same every time for the same seed on one machine.

    Args:
        folder: where weights, configuration and tokenizer are.
        tokens: how many more; fewer where the model ends its document.
        temperature: 0 takes the likeliest token each time, 1 draws as the model says.

    Raises:
        ConfigError: the folder does not hold a model, the text is empty to its tokenizer, or the temperature
            is negative.
    """
    if temperature < 0:
        raise ConfigError(f"--temperature {temperature}: 0 or more")
    model, config = load_weights(folder, "cpu")
    own = folder / TOKENIZER
    tokenizer = load_tokenizer(own if own.is_dir() else config.data.tokenizer)
    [(found, _)] = tokenizer.encode([text])
    ids = found.tolist()
    if not ids:
        raise ConfigError("the text is empty; give a few words to go on from")
    generator, begun = torch.Generator().manual_seed(seed), len(ids)
    with torch.inference_mode():
        for _ in range(tokens):
            window_BT = torch.tensor([ids[-config.train.seq_len :]])
            logits_BTV, _ = model(window_BT, noise_std=0.0, noise=torch.Generator())
            chosen = _drawn(logits_BTV[0, -1].float().cpu(), temperature, generator)
            if chosen == tokenizer.end_id:
                break
            ids.append(chosen)
    whole = tokenizer.backend.decode(ids, skip_special_tokens=True)
    start = tokenizer.backend.decode(ids[:begun], skip_special_tokens=True)
    return whole.removeprefix(start)


def _drawn(logits_V: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    shares_V = torch.softmax(logits_V / temperature, dim=0)
    return int(torch.multinomial(shares_V, 1, generator=generator))
