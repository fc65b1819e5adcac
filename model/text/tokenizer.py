"""Which tokenizer, and text → token ids with the bytes that each of them stands for.

Reads the bundled tokenizers, a local folder, or a folder that model/text/hub.py has stored; nothing is
written. `transformers` is imported only for tokenizers that are not bundled. Who asks: model/text/corpus.py,
model/text/tokens.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from model.config import ConfigError

CORPORA = Path(__file__).parent / "corpora"
END_OF_DOCUMENT = "<|endoftext|>"
BUNDLED = {"bundled-4096": CORPORA / "bpe-4096.json", "bundled-8192": CORPORA / "bpe-8192.json"}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)
"""All that a tokenizer can be made of; a model's weights beside them are left alone."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that takes `<|endoftext|>` in a text for text, unless its model has it as a piece."""

    backend: tokenizers.Tokenizer
    vocabulary: int
    """Entries, added ones included: one more than the largest id."""
    end_id: int
    """The id that follows each document."""

    def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per text its token ids and the UTF-8 bytes of each token's text, both (tokens,) int64.

        The bytes of a text's tokens sum to the bytes of the text, whatever kind of tokenizer it is.
        """
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(encoding.ids, np.int64), _token_bytes(text, [end for _, end in encoding.offsets]))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def lost_characters(self, texts: Sequence[str], ids: Sequence[np.ndarray]) -> int:
        """Characters of the texts that decoding their tokens does not give back, in whatever order.

        White space at a text's ends is not counted: many tokenizers add or drop it.
        """
        unknown = getattr(self.backend.model, "unk_token", None)
        unknown_id = self.backend.token_to_id(unknown) if isinstance(unknown, str) else None
        kept = [[token for token in each.tolist() if token != unknown_id] for each in ids]
        decoded = self.backend.decode_batch(kept, skip_special_tokens=True)
        return sum(
            (Counter(text.strip()) - Counter(back)).total() if text.strip() != back.strip() else 0
            for text, back in zip(texts, decoded, strict=True)
        )


def load_tokenizer(folder_or_name: str | Path) -> Tokenizer:
    """Load a bundled tokenizer by its name, or any other from its folder.

    Raises:
        ConfigError: the folder holds no usable tokenizer, or one without an end-of-document token.
    """
    if str(folder_or_name) in BUNDLED:
        bundled = tokenizers.Tokenizer.from_file(str(BUNDLED[str(folder_or_name)]))
        return _wrap(bundled, END_OF_DOCUMENT, str(folder_or_name))
    folder = Path(folder_or_name)
    has_json = (folder / "tokenizer.json").is_file()
    if (folder / "tokenizer.model").is_file() and not has_json and not _can_import("sentencepiece"):
        raise ConfigError(
            f"{folder}: only a sentencepiece model, tokenizer.model; `pip install sentencepiece protobuf`, "
            "or save the tokenizer with a tokenizer.json where they are installed"
        )
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a foreign file provokes; the reason is passed on
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ConfigError(f"{folder}: no tokenizer can be loaded ({reason}); check tokenizer.json") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ConfigError(f"{folder}: a tokenizer in pure Python; save it with a tokenizer.json")
    return _wrap(backend, loaded.eos_token, str(folder))


def tokenizer_fingerprint(folder_or_name: str | Path) -> str:
    """SHA-256 of a bundled tokenizer's file, or over the names and contents of a folder's files.

    Raises:
        ConfigError: there is no such folder, or nothing in it that makes a tokenizer.
    """
    if str(folder_or_name) in BUNDLED:
        return hashlib.sha256(BUNDLED[str(folder_or_name)].read_bytes()).hexdigest()
    folder = Path(folder_or_name)
    if folder.is_file():
        raise ConfigError(f"{folder}: a file; give the folder that it is in")
    whole, found = hashlib.sha256(), 0
    try:
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                content = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                whole.update(f"{name} {content}\n".encode())
                found += name != "config.json"
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: cannot be read ({error}); check the tokenizer's folder") from error
    if not found:
        raise ConfigError(f"{folder}: no tokenizer here; give a folder with a tokenizer.json")
    return whole.hexdigest()


def _wrap(backend: tokenizers.Tokenizer, eos: str | None, name: str) -> Tokenizer:
    backend.no_truncation()
    backend.no_padding()
    # A document that spells `<|endoftext|>` out must not end there: its text is text.
    backend.encode_special_tokens = True
    ids = backend.get_vocab(with_added_tokens=True)
    end = ids.get(eos or "", ids.get(END_OF_DOCUMENT))  # what the tokenizer declares goes before a name
    if end is None:
        raise ConfigError(
            f"{name}: declares no eos token and has no {END_OF_DOCUMENT}; add one to the tokenizer"
        )
    return Tokenizer(backend, max(len(ids), max(ids.values()) + 1), end)


def _can_import(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _token_bytes(text: str, ends: Sequence[int]) -> np.ndarray:
    """UTF-8 bytes from one token's end to the next one's, (tokens,) int64.

    What a tokenizer drops (white space, say) counts with the token that follows, and the rest with the last.
    """
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    at = np.maximum.accumulate(np.array(ends, np.int64))
    at[-1:] = len(points)
    return np.diff(bytes_before[at], prepend=0)
