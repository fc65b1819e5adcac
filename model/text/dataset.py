"""Documents → split → tokens → cache → windows → batches: what a run learns from and is scored on.

Writes only inside the cache folder. Reading text: model/text/documents.py. Which text and tokenizer:
model/text/corpus.py. The order of windows: model/text/windows.py. How arrays are kept: model/text/cache.py.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np

from model.config import ConfigError, RunConfig, canonical_json
from model.text import cache
from model.text.corpus import open_corpus, open_tokenizer, verify
from model.text.documents import SPLITS, Document, split_of
from model.text.tokenizer import Tokenizer
from model.text.windows import BatchOrder, PublishedOrder, SoundOrder

FORMAT = 1
"""Goes into the cache's key: raise it when the same configuration would make other arrays."""
DOCUMENTS_AT_ONCE = 256
REBUILDS = 4


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
        RuntimeError: a document is on both sides of the split.
    """
    verify(config.data)
    folder = Path(cache_dir) / cache_key(config)
    arrays, facts = _cached_or_built(config, folder)
    if facts["vocabulary"] > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size}: the tokenizer {config.data.tokenizer} has "
            f"{facts['vocabulary']} entries; set it to that"
        )
    require_disjoint(
        {split: arrays[f"{split}-documents"] for split in SPLITS if f"{split}-documents" in arrays}
    )
    return Dataset(config, arrays, facts)


def cache_key(config: RunConfig) -> str:
    """SHA-256 of all that makes the arrays, in hex; seed, batch and window do not."""
    data = config.data
    return hashlib.sha256(
        canonical_json(
            {
                "format": FORMAT,
                "protocol": config.protocol,
                "corpus": data.corpus_id,
                "tokenizer": data.tokenizer_id,
                "documents": data.documents,
                "document_characters": data.document_characters,
                "tokens": data.tokens,
                "held_out_tokens": data.held_out_tokens,
            }
        ).encode()
    ).hexdigest()


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
                f"{len(both)} documents are in {one} and in {other}, {min(both).hex()} for one"
            )


class Dataset:
    """A run's training batches and held-out windows. Reads memory-mapped arrays, keeps one epoch's order."""

    def __init__(self, config: RunConfig, arrays: cache.Arrays, facts: Mapping[str, Any]) -> None:
        """Take the arrays that `build` makes.

        Raises:
            ConfigError: there is too little text for one held-out window or one training batch.
        """
        train = config.train
        self._arrays, self._seq_len = arrays, train.seq_len
        self.facts = dict(facts)
        """Counts for people: documents by split, duplicates, vocabulary."""
        self._train = arrays["train"]
        self.unique_tokens = len(self._train)
        """Training tokens that exist; the run may see each of them several times."""
        kind = PublishedOrder if config.protocol == "published" else SoundOrder
        self._order: SoundOrder | PublishedOrder = kind(self.unique_tokens, train.seq_len, config.seed)
        self._batches = BatchOrder(self._order, train.batch_size)
        self._require_enough(config)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step from 0, each (batch_size, seq_len) int64, by (seed, step) alone."""
        return self._windows(self._train, self._batches.starts(step))

    def held_out(self, split: str) -> HeldOut:
        """The windows of `val` or `test`. The published protocol has no test split: 0 windows.

        Raises:
            KeyError: there is no such split.
        """
        if split not in ("val", "test"):
            raise KeyError(f"{split!r}: no held-out split; val or test")
        if isinstance(self._order, PublishedOrder):
            tokens, widths = self._train, self._arrays["train-bytes"]
            starts = self._order.validation_starts() if split == "val" else np.empty(0, np.int64)
        else:
            tokens, widths = self._arrays[split], self._arrays[f"{split}-bytes"]
            starts = np.arange(self._held_out_windows(split)) * self._seq_len
        inputs, targets = self._windows(tokens, starts)
        return HeldOut(inputs, targets, int(self._windows(widths, starts)[1].sum()))

    def _windows(self, tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens start … start + T - 1, and the same one further on."""
        windows = np.asarray(tokens)[starts[:, None] + np.arange(self._seq_len + 1)].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]

    def _held_out_windows(self, split: str) -> int:
        """Full windows of the split; each target is scored once, the first token and the rest never."""
        return max(0, len(self._arrays[split]) - 1) // self._seq_len

    def _require_enough(self, config: RunConfig) -> None:
        have, batch, length = self._order.windows, config.train.batch_size, self._seq_len
        if have < batch:
            raise ConfigError(
                f"data.tokens: {self.unique_tokens} training tokens make {have} windows of train.seq_len = "
                f"{length}, fewer than train.batch_size = {batch}; give more text (data.documents = "
                f"{config.data.documents}, data.tokens = {config.data.tokens}) or shorten the window"
            )
        for split in ("val", "test") if isinstance(self._order, SoundOrder) else ():
            if not self._held_out_windows(split):
                raise ConfigError(
                    f"data.held_out_tokens: the {split} split has {len(self._arrays[split])} tokens, less "
                    f"than one window of train.seq_len + 1 = {length + 1}; give more text (data.documents = "
                    f"{config.data.documents}) or shorten the window"
                )


def build(
    config: RunConfig, documents: Iterable[Document], tokenizer: Tokenizer
) -> tuple[cache.Arrays, dict[str, Any]]:
    """Tokenize documents into the arrays of the cache, and count them.

    Sound: exact duplicates dropped, then split, then tokenized, the end-of-document token after each.
    Published: all documents in one stream without a separator, and no split here.
    Arrays: `SPLIT` tokens, `SPLIT-bytes` of each token's text, `SPLIT-documents` SHA-256 (documents, 32).
    """
    data, sound = config.data, config.protocol == "sound"
    limits = {split: data.tokens if split == "train" else data.held_out_tokens for split in SPLITS}
    small = np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32
    streams = {split: _Stream(limits[split], small) for split in (SPLITS if sound else ("train",))}
    seen: set[bytes] = set()
    duplicates = 0
    for some in _at_once(documents):
        texts: dict[str, list[str]] = {split: [] for split in streams}
        for document in some:
            digest = document.digest
            if sound and digest in seen:
                duplicates += 1
                continue
            seen.add(digest)
            split = split_of(document, digest) if sound else "train"
            texts[split].append(document.text)
            streams[split].digests.append(digest)
        for split, stream in streams.items():
            stream.add(texts[split], tokenizer, end=tokenizer.end_id if sound else None)
    arrays = {}
    for split, stream in streams.items():
        arrays[split] = stream.joined(stream.tokens, small)
        if split != "train" or not sound:  # only scored text needs its bytes
            arrays[f"{split}-bytes"] = stream.joined(stream.widths, np.uint32)
        if sound:
            arrays[f"{split}-documents"] = np.frombuffer(b"".join(stream.digests), np.uint8).reshape(-1, 32)
    counts = {split: len(stream.digests) for split, stream in streams.items()}
    return arrays, {"documents": counts, "duplicates": duplicates, "vocabulary": tokenizer.vocabulary}


@dataclass
class _Stream:
    """The tokens of one split as they grow, up to a limit."""

    limit: int
    dtype: type
    count: int = 0
    tokens: list[np.ndarray] = field(default_factory=list)
    widths: list[np.ndarray] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def add(self, texts: list[str], tokenizer: Tokenizer, end: int | None) -> None:
        if self.count >= self.limit:
            return
        for ids, widths in tokenizer.encode(texts):
            if end is not None:
                ids, widths = np.append(ids, end), np.append(widths, 0)
            self.tokens.append(ids.astype(self.dtype))  # an eighth to a quarter of the memory
            self.widths.append(widths.astype(np.uint32))
            self.count += len(ids)

    def joined(self, parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *parts])[: self.limit]


def _cached_or_built(config: RunConfig, folder: Path) -> tuple[cache.Arrays, dict[str, Any]]:
    for _ in range(REBUILDS):
        try:
            found = cache.load(folder)
        except cache.CacheDamaged as error:
            logging.getLogger(__name__).warning("data cache rebuilt: %s", error)
            found = None
        if found is not None:
            return found
        cache.store(folder, *_built(config, folder.parent))
    raise OSError(f"{folder}: damaged again each time it was written; check the disk")


def _built(config: RunConfig, cache_dir: Path) -> tuple[cache.Arrays, dict[str, Any]]:
    tokenizer = open_tokenizer(config.data, cache_dir)
    return build(config, open_corpus(config.data, cache_dir), tokenizer)


def _at_once(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of a few hundred: enough to encode in parallel, little enough to hold."""
    remaining = iter(documents)
    while some := list(islice(remaining, DOCUMENTS_AT_ONCE)):
        yield some
