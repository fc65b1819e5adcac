"""Tokens, windows and batches: against references, then invariants, determinism, and faults of the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from model.config import ConfigError, RunConfig
from model.text import cache
from model.text.corpus import BUNDLED_TEXT, open_corpus, open_tokenizer, resolve
from model.text.dataset import Dataset, prepare, require_disjoint
from model.text.documents import Document, read_documents, split_of
from model.text.tokenizer import load_tokenizer
from model.text.tokens import build, cache_key
from model.text.windows import PublishedOrder, SoundOrder

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "documents": 150,
    "tokens": 20_000,
    "held_out_tokens": 3_000,
    "seq_len": 32,
    "batch_size": 4,
    "vocab_size": 4_096,
}


def configured(corpus: str | Path = "bundled", **values: int | str) -> RunConfig:
    """A small run on a resolved corpus."""
    config = RunConfig().with_values({**SMALL, **values})
    data, _ = resolve(str(corpus), None, True, config.data, Path("unused"), lambda line: None)
    return replace(config, data=data)


def synthetic(n_tokens: int, protocol: str = "sound", **values: int) -> Dataset:
    """A data set whose token i is i, so that a window shows where it starts."""
    tokens = np.arange(n_tokens, dtype=np.uint32)
    arrays = {"train": tokens, "train-bytes": np.ones(n_tokens, np.uint32)}
    arrays |= dict.fromkeys(("val", "val-bytes", "test", "test-bytes"), tokens[:1_000])
    entry = cache.Entry(arrays, {"lost": 0.0}, {})
    return Dataset(RunConfig().with_values({"protocol": protocol, **values}), entry)


def everything(data: Dataset) -> str:
    """SHA-256 of some batches and both held-out splits."""
    parts = [array for step in (0, 1, 50) for array in data.batch(step)]
    for split in ("val", "test"):
        held_out = data.held_out(split)
        parts += [held_out.inputs, held_out.targets, np.array(held_out.text_bytes)]
    return hashlib.sha256(b"".join(array.tobytes() for array in parts)).hexdigest()


# --- against references


@pytest.mark.slow
def test_streams_are_the_documents_of_their_split_each_with_its_end(tmp_path: Path) -> None:
    config = configured(tokens=10**6, held_out_tokens=10**6)
    arrays, facts = build(config, open_corpus(config.data, tmp_path), open_tokenizer(config.data, tmp_path))
    tokenizer = load_tokenizer("bundled-4096")
    rows = list(islice(read_documents(BUNDLED_TEXT, 3_000), 150))
    for split in ("train", "val", "test"):
        texts = [d.text for d in rows if d.declared_split == split]
        assert facts["documents"][split] == len(texts) > 0
        decoded = tokenizer.backend.decode(arrays[split].tolist(), skip_special_tokens=False)
        assert decoded == "".join(text + "<|endoftext|>" for text in texts)
        assert arrays[split].dtype == np.uint16
        if split != "train":
            assert arrays[f"{split}-bytes"].sum() == sum(len(text.encode()) for text in texts)


def test_scored_bytes_are_the_documents_own(tmp_path: Path) -> None:
    rows = [{"text": f"Training text {n} " * 9, "split": "train"} for n in range(9)]
    rows += [
        {"text": f"naïve 汉字 😀 {split} {n}", "split": split} for n in range(3) for split in ("val", "test")
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [row["text"] for row in rows if row["split"] == "val"]
    tokenizer = load_tokenizer("bundled-4096")
    n_tokens = sum(len(ids) + 1 for ids, _ in tokenizer.encode(texts))
    config = configured(path, seq_len=n_tokens - 1, batch_size=1)
    held_out = prepare(config, tmp_path / "cache").held_out("val")
    assert held_out.inputs.shape == (1, n_tokens - 1)
    # All but the very first token is scored; the separators have no bytes.
    first = len(tokenizer.backend.decode([held_out.inputs[0, 0]]).encode())
    assert held_out.text_bytes == sum(len(text.encode()) for text in texts) - first


@pytest.mark.slow
def test_text_bytes_are_those_of_the_decoded_targets(tmp_path: Path) -> None:
    held_out = prepare(configured(), tmp_path).held_out("val")
    tokenizer = load_tokenizer("bundled-4096")
    decoded = tokenizer.backend.decode(held_out.targets.ravel().tolist(), skip_special_tokens=True)
    assert decoded.isascii()  # so that no character is cut by the cap
    assert held_out.text_bytes == len(decoded.encode())


@pytest.mark.slow
def test_published_protocol_has_one_stream_without_separators(tmp_path: Path) -> None:
    config = configured(protocol="published", tokens=5_000, documents=9)
    data = prepare(config, tmp_path)
    tokenizer = load_tokenizer("bundled-4096")
    texts = [document.text for document in islice(read_documents(BUNDLED_TEXT, 3_000), 9)]
    ids = np.concatenate([ids for ids, _ in tokenizer.encode(texts)])[:5_000]
    assert data.unique_tokens == len(ids)
    held_out = data.held_out("val")
    assert held_out.inputs.shape == ((len(ids) - 32) // 10, 32)
    start = PublishedOrder(len(ids), 32, config.seed).validation_starts()[3]
    assert held_out.inputs[3].tolist() == ids[start : start + 32].tolist()
    assert held_out.targets[3].tolist() == ids[start + 1 : start + 33].tolist()
    texts_scored = [tokenizer.backend.decode(row.tolist()) for row in held_out.targets]
    assert held_out.text_bytes == sum(len(text.encode()) for text in texts_scored)
    assert data.held_out("test").inputs.shape == (0, 32)
    assert data.held_out("test").text_bytes == 0


# --- invariants


def test_batches_are_the_epochs_one_after_the_other() -> None:
    data = synthetic(1_000, seq_len=31, batch_size=7, vocab_size=1_000)
    order = SoundOrder(1_000, 31, 42)
    stream = np.concatenate([order.starts(epoch) for epoch in range(4)])
    batches = [data.batch(step) for step in range(17)]  # 119 of 124 windows: three epochs' ends are crossed
    assert np.concatenate([inputs[:, 0] for inputs, _ in batches]).tolist() == stream[:119].tolist()
    for inputs, targets in batches:
        assert inputs.shape == targets.shape == (7, 31)
        assert inputs.dtype == targets.dtype == np.int64
        assert (targets == inputs + 1).all()
        assert (inputs == inputs[:, :1] + np.arange(31)).all()


@pytest.mark.parametrize(("available", "windows"), [(33, 1), (64, 1), (65, 2), (1_000, 31)])
def test_each_held_out_target_is_scored_once(available: int, windows: int) -> None:
    data = synthetic(1_000, seq_len=32, batch_size=1, vocab_size=1_000)
    data._arrays["val"] = np.arange(available)
    held_out = data.held_out("val")
    assert held_out.inputs.shape == (windows, 32)
    assert held_out.targets.ravel().tolist() == list(range(1, 32 * windows + 1))
    assert (held_out.targets == held_out.inputs + 1).all()
    with pytest.raises(KeyError, match="no held-out split; val or test"):
        data.held_out("train")


def test_duplicates_are_dropped_before_the_split_and_the_first_is_kept(tmp_path: Path) -> None:
    same = "the same words " * 30
    documents = [
        Document(same, "val"),
        Document(same, "train"),
        Document("a b c", "train"),
        Document("d", "test"),
    ]
    config = configured()
    arrays, facts = build(config, documents, open_tokenizer(config.data, tmp_path))
    assert facts["documents"] == {"train": 1, "val": 1, "test": 1}
    assert facts["duplicates"] == 1
    published, facts = build(
        replace(config, protocol="published"), documents, open_tokenizer(config.data, tmp_path)
    )
    assert facts["duplicates"] == 0
    assert len(published["train"]) > len(arrays["val"])


def test_documents_are_the_same_once_they_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * 50 + str(n)}) + "\n" for n in range(9)))
    config = configured(path, document_characters=50)
    _, facts = build(config, open_corpus(config.data, tmp_path), open_tokenizer(config.data, tmp_path))
    assert facts["duplicates"] == 8


@pytest.mark.slow
def test_no_document_is_on_two_sides(tmp_path: Path) -> None:
    config = configured()
    prepare(config, tmp_path)
    arrays, facts, _ = cache.load(tmp_path / cache_key(config))
    digests = {split: arrays[f"{split}-documents"] for split in ("train", "val", "test")}
    assert {split: len(rows) for split, rows in digests.items()} == facts["documents"]
    require_disjoint(digests)
    with pytest.raises(RuntimeError, match="1 documents are in train and in val"):
        require_disjoint({**digests, "val": np.concatenate([digests["val"], digests["train"][:1]])})


@pytest.mark.slow
def test_a_leak_in_the_cache_stops_the_run(tmp_path: Path) -> None:
    config = configured()
    prepare(config, tmp_path)
    folder = tmp_path / cache_key(config)
    arrays, facts, _ = cache.load(folder)
    leaking = {
        **{k: np.array(v) for k, v in arrays.items()},
        "test-documents": arrays["train-documents"][-1:],
    }
    shutil.rmtree(folder)
    cache.store(folder, leaking, facts)
    with pytest.raises(RuntimeError, match="in train and in test"):
        prepare(config, tmp_path)


# --- determinism


@pytest.mark.slow
def test_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    config = configured()
    one, other = prepare(config, tmp_path / "one"), prepare(config, tmp_path / "other")
    forward = [one.batch(step) for step in range(40)]
    for step in (39, 0, 17, 17, 3):
        for mine, theirs in zip(forward[step], other.batch(step), strict=True):
            assert (mine == theirs).all()
    different = prepare(replace(config, seed=43), tmp_path / "one")
    assert (different.batch(0)[0] != forward[0][0]).any()
    for split in ("val", "test"):  # the split is fixed for the study, whatever the seed
        assert (different.held_out(split).inputs == one.held_out(split).inputs).all()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["sound", "published"])
def test_cached_and_fresh_data_are_the_same_and_seeds_share_the_cache(tmp_path: Path, protocol: str) -> None:
    config = configured(protocol=protocol)
    fresh = prepare(config, tmp_path)
    assert everything(prepare(config, tmp_path)) == everything(fresh)
    prepare(replace(config, seed=7).with_values({"batch_size": 2, "seq_len": 16}), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [{"documents": 149}, {"document_characters": 2_999}, {"tokens": 19_999}, {"held_out_tokens": 2_999}],
)
def test_what_makes_the_arrays_makes_the_key(change: dict[str, int]) -> None:
    config = configured()
    assert cache_key(config.with_values(change)) != cache_key(config)
    assert cache_key(replace(config, protocol="published")) != cache_key(config)


# --- faults


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"documents": 3},
            r"0 test tokens, less than a window; .* raise data\.documents = 3",
        ),
        (
            {"batch_size": 5_000},
            r"20,000 training tokens, 624 windows of a batch's 5000; raise data\.tokens = 20000",
        ),
        ({"vocab_size": 4_095}, r"model\.vocab_size = 4095: the tokenizer bundled-4096 has 4096 entries"),
        (
            {"documents": 40, "seq_len": 2_999, "batch_size": 1},
            r"train\.seq_len = 2999: .*2,738 val tokens, less than a window; --set train\.seq_len=2048 fits",
        ),
    ],
)
def test_too_little_is_refused_with_what_there_is(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    config = configured().with_values(change)
    with pytest.raises(ConfigError, match=message):
        prepare(config, tmp_path)


def test_user_split_decides_what_is_held_out(tmp_path: Path) -> None:
    rows = [
        {"text": f"words of number {n} " * 9, "split": ("train", "validation", "test")[n % 3]}
        for n in range(90)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = prepare(configured(path, seq_len=16), tmp_path / "cache")
    assert data.facts["documents"] == {"train": 30, "val": 30, "test": 30}
    by_digest = {
        split_of(Document(row["text"]), Document(row["text"]).digest)
        for row in rows
        if row["split"] == "train"
    }
    assert len(by_digest) > 1  # the digest would have decided otherwise
