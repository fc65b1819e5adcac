"""Documents → split → tokens, and the cache that keeps them: what every run of a study reads.

Writes only inside the cache folder. Reading text: model/text/documents.py. How arrays are kept:
model/text/cache.py. What a run makes of the tokens: model/text/dataset.py.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from model.config import RunConfig, canonical_json
from model.text import cache
from model.text.corpus import open_corpus, open_tokenizer
from model.text.documents import Document, split_of
from model.text.files import SPLITS
from model.text.overlap import Sequences, share
from model.text.tokenizer import Tokenizer

FORMAT = 3
"""Goes into the cache's key: raise it when the same configuration would make other arrays."""
DOCUMENTS_AT_ONCE = 256
REBUILDS = 4


def cached_or_built(config: RunConfig, cache_dir: Path) -> cache.Entry:
    """The arrays of `build` and its counts, from the cache where they are whole, else built and stored.

    Raises:
        ConfigError: corpus or tokenizer cannot be read.
        HubFailed: one is the hub's, not stored, and the hub did not give it.
        CacheUnwritable: there is no room for the entry, or the folder cannot be written.
        OSError: the entry is damaged each time that it is written.
    """
    folder = Path(cache_dir) / cache_key(config)
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
                "text_column": data.text_column,
                "tokens": data.tokens,
                "held_out_tokens": data.held_out_tokens,
            }
        ).encode()
    ).hexdigest()


def build(
    config: RunConfig, documents: Iterable[Document], tokenizer: Tokenizer
) -> tuple[cache.Arrays, dict[str, Any]]:
    """Tokenize documents into the arrays of the cache, and count them.

    Sound: documents of the same normalised text, cut or whole, dropped but for the first, then split, then
    tokenized, the end-of-document token after each. Published: all documents in one stream without a
    separator, and no split here.
    Arrays: `SPLIT` tokens, `SPLIT-bytes` of each token's text, `SPLIT-documents` SHA-256 (documents, 32).
    Facts: documents by split, duplicates, characters, vocabulary, `lost`, the share of the characters that
    the tokenizer does not give back, and `overlap`, of validation's word sequences with training's.
    """
    data, sound = config.data, config.protocol == "sound"
    limits = {split: data.tokens if split == "train" else data.held_out_tokens for split in SPLITS}
    small = np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32
    sequences = Sequences() if sound else None
    streams = {split: _Stream(limits[split], small, sequences) for split in (SPLITS if sound else ("train",))}
    seen: set[bytes] = set()
    duplicates, known = 0, False
    for some in _at_once(documents):
        texts: dict[str, list[str]] = {split: [] for split in streams}
        for document in some:
            digest, whole = document.digest, document.whole
            # A text that was cut elsewhere, in another normal form, has other pieces: the whole is compared.
            known = whole in seen if whole else known and document.continues
            if sound and (known or digest in seen):
                duplicates += 1
                continue
            seen |= {digest, whole} if whole else {digest}
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
    characters = sum(stream.characters for stream in streams.values())
    facts = {
        "documents": {split: len(stream.digests) for split, stream in streams.items()},
        "duplicates": duplicates,
        "characters": characters,
        "vocabulary": tokenizer.vocabulary,
        "lost": sum(stream.lost for stream in streams.values()) / max(1, characters),
    }
    if sound:
        facts["overlap"] = share(streams["val"].sequences, streams["train"].sequences)
    return arrays, facts


@dataclass
class _Stream:
    """The tokens of one split as they grow, up to a limit."""

    limit: int
    dtype: type
    words: Sequences | None
    count: int = 0
    characters: int = 0
    """Of the texts that were tokenized, and how many of them the tokenizer loses."""
    lost: int = 0
    tokens: list[np.ndarray] = field(default_factory=list)
    widths: list[np.ndarray] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sequences: list[np.ndarray] = field(default_factory=list)

    def add(self, texts: list[str], tokenizer: Tokenizer, end: int | None) -> None:
        if self.count >= self.limit:
            return
        encoded = tokenizer.encode(texts)
        self.characters += sum(map(len, texts))
        self.lost += tokenizer.lost_characters(texts, [ids for ids, _ in encoded])
        if self.words:
            self.sequences += map(self.words.of, texts)
        for ids, widths in encoded:
            if end is not None:
                ids, widths = np.append(ids, end), np.append(widths, 0)
            self.tokens.append(ids.astype(self.dtype))  # an eighth to a quarter of the memory
            self.widths.append(widths.astype(np.uint32))
            self.count += len(ids)

    def joined(self, parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *parts])[: self.limit]


def _built(config: RunConfig, cache_dir: Path) -> tuple[cache.Arrays, dict[str, Any]]:
    tokenizer = open_tokenizer(config.data, cache_dir)
    return build(config, open_corpus(config.data, cache_dir), tokenizer)


def _at_once(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of a few hundred: enough to encode in parallel, little enough to hold."""
    remaining = iter(documents)
    while some := list(islice(remaining, DOCUMENTS_AT_ONCE)):
        yield some
