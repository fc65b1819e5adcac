"""Text: the bundled corpus and its tokenizers, the user's files, and hostile input."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import lzma
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from model.config import ConfigError, DataConfig, RunConfig
from model.text.corpus import BUNDLED_TEXT, open_corpus, resolve, verify
from model.text.dataset import prepare
from model.text.documents import Document, cut_text, read_documents, split_of
from model.text.files import fingerprint
from model.text.tokenizer import BUNDLED, CORPORA, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"Document {n} says {'much ' * (n % 5)}about the number {n * n}." for n in range(40)]


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def choose(corpus: str | Path, cache: Path, tokenizer: str | Path | None = None, **data: int) -> DataConfig:
    name = None if tokenizer is None else str(tokenizer)
    return resolve(str(corpus), name, True, DataConfig(**data), cache, lambda line: None)[0]


# --- the bundled corpus and its tokenizers


@pytest.mark.slow
def test_bundled_corpus_has_its_documents_and_no_address_on_two_sides() -> None:
    with lzma.open(BUNDLED_TEXT, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert Counter(row["split"] for row in rows) == {"train": 2_764, "val": 559, "test": 408}
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["source"], set()).add(row["split"])
    assert len(sides) == 233
    assert all(len(side) == 1 for side in sides.values())
    documents = list(read_documents(BUNDLED_TEXT, 3_000))
    assert Counter(split_of(d, d.digest) for d in documents) == {"train": 2_764, "val": 559, "test": 408}
    assert [d.text for d in documents] == [row["text"] for row in rows]


@pytest.mark.slow
def test_bundled_tokenizers_are_rebuilt_to_the_same_bytes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("build_tokenizers", CORPORA / "build_tokenizers.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.build(tmp_path)
    for path in BUNDLED.values():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("name", "size"), [("bundled-4096", 4_096), ("bundled-8192", 8_192)])
def test_bundled_tokenizer_has_its_size_and_gives_every_text_back(name: str, size: int) -> None:
    tokenizer = load_tokenizer(name)
    assert (tokenizer.vocabulary, tokenizer.end_id) == (size, 0)
    for text in ["", " ", "Fellow-Citizens", "naïve 😀👩‍👩‍👧 \x00\t\r\n", "汉字 ق \u2028", "<|endoftext|>"]:
        ids, widths = tokenizer.encode([text])[0]
        assert tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False) == text
        assert widths.sum() == len(text.encode())
        assert tokenizer.end_id not in ids  # spelled out, it is text


@pytest.mark.parametrize(("small", "name"), [(True, "bundled-4096"), (False, "bundled-8192")])
def test_small_vocabulary_picks_the_bundled_tokenizer(tmp_path: Path, small: bool, name: str) -> None:
    notices: list[str] = []
    data, vocabulary = resolve("bundled", None, small, DataConfig(), tmp_path, notices.append)
    (notice,) = notices
    assert notice.startswith("text: 2,000 documents, ")
    assert "left out: 1,731 documents past data.documents = 2,000" in notice
    assert (data.corpus, data.tokenizer, vocabulary) == ("bundled", name, int(name[-4:]))
    assert data.tokenizer_id == hashlib.sha256(BUNDLED[name].read_bytes()).hexdigest()
    assert data.corpus_id == fingerprint(BUNDLED_TEXT)


# --- the user's own text


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz", ".parquet"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "other": list(range(40))}), path)
    else:
        opener: Callable = {".jsonl.gz": gzip.open, ".jsonl.xz": lzma.open}.get(suffix, open)
        with opener(path, "wt") as out:
            out.writelines(json.dumps({"text": text}) + "\n\n" for text in TEXTS)
    assert [d.text for d in read_documents(path, 3_000)] == TEXTS
    assert [d.text for d in read_documents(path, 10)] == [text[:10] for text in TEXTS]


def test_folder_is_read_by_name_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", [{"text": "second"}])
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "notes.md").write_text("no corpus")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["third"]}), tmp_path / "c.parquet")
    assert [d.text for d in read_documents(tmp_path, 3_000)] == ["first", "second", "third"]
    before = fingerprint(tmp_path)
    (tmp_path / "notes.md").write_text("still none")
    assert fingerprint(tmp_path) == before
    (tmp_path / "a.txt").write_text("First")
    assert fingerprint(tmp_path) != before


def test_text_file_is_cut_into_pieces_that_lose_nothing(tmp_path: Path) -> None:
    paragraph = "A sentence of some words. Another one, which is longer than that! " * 4 + "\n\n"
    text = paragraph * 12 + "x" * 1_000 + "é" * 700
    pieces = list(cut_text(text, 300))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 300 for piece in pieces)
    assert pieces[0] == paragraph  # at the paragraph's end
    assert all(piece.endswith((". ", "! ")) for piece in cut_text(paragraph.strip() + " ", 100))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    assert [d.text for d in read_documents(tmp_path / "book.txt", 300)] == pieces


@pytest.mark.parametrize("characters", [1, 2, 7, 100])
def test_cutting_ends_for_any_length(characters: int) -> None:
    assert "".join(cut_text("a b. c\n\nd " * 9, characters)) == "a b. c\n\nd " * 9


def test_declared_split_is_honoured_and_digest_decides_without_one(tmp_path: Path) -> None:
    names = ["train", "val", "validation", "test"]
    path = write_lines(tmp_path / "own.jsonl", [{"text": n, "split": n} for n in names])
    assert [split_of(d, d.digest) for d in read_documents(path, 99)] == ["train", "val", "val", "test"]
    sides = Counter(split_of(d, d.digest) for d in map(Document, map(str, range(5_000))))
    assert sides["train"] + sides["val"] + sides["test"] == 5_000
    # 10 % of 5,000 has a standard deviation of 21; five of them make this test deaf to luck.
    assert abs(sides["val"] - 500) < 106
    assert abs(sides["test"] - 500) < 106


def test_text_that_changed_since_enqueue_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", [{"text": text} for text in TEXTS])
    data = choose(path, tmp_path / "cache")
    verify(data)
    write_lines(path, [{"text": text} for text in TEXTS[:-1]])
    with pytest.raises(ConfigError, match=r"own\.jsonl: the text has changed since enqueue, .*; put it back"):
        prepare(RunConfig(data=data), tmp_path / "cache")


def test_user_corpus_is_frozen_as_an_absolute_path_with_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "own.jsonl", [{"text": text} for text in TEXTS])
    monkeypatch.chdir(tmp_path)
    notices: list[str] = []
    data, _ = resolve("own.jsonl", None, False, DataConfig(documents=7), tmp_path, notices.append)
    assert data.corpus == str(tmp_path / "own.jsonl")
    assert [line.split(",")[0] for line in notices] == [
        "text: 7 documents",
        "tokenizer: bundled-8192",
    ]
    assert len(list(open_corpus(data, tmp_path))) == 7


# --- hostile input: one line that says what, where and how to mend it


HOSTILE = {
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', r"broken\.jsonl, line 2: not a JSON object"),
    "list.jsonl": (b'{"text": "a"}\n[1]\n', r"line 2: a JSON list, not an object"),
    "number.jsonl": (b'{"text": 3}\n', r"line 1: `text` is a int"),
    "no_text.jsonl": (
        b'\n{"content": "a"}\n',
        r"no column `text`, only content; --text-column",
    ),
    "split.jsonl": (b'{"text": "a", "split": "x"}\n', r"line 1: split 'x'; it must be train"),
    "some.jsonl": (b'{"text": "a", "split": "val"}\n{"text": "b"}\n', r"line 2 and .*line 1: only one has"),
    "latin.jsonl": ('{"text": "é"}\n'.encode("latin-1"), r"line 1: not a JSON object \(.*utf-8"),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n', r"line 1: text holds half a surrogate pair"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"\n", r"line 1: not a JSON object"),
    "pickled.jsonl": (pickle.dumps({"text": "a"}), r"line 1: not a JSON object"),
    "corpus.pkl": (pickle.dumps(["a"]), r"not a corpus; give a \.jsonl"),
    "empty.jsonl": (b"", r"an empty corpus, no document in it has any text"),
    "blank.jsonl": (b'{"text": " \\n"}\n', r"an empty corpus, no document in it has any text"),
    "latin.txt": ("é".encode("latin-1"), r"latin\.txt: not UTF-8 text \(byte 0\)"),
    "fake.parquet": (b"PAR1 not really", r"fake\.parquet: cannot be read"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:-9], r"cut\.jsonl\.gz: damaged"),
    "cut.jsonl.xz": (lzma.compress(b'{"text": "a"}\n' * 99)[:-9], r"cut\.jsonl\.xz: damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refusal:
        choose(tmp_path / name, tmp_path / "cache")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "corpus", ["../x", "smolm", "", "a\0b", "y" * 5_000, "/dev/null", "~nobody-of-that-name/x"]
)
def test_path_that_is_no_corpus_is_refused_in_one_line(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no such file|cannot be a path|not a corpus") as refusal:
        choose(corpus, tmp_path)
    assert "\n" not in str(refusal.value)


def test_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an empty corpus, no file in it is"):
        choose(tmp_path, tmp_path / "cache")


def test_parquet_without_text_or_with_flipped_bytes_is_refused_or_read_as_before(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"content": TEXTS}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="no column `text`, only content"):
        choose(tmp_path / "t.parquet", tmp_path / "cache")
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        (tmp_path / "t.parquet").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            list(read_documents(tmp_path / "t.parquet", 3_000))
        except ConfigError:
            refused += 1
    assert refused > len(whole) / 70


def test_unresolved_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resolve the corpus first"):
        verify(DataConfig())
    with pytest.raises(ConfigError, match="the text has changed"):
        verify(replace(choose("bundled", tmp_path), corpus_id="0" * 64))
