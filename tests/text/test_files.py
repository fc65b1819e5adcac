"""The text that people bring: which files are read, which side their names tell, and what is said of it."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from model.config import ConfigError, DataConfig, RunConfig
from model.text.corpus import resolve
from model.text.dataset import Dataset, prepare
from model.text.documents import Document, cut_text, normalised, read_documents
from model.text.files import corpus_files, fingerprint
from tests.text.test_corpora import TEXTS, choose, write_lines

CLEAN = [f"{text} «é»\nand, {n}" for n, text in enumerate(TEXTS)]


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def texts_of(path: Path, **options: int | str) -> list[str]:
    return [d.text for d in read_documents(path, 3_000, **options)]


def prepared(path: Path, cache: Path, **values: int | str) -> Dataset:
    small = {"seq_len": 16, "batch_size": 2, "vocab_size": 4_096, "tokens": 50_000, "held_out_tokens": 50_000}
    config = RunConfig().with_values({**small, **values})
    data, _ = resolve(str(path), None, True, config.data, cache, lambda line: None)
    return prepare(RunConfig(config.model, config.routing, config.train, data), cache)


def notice(path: Path, cache: Path, **data: int) -> str:
    notices: list[str] = []
    resolve(str(path), None, True, DataConfig(**data), cache, notices.append)
    return notices[0]


# --- every kind


def as_zst(path: Path) -> None:
    with pyarrow.output_stream(str(path), compression="zstd") as out:
        out.write(lines(CLEAN).encode())


def as_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(CLEAN))


KINDS: dict[str, Callable[[Path], object]] = {
    "a.jsonl.zst": as_zst,
    "a.json": lambda path: path.write_text(json.dumps([{"text": text, "n": 1} for text in CLEAN])),
    "a.json.gz": lambda path: path.write_bytes(
        gzip.compress(json.dumps([{"text": text} for text in CLEAN]).encode())
    ),
    "a.csv": as_csv,
    "saved": lambda path: datasets.Dataset.from_dict({"text": CLEAN, "n": [1] * 40}).save_to_disk(str(path)),
    "a[1].json": lambda path: path.write_text(json.dumps([{"text": text} for text in CLEAN])),
    "a.txt": lambda path: path.write_text("<|endoftext|>\n".join(CLEAN), encoding="utf-8"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_give_every_document_whole(tmp_path: Path, name: str) -> None:
    KINDS[name](tmp_path / name)
    assert texts_of(tmp_path / name) == CLEAN
    assert texts_of(tmp_path / name, documents=7) == CLEAN[:7]
    assert choose(tmp_path / name, tmp_path / "cache").corpus_id


def test_text_that_looks_like_a_number_or_like_nothing_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n007\nNA\nnull\n1e3\n")
    assert texts_of(tmp_path / "a.csv") == ["007", "NA", "null", "1e3"]


def test_text_column_is_chosen_and_part_of_what_the_run_is(tmp_path: Path) -> None:
    table = pyarrow.table({"body": TEXTS, "title": [f"Title {n}" for n in range(40)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet", column="body") == TEXTS
    assert texts_of(tmp_path / "a.parquet", column="title")[3] == "Title 3"
    with pytest.raises(ConfigError, match="no column `text`, only body, title; --text-column takes another"):
        texts_of(tmp_path / "a.parquet")
    assert RunConfig().with_values({"text_column": "body"}).hash != RunConfig().hash
    assert "text_column" not in RunConfig().identity()["data"]  # earlier hashes stay


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    rows: list[object] = [{"text": text} for text in TEXTS]
    rows[3:3] = [{"text": None}, {"title": "no text"}, {"text": " \n"}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    assert texts_of(path) == TEXTS
    assert "skipped: 3 without text" in notice(path, tmp_path / "cache")


# --- which files, and what is said


def test_the_line_names_files_read_and_left_alone_and_what_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines(TEXTS))
    (folder / "b.txt").write_text("x" * 250)
    for name in ("LICENSE.txt", "README.md", "requirements.txt", ".hidden.txt", "notes.pdf"):
        (folder / name).write_text("not the corpus")
    assert [file.name for file in corpus_files(folder).read] == ["a.jsonl", "b.txt"]
    assert dict(corpus_files(folder).skipped) == {
        "LICENSE.txt": "a licence",
        "README.md": "about the text, not the text",
        "requirements.txt": "a list of packages",
        ".hidden.txt": "hidden",
        "notes.pdf": "not a kind that is read",
    }
    kept = sum(len(text[:20]) for text in TEXTS[:30])
    cut = sum(len(text) - 20 for text in TEXTS[:30])
    said = notice(folder, tmp_path / "cache", documents=30, document_characters=20)
    assert said.startswith(f"text: 30 documents, {kept:,} characters from a.jsonl, b.txt")
    assert "left alone: .hidden.txt (hidden), LICENSE.txt (a licence), README.md (about the text" in said
    assert "left out: 23 documents past data.documents = 30" in said  # 10 rows and 13 pieces
    assert f"left out: {cut:,} characters past data.document_characters = 20 a document" in said
    assert "b.txt, each one text cut into several, 13 in all" in said
    assert "\n" not in said


def test_folder_below_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.txt").write_text("found")
    assert texts_of(tmp_path) == ["found"]


# --- the split from the names


def sides(data: Dataset) -> dict[str, int]:
    return dict(data.facts["documents"])


@pytest.mark.parametrize("held_out", ["valid", "validation", "dev", "val"])
def test_names_of_files_tell_the_split(tmp_path: Path, held_out: str) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.jsonl").write_text(lines(TEXTS[:28]))
    (folder / f"{held_out}.jsonl").write_text(lines(TEXTS[24:34]))  # four of them are in training too
    (folder / "test.jsonl").write_text(lines(TEXTS[34:]))
    (folder / "extra.txt").write_text("of no split")
    data = prepared(folder, tmp_path / "cache")
    assert sides(data) == {"train": 24, "val": 10, "test": 6}  # what is scored stays whole
    assert data.facts["duplicates"] == 4
    assert ("extra.txt", "no split in its name") in corpus_files(folder).skipped


def test_layout_of_the_hub_and_a_saved_dictionary_tell_the_split(tmp_path: Path) -> None:
    many = [f"{text} and {n}" for n in range(8) for text in TEXTS]
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    for name, texts in {"train": many[:280], "validation": many[280:]}.items():
        table = pyarrow.table({"text": texts})
        pyarrow.parquet.write_table(table, hub / "data" / f"{name}-00000-of-00001.parquet")
    (hub / "README.md").write_text("a card")
    splits = {"train": many[:280], "validation": many[280:]}
    saved = datasets.DatasetDict({k: datasets.Dataset.from_dict({"text": v}) for k, v in splits.items()})
    saved.save_to_disk(str(tmp_path / "saved"))
    for folder in (hub, tmp_path / "saved"):
        found = sides(prepared(folder, tmp_path / "cache"))
        # No file is of the test split: a tenth of the training files' documents, by their digests.
        drawn = sum(int.from_bytes(Document(t).digest, "big") % 100 < 10 for t in many[:280])
        assert found == {"train": 280 - drawn, "val": 40, "test": drawn}
        assert "test drawn from training" in notice(folder, tmp_path / "cache")


def test_limit_leaves_held_out_files_a_tenth_each(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(lines(TEXTS))
    (tmp_path / "val.jsonl").write_text(lines([f"held out {n}" for n in range(40)]))
    (tmp_path / "test.jsonl").write_text(lines([f"scored once {n}" for n in range(40)]))
    documents = list(read_documents(tmp_path, 3_000, 30))
    counts = {side: sum(d.declared_split == side for d in documents) for side in ("train", "val", "test")}
    assert counts == {"train": 24, "val": 3, "test": 3}


def test_one_name_that_speaks_of_training_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "train_journeys.txt").write_text("A train.")
    (tmp_path / "sea.txt").write_text("A ship.")
    assert {d.declared_split for d in read_documents(tmp_path, 3_000)} == {None}


def test_row_and_file_name_of_two_minds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "a", "split": "val"}) + "\n")
    (tmp_path / "val.jsonl").write_text(lines(["b"]))
    with pytest.raises(ConfigError, match=r"train\.jsonl, line 1: split 'val', but the file is of train"):
        texts_of(tmp_path)


# --- nothing held out is trained on


def test_variants_of_a_text_are_one_document(tmp_path: Path) -> None:
    """400 documents, and the same with a line end, other white space, or composed accents."""
    texts = [f"Café number {n} says {n * n} words." for n in range(400)]
    variants = [texts[n] + "\n" if n % 2 else texts[n].replace(" ", "  \n") for n in range(400)]
    variants[7] = texts[7].replace("é", "e\u0301")
    path = tmp_path / "a.jsonl"
    path.write_text(lines(texts + variants))
    data = prepared(path, tmp_path / "cache")
    assert data.facts["duplicates"] == 400
    assert sum(sides(data).values()) == 400
    assert normalised(" e\u0301\n\tx ") == "é x"
    # White space decides no side: another layout of the same corpus is split alike.
    (tmp_path / "b.jsonl").write_text(lines(variants))
    assert sides(prepared(tmp_path / "b.jsonl", tmp_path / "cache")) == sides(data)


@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
def test_variants_of_a_text_are_one_document_wherever_they_are_cut(tmp_path: Path, kind: str) -> None:
    texts = [" ".join(f"Café {n} {i * n}." for i in range(40)) for n in range(1, 21)]
    variants = [text.replace(" ", "  ").replace("é", "e\u0301") for text in texts]
    folder = tmp_path / "corpus"
    folder.mkdir()
    if kind == ".txt":
        for n, (text, variant) in enumerate(zip(texts, variants, strict=True)):
            (folder / f"{n}a.txt").write_text(text)
            (folder / f"{n}b.txt").write_text(variant)
    else:
        (folder / "a.jsonl").write_text(lines(texts + variants))
    data = prepared(folder, tmp_path / "cache", document_characters=200)
    alone = tmp_path / "alone.jsonl"
    alone.write_text(lines(texts))
    kept = prepared(alone, tmp_path / "cache", document_characters=200).facts
    if kind == ".jsonl":
        assert data.facts["documents"] == kept["documents"]
        assert data.facts["duplicates"] == 20
    else:  # cut into pieces, all of the first of each two
        pieces = sum(len(list(cut_text(text, 200))) for text in texts)
        assert sum(data.facts["documents"].values()) == pieces
        assert data.facts["duplicates"] == sum(len(list(cut_text(text, 200))) for text in variants)
    assert data.facts["overlap"] == 0.0


def test_blank_beginning_of_a_text_is_no_reason_to_drop_it(tmp_path: Path) -> None:
    """The text before it is known already, by its first piece; this one's first piece is white space."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    known = " ".join(f"Once {i}." for i in range(900))
    fresh = " " * 500 + " ".join(f"Twice {i}." for i in range(900))
    for name, text in (("a.txt", known), ("b.txt", known.replace(" ", "  ")), ("c.txt", fresh)):
        (folder / name).write_text(text)
    data = prepared(folder, tmp_path / "cache", document_characters=200)
    pieces = [piece for text in (known, fresh) for piece in cut_text(text, 200) if piece.strip()]
    assert sum(data.facts["documents"].values()) == len(pieces)


