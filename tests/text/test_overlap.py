"""The overlap of validation with training, against a count of tuples of words."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from model.text.documents import Document, normalised
from model.text.overlap import WORDS, Sequences, share
from model.text.tokenizer import load_tokenizer
from model.text.tokens import build
from tests.text.test_data import configured


def by_hand(held_out: list[str], training: list[str]) -> float:
    def sequences(text: str) -> list[tuple[str, ...]]:
        words = normalised(text).lower().split(" ")
        length = min(WORDS, len(words))
        return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]

    known = {sequence for text in training for sequence in sequences(text)}
    scored = [sequence for text in held_out for sequence in sequences(text)]
    return sum(sequence in known for sequence in scored) / len(scored)


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choice("abcdefgh") * 2 for _ in range(draw.randint(1, 60))) for _ in range(count)]


def test_share_is_that_of_a_count_of_tuples() -> None:
    training, held_out = texts(40, 1), texts(30, 2)
    for n in range(0, 30, 3):  # a passage of training within other words, and a whole text with other spaces
        held_out[n] = f"{held_out[n]} {' '.join(training[n].split()[:20])} {held_out[n]}"
        held_out[n + 1] = training[n].upper().replace(" ", "\n  ")
    words = Sequences()
    found = share([words.of(text) for text in held_out], [words.of(text) for text in training])
    assert found == pytest.approx(by_hand(held_out, training), abs=0)
    assert 0.1 < found < 0.9


def test_nothing_held_out_overlaps_nothing() -> None:
    assert share([], [Sequences().of("a b c")]) == 0.0


@pytest.mark.slow
def test_corpus_knows_its_overlap() -> None:
    """Half of each validation text is a passage of the training text."""
    passage = " ".join(f"word{n}" for n in range(100))
    other = " ".join(f"other{n}" for n in range(100))
    documents = [Document(passage, "train"), Document(f"{passage} {other}", "val"), Document("x", "test")]
    _, facts = build(configured(), documents, load_tokenizer("bundled-4096"))
    assert facts["overlap"] == (100 - WORDS + 1) / (200 - WORDS + 1)
    _, published = build(configured(protocol="published"), documents, load_tokenizer("bundled-4096"))
    assert "overlap" not in published  # it has no split of documents


@pytest.mark.slow
def test_bundled_corpus_overlaps_hardly(tmp_path: Path) -> None:
    from model.text.dataset import prepare

    assert 0 < prepare(configured(), tmp_path).facts["overlap"] < 0.01
