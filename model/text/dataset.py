"""Tokens → windows → batches: what a run learns from and is scored on.

Reads the memory-mapped arrays of model/text/tokens.py. The order of windows: model/text/windows.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from model.config import ConfigError, RunConfig
from model.text import cache
from model.text.corpus import verify
from model.text.files import SPLITS
from model.text.tokens import cached_or_built
from model.text.windows import BatchOrder, PublishedOrder, SoundOrder

MOST_LOST = 0.01
"""Share of the text's characters that a tokenizer may lose before `enqueue` refuses it."""
_SHORTEST_WINDOW = 32
"""Tokens: below it, a shorter window is no remedy."""
_PIECES = 200
"""Documents that a .txt too small to be split should be cut into."""
NEAR = 0.05
"""n-gram overlap of validation with training above which near duplicates are warned of."""


@dataclass(frozen=True)
class HeldOut:
    """Windows to score: W windows of T tokens, int64."""

    inputs: np.ndarray
    """(W, T)"""
    targets: np.ndarray
    """(W, T): the inputs shifted by one token."""
    text_bytes: int
    """UTF-8 bytes of the targets' text; special tokens have none. The bits-per-byte denominator."""


def prepare(config: RunConfig, cache_dir: Path) -> Dataset:
    """Read the corpus, or its cached arrays, and give the run's windows.

    Any number of processes may prepare at once. A damaged cache entry is built again.

    Raises:
        ConfigError: the corpus or tokenizer is not resolved, has changed since then, cannot be read,
            does not fit `model.vocab_size`, or has too little text for one window or one batch.
        HubFailed: text or tokenizer is the hub's, not stored, and the hub did not give it.
        CacheUnwritable: the arrays have to be stored, and there is no room.
        RuntimeError: a document is on both sides of the split.
    """
    verify(config.data)
    entry = cached_or_built(config, cache_dir)
    arrays, facts = entry.arrays, entry.facts
    if facts["vocabulary"] > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size}: the tokenizer {config.data.tokenizer} has "
            f"{facts['vocabulary']} entries; set it to that"
        )
    require_disjoint(
        {split: arrays[f"{split}-documents"] for split in SPLITS if f"{split}-documents" in arrays}
    )
    return Dataset(config, entry)


def require_disjoint(digests: Mapping[str, np.ndarray]) -> None:
    """Hold that no document is in two splits; `digests` maps a split to its (documents, 32) uint8.

    Raises:
        RuntimeError: one is.
    """
    sides = {split: {row.tobytes() for row in rows} for split, rows in digests.items()}
    for one, other in combinations(sides, 2):
        both = sides[one] & sides[other]
        if both:
            raise RuntimeError(
                f"{len(both)} documents are in {one} and in {other}, for example {min(both).hex()}"
            )


