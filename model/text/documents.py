"""Files → documents: reads .jsonl (.gz, .xz), .txt, .parquet or a folder of them, and decides the split.

Reads the user's files and nothing else; no pickle, ever. Every complaint names the file and the line.
Which files make a corpus: model/text/corpus.py. Documents → tokens: model/text/tokens.py.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import ConfigError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".txt", ".parquet")
KINDS = "a .jsonl (also .jsonl.gz, .jsonl.xz), .txt or .parquet file, or a folder of them"
SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Document:
    """A document's text, already cut, and the split that its corpus declares, if it does."""

    text: str
    declared_split: str | None = None

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text, 32 bytes: what makes two documents the same."""
        return hashlib.sha256(self.text.encode()).digest()


def split_of(document: Document, digest: bytes) -> str:
    """train, val or test: as the corpus declares, else by the digest, 80/10/10.

    The digest decides, not the place in the corpus: a document keeps its side when others come or go.
    """
    if document.declared_split is not None:
        return document.declared_split
    bucket = int.from_bytes(digest, "big") % 100
    return "test" if bucket < 10 else "val" if bucket < 20 else "train"


def corpus_files(path: Path) -> list[Path]:
    """The files of a corpus: the path itself, or a folder's readable files by name.

    Raises:
        ConfigError: there is nothing readable at the path.
    """
    try:
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if _suffix(p) and p.is_file() and p.name[0] != ".")
            if not files:
                raise ConfigError(f"{path}: an empty corpus, no file in it is {KINDS}")
            return files
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder; give {KINDS}")
        if not path.is_file() or not _suffix(path):
            raise ConfigError(f"{path}: not a corpus; give {KINDS}")
    except ConfigError:  # a ValueError too, and already worded
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r}: cannot be read ({error}); give {KINDS}") from error
    return [path]


def fingerprint(path: Path) -> str:
    """SHA-256 over the kinds and contents of a corpus's files, in order; names do not count.

    Raises:
        ConfigError: a file cannot be read.
    """
    whole = hashlib.sha256()
    for file in corpus_files(path):
        with _complaints(file), file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{_suffix(file)} {content}\n".encode())
    return whole.hexdigest()


def read_documents(path: Path, characters: int) -> Iterator[Document]:
    """The documents of a corpus in its order, each cut at `characters`, blank ones left out.

    Raises:
        ConfigError: a file or a line cannot be read, or only some documents declare a split.
    """
    first: tuple[bool, str] | None = None
    for file in corpus_files(path):
        for where, document in _documents_of(file, characters):
            try:
                document.text.encode()
            except UnicodeEncodeError as error:
                raise ConfigError(f"{where}: text holds half a surrogate pair; mend its encoding") from error
            declares = document.declared_split is not None
            first = first or (declares, where)
            if declares != first[0]:
                raise ConfigError(
                    f"{where} and {first[1]}: only one has a `split`; give it to all or to none"
                )
            if document.text.strip():
                yield document


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


def _suffix(path: Path) -> str | None:
    """The supported ending of a file's name, None when there is none; the longest wins."""
    return max((s for s in SUFFIXES if path.name.lower().endswith(s)), key=len, default=None)


def _documents_of(file: Path, characters: int) -> Iterator[tuple[str, Document]]:
    """Pairs of (where it stands, document) of one file."""
    suffix = _suffix(file)
    with _complaints(file):
        if suffix == ".txt":
            # One text a file: its pieces are contiguous, and each is split by its own digest.
            text = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
            yield from ((str(file), Document(piece)) for piece in cut_text(text, characters))
        else:
            rows = _parquet_rows(file) if suffix == ".parquet" else _json_rows(file)
            yield from ((where, _document(where, row, characters)) for where, row in rows)


def _document(where: str, row: dict[str, Any], characters: int) -> Document:
    text, split = row.get("text"), row.get("split")
    if not isinstance(text, str):
        found = "no `text`" if text is None else f"`text` is a {type(text).__name__}"
        raise ConfigError(f"{where}: {found}; each document needs a `text` string")
    if split is not None and (not isinstance(split, str) or split not in _SPLIT_NAMES):
        raise ConfigError(f"{where}: split {split!r}; it must be train, val (or validation) or test")
    return Document(text[:characters], None if split is None else _SPLIT_NAMES[split])


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    suffix = _suffix(file)
    opener: Any = {".jsonl.gz": gzip.open, ".jsonl.xz": lzma.open}.get(suffix or "", open)
    with opener(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                reason = str(error).splitlines()[0][:120]
                raise ConfigError(f"{where}: not a JSON object ({reason}); mend or drop the line") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{where}: a JSON {type(row).__name__}, not an object with a `text`")
            yield where, row


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(file) as table:
        columns = [name for name in ("text", "split") if name in table.schema_arrow.names]
        if "text" not in columns:
            raise ConfigError(f"{file}: no column `text`, only {', '.join(table.schema_arrow.names)[:200]}")
        number = 0
        for batch in table.iter_batches(columns=columns, batch_size=1_024):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", row


@contextmanager
def _complaints(file: Path) -> Iterator[None]:
    """Turn what a reader raises on a damaged or unreadable file into one line."""
    try:
        yield
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start}); convert it") from error
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{file}: damaged or not what its name says ({error}); copy it again") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error}); check it") from error
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ConfigError(f"{file}: cannot be read ({reason}); check what it is") from error
