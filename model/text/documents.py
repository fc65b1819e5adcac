"""Rows → documents: what a text is, when two are the same, which side of the split each is on.

Which files make a corpus: model/text/files.py. What is in them: model/text/rows.py. Documents → tokens:
model/text/tokens.py.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.config import ConfigError
from model.text.files import SPLIT_NAMES, SPLITS, File, Files, corpus_files
from model.text.rows import no_column, rows_of, text_of

SEPARATOR = "<|endoftext|>"
"""Between the documents of a .txt file; a file without it is one text."""
_COUNTED = 100_000
"""Documents past the limit that are still counted; then it is said that there are more."""


@dataclass(frozen=True)
class Document:
    """A document's text, already cut, and the split that its corpus declares, if it does."""

    text: str
    declared_split: str | None = None
    whole: bytes | None = None
    """The digest of the text that it is the beginning of; None where it is all of it, or goes on in it."""
    continues: bool = False
    """The document before it is of the same text."""

    @property
    def digest(self) -> bytes:
        """What makes two documents the same."""
        return digest(self.text)


@dataclass
class Account:
    """What of a corpus was used, and what was left out."""

    files: Files
    documents: int = 0
    characters: int = 0
    without_text: int = 0
    """Rows whose text is missing or blank."""
    cut_characters: int = 0
    """Of the documents used: past `document_characters`."""
    further: int = 0
    """Documents past the limit, counted up to 100,000."""
    pieces: dict[str, int] = field(default_factory=dict)
    """File → documents that its one text was cut into, where there are several."""


def digest(text: str) -> bytes:
    """SHA-256 of the normal form, 32 bytes."""
    return hashlib.sha256(normalised(text).encode()).digest()


def normalised(text: str) -> str:
    """Unicode NFC, every run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def split_of(document: Document, digest: bytes) -> str:
    """train, val or test: as the corpus declares, else by the digest, 80/10/10.

    The digest decides, not the place in the corpus: a document keeps its side when others come or go.
    """
    if document.declared_split is not None:
        return document.declared_split
    bucket = int.from_bytes(digest, "big") % 100
    return "test" if bucket < 10 else "val" if bucket < 20 else "train"


def read_documents(
    path: Path,
    characters: int,
    documents: int | None = None,
    column: str = "text",
    account: Account | None = None,
) -> Iterator[Document]:
    """The documents of a corpus in its order, each cut at `characters`, those without text left out.

    Args:
        documents: the most taken from the start. Where files' names tell the split, each held-out split has
            a tenth of them at most, and training the rest.
        column: the row's column that holds the text.
        account: takes what was used and left out; then what is past the limit is read too, and counted.

    Raises:
        ConfigError: a file or a line cannot be read, or only some documents declare a split.
    """
    files = corpus_files(path)
    counting = account is not None
    account = account or Account(files)
    account.files = files
    used = dict.fromkeys((None, *SPLITS), 0)
    first: tuple[bool, str] | None = None
    for file in files.read:
        for where, document, cut in _documents_of(file, characters, column, account):
            declares = document.declared_split is not None
            first = first or (declares, where)
            if declares != first[0]:
                raise ConfigError(
                    f"{where} and {first[1]}: only one has a `split`; give it to all or to none"
                )
            room = math.inf if documents is None else documents - account.documents
            if documents is not None and file.split in ("val", "test"):
                room = max(1, documents // 10) - used[file.split]
            if room <= 0:
                account.further += 1
                if not counting or account.further >= _COUNTED:
                    break
                continue
            used[file.split] += 1
            account.documents += 1
            account.characters += len(document.text)
            account.cut_characters += cut
            yield _drawn(document, files)


def cut_text(text: str, characters: int) -> Iterator[str]:
    """Consecutive pieces of at most `characters`, whose concatenation is the text.

    A piece ends after a paragraph, else a sentence, else a word, if one ends in its second half.
    """
    start = 0
    while len(text) - start > characters:
        window = text[start : start + characters]
        for boundary in (r"\n\s*\n", r"[.!?][\"'”’)]*\s", r"\s"):
            ends = [m.end() for m in re.finditer(boundary, window) if m.end() > characters // 2]
            if ends:
                break
        end = start + (ends[-1] if ends else characters)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _drawn(document: Document, files: Files) -> Document:
    """A training file's document, on a held-out side if its digest says so and no file is of that split."""
    if not files.drawn or document.declared_split != "train":
        return document
    side = split_of(Document(document.text), document.digest)
    return replace(document, declared_split=side) if side in files.drawn else document


def _documents_of(
    file: File, characters: int, column: str, account: Account
) -> Iterator[tuple[str, Document, int]]:
    """(where it stands, document, characters cut off) of one file's documents that have text."""
    found = _texts(file, characters, account) if file.kind == ".txt" else _rows(file, column)
    any_text, columns = False, list[str]()
    for where, text, split, names, whole in found:
        columns = names
        if not text.strip():
            account.without_text += 1
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{where}: text holds half a surrogate pair; mend its encoding") from error
        any_text = True
        cut = max(0, len(text) - characters)
        begins = digest(text) if cut else whole
        document = Document(text[:characters], split, begins or None, continues=begins == b"")
        yield where, document, cut
    if columns and not any_text and column not in columns:
        raise no_column(file.path, columns, column)


Found = Iterator[tuple[str, str, str | None, list[str], bytes | None]]
"""Where it stands, its text (empty where it has none), its split, its row's columns, and what it is cut from.

The last: the whole text's digest with its first piece, nothing (b"") with the others, None where it is whole.
"""


def _texts(file: File, characters: int, account: Account) -> Found:
    text = text_of(file.path)
    if SEPARATOR in text:
        pieces = [part.strip("\n") for part in text.split(SEPARATOR)]
        pieces = [piece for piece in pieces if piece.strip()]  # the end of the file is no document
        yield from ((str(file.path), piece, file.split, [], None) for piece in pieces)
        return
    # One text a file: its pieces are contiguous, and each is split by its own digest.
    pieces = list(cut_text(text, characters))
    pieces = [piece for piece in pieces if piece.strip()] or pieces[:1]  # so that the first one is a document
    wholes: list[bytes | None] = [None] * len(pieces)
    if len(pieces) > 1:
        account.pieces[file.name] = len(pieces)
        wholes = [digest(text), *[b""] * (len(pieces) - 1)]
    for piece, whole in zip(pieces, wholes, strict=True):
        yield str(file.path), piece, file.split, [], whole


def _rows(file: File, column: str) -> Found:
    for where, row in rows_of(file.path, file.kind, column):
        text, split = row.get(column), row.get("split")
        if text is not None and not isinstance(text, str):
            kind = type(text).__name__
            raise ConfigError(f"{where}: `{column}` is a {kind}; each document needs a text there")
        yield where, text or "", _split(where, split, file), list(row), None


def _split(where: str, split: Any, file: File) -> str | None:
    if split is None:
        return file.split
    if not isinstance(split, str) or split not in SPLIT_NAMES:
        raise ConfigError(f"{where}: split {split!r}; it must be train, val (or validation) or test")
    if file.split not in (None, SPLIT_NAMES[split]):
        raise ConfigError(f"{where}: split {split!r}, but the file is of {file.split} by its name; mend one")
    return SPLIT_NAMES[split]