class Dataset:
    """A run's training batches and held-out windows. Reads memory-mapped arrays, keeps one epoch's order."""

    def __init__(self, config: RunConfig, entry: cache.Entry) -> None:
        """Take the arrays that `build` makes, as the cache holds them.

        Raises:
            ConfigError: there is too little text for one held-out window or one training batch.
        """
        train, arrays = config.train, entry.arrays
        self.require_unchanged = entry.require_unchanged
        """Raises CacheDamaged where what was read is not what was verified."""
        self._arrays, self.seq_len = arrays, train.seq_len
        near = entry.facts.get("overlap", 0.0) > NEAR
        self.facts = {**entry.facts, "lossy": entry.facts["lost"] > MOST_LOST, "near": near}
        """Counts for people: documents by split, duplicates, vocabulary; whether too much text is lost."""
        self.train_tokens = arrays["train"]
        self.unique_tokens = len(self.train_tokens)
        """Training tokens that exist; the run may see each of them several times."""
        kind = PublishedOrder if config.protocol == "published" else SoundOrder
        self._order: SoundOrder | PublishedOrder = kind(self.unique_tokens, train.seq_len, config.seed)
        self._batches = BatchOrder(self._order, train.batch_size)
        self._require_enough(config)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step from 0, each (batch_size, seq_len) int64, by (seed, step) alone."""
        return self._windows(self.train_tokens, self.starts(step))

    def starts(self, step: int) -> np.ndarray:
        """Where the step's windows begin in `train_tokens`, (batch_size,) int64."""
        return self._batches.starts(step)

    def held_out(self, split: str) -> HeldOut:
        """The windows of `val` or `test`. The published protocol has no test split: 0 windows.

        Raises:
            KeyError: there is no such split.
        """
        if split not in ("val", "test"):
            raise KeyError(f"{split!r}: no held-out split; val or test")
        if isinstance(self._order, PublishedOrder):
            tokens, widths = self.train_tokens, self._arrays["train-bytes"]
            starts = self._order.validation_starts() if split == "val" else np.empty(0, np.int64)
        else:
            tokens, widths = self._arrays[split], self._arrays[f"{split}-bytes"]
            starts = np.arange(self._held_out_windows(split)) * self.seq_len
        inputs, targets = self._windows(tokens, starts)
        return HeldOut(inputs, targets, int(self._windows(widths, starts)[1].sum()))

    def _windows(self, tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens start … start + T - 1, and the same one further on."""
        windows = np.asarray(tokens)[starts[:, None] + np.arange(self.seq_len + 1)].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]

    def _held_out_windows(self, split: str) -> int:
        """Full windows of the split; each target is scored once, the first token and the rest never."""
        return max(0, len(self._arrays[split]) - 1) // self.seq_len

    def summary(self, configs: Iterable[RunConfig]) -> str:
        """One line for whoever queues these runs: vocabulary, tokens by split, epochs, and what to doubt."""
        arrays = {split: len(self._arrays[split]) for split in SPLITS if split in self._arrays}
        epochs = sorted({config.tokens_seen / self.unique_tokens for config in configs})
        told = " to ".join(f"{each:.3g}" for each in dict.fromkeys((epochs[0], epochs[-1])))
        tokens = ", ".join(f"{count:,} {split}" for split, count in arrays.items())
        parts = [f"vocabulary {self.facts['vocabulary']:,}", f"tokens {tokens}", f"epochs {told}"]
        if duplicates := self.facts["duplicates"]:
            parts.append(f"duplicates dropped {duplicates:,}")
        if (overlap := self.facts.get("overlap")) is not None:
            parts.append(f"n-gram overlap of validation with training: {percent(overlap)}")
            if self.facts["near"]:
                parts.append("near duplicates: the validation loss is partly of text that is trained on")
        parts.append(f"characters that the tokenizer loses: {percent(self.facts['lost'])}")
        return "; ".join(parts)

    def require_round_trip(self, tokenizer: str) -> None:
        """Hold that the tokenizer gives the text back, or nearly: what it drops, no loss measures.

        Raises:
            ConfigError: more than 1 % of the characters are lost.
        """
        if self.facts["lossy"]:
            raise ConfigError(
                f"--tokenizer {tokenizer}: loses {percent(self.facts['lost'])} of the text's characters, so "
                "that bits per byte would be too low; take a tokenizer with a byte fallback, or say "
                "--lossy-tokenizer"
            )

    def _require_enough(self, config: RunConfig) -> None:
        """Hold that a batch and a window of each held-out split can be cut.

        Raises:
            ConfigError: what is short, of how much, and settings with which this text is enough.
        """
        have, batch, length = self._order.windows, config.train.batch_size, self.seq_len
        held_out = {}
        if isinstance(self._order, SoundOrder):
            held_out = {split: len(self._arrays[split]) for split in ("val", "test")}
        short = [f"{n:,} {split} tokens, less than a window" for split, n in held_out.items() if n <= length]
        if have < batch:
            short.insert(0, f"{self.unique_tokens:,} training tokens, {have} windows of a batch's {batch}")
        if short:
            raise ConfigError(
                f"too little text for train.seq_len = {length}: {'; '.join(short)}; {self._remedy(config)}"
            )

    def _remedy(self, config: RunConfig) -> str:
        """Settings that this text is enough for, if any are; else what text it takes."""
        held_out = (len(self._arrays[split]) - 1 for split in ("val", "test") if split in self._arrays)
        most = min([self.unique_tokens // (config.train.batch_size + 1), *held_out])
        if self.unique_tokens == config.data.tokens:
            return f"raise data.tokens = {config.data.tokens}"
        if most >= _SHORTEST_WINDOW:
            fits = 2 ** (most.bit_length() - 1)
            return f"--set train.seq_len={fits} fits, or --scale smoke; or give more text"
        documents, characters = sum(self.facts["documents"].values()), self.facts["characters"]
        if (duplicates := self.facts["duplicates"]) > documents:
            return (
                f"of its {documents + duplicates:,} documents {duplicates:,} are duplicates; give more text"
            )
        if documents == config.data.documents:
            return f"there may be more: raise data.documents = {documents}"
        piece = characters // _PIECES
        if 0 < piece < config.data.document_characters:
            return (
                f"its {documents} documents are too few for a split: --set data.document_characters={piece} "
                "cuts a .txt into more; else give more documents, or a `split` to each"
            )
        return f"its {documents} documents are too few; give more text"


def percent(share: float) -> str:
    return f"{100 * share:.2g} %"
