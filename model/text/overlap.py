"""How much of the validation text stands in the training text, word for word, though no document does.

Pure arithmetic on texts. Who asks, once for a corpus: model/text/tokens.py.
"""

from __future__ import annotations

import hashlib

import numpy as np

from model.text.documents import normalised

WORDS = 13
"""The length of a sequence, as in Brown et al. 2020, appendix C."""
_BASE = np.uint64(0x9E3779B97F4A7C15)


class Sequences:
    """Word sequences of a growing text as 64-bit hashes: two that differ share one once in 10^19."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}

    def of(self, text: str) -> np.ndarray:
        """Every sequence of 13 words, a shorter text whole; (sequences,) uint64, repetitions included.

        Words are separated by white space; upper and lower case are the same.
        """
        words = normalised(text).lower().split(" ")
        ids = np.array([self._id(word) for word in words], np.uint64)
        length = min(WORDS, len(ids))
        hashes = np.zeros(len(ids) - length + 1, np.uint64)
        for offset in range(length):  # a polynomial modulo 2^64, Horner's way
            hashes = hashes * _BASE + ids[offset : offset + len(hashes)]
        return hashes

    def _id(self, word: str) -> int:
        if word not in self._words:
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            self._words[word] = int.from_bytes(digest, "big")
        return self._words[word]


def share(held_out: list[np.ndarray], training: list[np.ndarray]) -> float:
    """Share of the held-out sequences that occur in training, repetitions counted; 0 where there are none."""
    scored = np.concatenate([np.empty(0, np.uint64), *held_out])
    known = np.unique(np.concatenate([np.empty(0, np.uint64), *training]))
    return float(np.isin(scored, known).mean()) if len(scored) else 0.0