def test_users_corpora_have_new_identities_since_their_split_changed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    assert choose(path, tmp_path / "cache").corpus_id != fingerprint(path)


# --- too little text: the remedy that is named works


@pytest.mark.parametrize("scale", [{}, {"seq_len": 2_048, "batch_size": 24}])
def test_remedy_for_a_small_text_is_enough(tmp_path: Path, scale: dict[str, int]) -> None:
    path = tmp_path / "small.txt"
    path.write_text("\n\n".join(f"{n}. {text}" for n in range(43) for text in TEXTS)[:105_000])
    values: dict[str, int] = {"seq_len": 4_096, "batch_size": 8, **scale}
    with pytest.raises(ConfigError, match=r"too little text for train\.seq_len") as refusal:
        prepared(path, tmp_path / "cache", **values)
    key, value = str(refusal.value).split("--set ")[1].split(" ")[0].split("=")
    prepared(path, tmp_path / "cache", **{**values, key: int(value)})


def test_text_of_too_few_documents_is_cut_smaller_by_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "small.txt"
    path.write_text("\n\n".join(f"{n}. {text}" for n in range(4) for text in TEXTS)[:8_000])
    with pytest.raises(ConfigError, match="documents are too few for a split") as refusal:
        prepared(path, tmp_path / "cache")
    value = int(str(refusal.value).split("data.document_characters=")[1].split(" ")[0])
    assert min(sides(prepared(path, tmp_path / "cache", document_characters=value)).values()) > 0
