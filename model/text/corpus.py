"""Which text and which tokenizer: chosen once at enqueue, frozen by hash or revision, opened at each run.

Reads the bundled corpus and the user's files; for SmolLM's corpus it asks model/text/hub.py, which alone uses
the network. Which files, and what is in them: model/text/files.py, model/text/documents.py. What becomes of
them: model/text/tokens.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from model.config import ConfigError, DataConfig
from model.text import hub
from model.text.documents import Account, Document, read_documents
from model.text.files import KINDS, corpus_files, fingerprint
from model.text.tokenizer import (
    BUNDLED,
    CORPORA,
    Tokenizer,
    load_tokenizer,
    tokenizer_fingerprint,
)

BUNDLED_TEXT = CORPORA / "sotu.jsonl.xz"
_NORMALISED = "+normalised"
"""Ends what identifies SmolLM's text since the split goes by normalised text; begins a user's fingerprint."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(
    corpus: str,
    tokenizer: str | None,
    small_vocabulary: bool,
    data: DataConfig,
    cache_dir: Path,
    notify: Callable[[str], None],
) -> tuple[DataConfig, int]:
    """Choose text and tokenizer and freeze what they are; returns the vocabulary's size too.

    Args:
        corpus: auto, smollm, bundled, or a path.
        tokenizer: a bundled tokenizer's name, a folder, a hub id, or None for the corpus's own.
        small_vocabulary: of the bundled tokenizers, the one of 4,096 entries.
        notify: takes one line for each choice that was made on the user's behalf.

    Raises:
        ConfigError: what is wrong, where, and the remedy.
    """
    cache_dir = Path(cache_dir)
    if corpus == "auto":
        try:
            return _resolve_smollm(tokenizer, data, cache_dir, attempts=1)
        except hub.HubFailed as error:
            notify(f"corpus: bundled, because SmolLM's is not cached here and {error}")
            corpus = "bundled"
    try:
        if corpus == "smollm":
            return _resolve_smollm(tokenizer, data, cache_dir, hub.ATTEMPTS)
        path = BUNDLED_TEXT if corpus == "bundled" else _user_path(corpus)
        notices = [_survey(path, data)]
        name = corpus if corpus == "bundled" else str(path)
        data = replace(data, corpus=name, corpus_id=_identity(path))
        if tokenizer is None:
            tokenizer = "bundled-4096" if small_vocabulary else "bundled-8192"
            if corpus != "bundled":
                notices.append(
                    f"tokenizer: {tokenizer}, made for the bundled corpus; --tokenizer takes another"
                )
        resolved = _with_tokenizer(data, tokenizer, cache_dir)
        for line in notices:  # not before: a tokenizer that is not there is one line
            notify(line)
        return resolved
    except hub.HubFailed as error:
        if corpus == "smollm":
            raise ConfigError(f"--corpus smollm: {error}; connect, or use --corpus bundled") from error
        raise ConfigError(f"--tokenizer {tokenizer}: no such folder, and {error}; give a folder") from error


def verify(data: DataConfig) -> None:
    """Hold that text and tokenizer are still what was enqueued. A revision on the hub cannot change.

    Raises:
        ConfigError: they are not, or were never resolved.
    """
    if not data.corpus_id or not data.tokenizer_id:
        raise ConfigError(
            "data.corpus_id and data.tokenizer_id are empty: resolve the corpus first (enqueue)"
        )
    if data.corpus == "smollm":
        held = data.corpus_id.endswith(_NORMALISED)
    else:
        held = _identity(_text_path(data)) == data.corpus_id
    if not held:
        raise ConfigError(
            f"{data.corpus}: the text has changed since enqueue, or the build that reads it; put it back, or "
            "enqueue again under another --study"
        )
    if not _from_hub(data) and tokenizer_fingerprint(data.tokenizer) != data.tokenizer_id:
        raise ConfigError(
            f"{data.tokenizer}: the tokenizer has changed since enqueue; put it back, or enqueue again"
        )


def open_corpus(data: DataConfig, cache_dir: Path) -> Iterator[Document]:
    """The first `documents` documents of a resolved corpus, in its order, each cut.

    Raises:
        ConfigError: they cannot be read.
        HubFailed: SmolLM's text is not stored and the hub did not give it.
    """
    if data.corpus == "smollm":
        path = hub.corpus_file(cache_dir, data.corpus_id.removesuffix(_NORMALISED), data.documents)
    else:
        path = _text_path(data)
    return read_documents(path, data.document_characters, data.documents, data.text_column)


def open_tokenizer(data: DataConfig, cache_dir: Path) -> Tokenizer:
    """The resolved tokenizer.

    Raises:
        ConfigError: it cannot be loaded.
        HubFailed: it is the hub's, not stored, and the hub did not give it.
    """
    if _from_hub(data):
        return load_tokenizer(hub.tokenizer_folder(cache_dir, data.tokenizer, data.tokenizer_id))
    return load_tokenizer(data.tokenizer)


def _resolve_smollm(
    tokenizer: str | None, data: DataConfig, cache_dir: Path, attempts: int
) -> tuple[DataConfig, int]:
    """Take the stored text, else fetch it."""
    revision = hub.cached_corpus(cache_dir, data.documents) or hub.corpus_revision(attempts)
    hub.corpus_file(cache_dir, revision, data.documents)
    data = replace(data, corpus="smollm", corpus_id=f"{revision}{_NORMALISED}")
    return _with_tokenizer(data, tokenizer or hub.SMOLLM_TOKENIZER, cache_dir)


def _with_tokenizer(data: DataConfig, name: str, cache_dir: Path) -> tuple[DataConfig, int]:
    """Freeze a tokenizer by its bundled name, folder or hub id."""
    if name in BUNDLED:
        tokenizer_id = tokenizer_fingerprint(name)
    elif name and _absolute(name).exists():
        name = str(_absolute(name))
        tokenizer_id = tokenizer_fingerprint(name)
    elif _HUB_ID.fullmatch(name):
        tokenizer_id = hub.tokenizer_revision(cache_dir, name)
    else:
        raise ConfigError(
            f"--tokenizer {name!r}: no such folder, and no hub id; choose {', '.join(BUNDLED)}, a folder "
            f"with a tokenizer.json, or OWNER/NAME"
        )
    data = replace(data, tokenizer=name, tokenizer_id=tokenizer_id)
    return data, open_tokenizer(data, cache_dir).vocabulary


def _from_hub(data: DataConfig) -> bool:
    """Bundled names are known and folders are stored as absolute paths; what remains is a hub id."""
    return data.tokenizer not in BUNDLED and not Path(data.tokenizer).is_absolute()


def _text_path(data: DataConfig) -> Path:
    return BUNDLED_TEXT if data.corpus == "bundled" else Path(data.corpus)


def _absolute(name: str) -> Path:
    """The path that a worker in another folder would find too."""
    try:
        path = Path(name).expanduser().resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name[:80]!r}: cannot be a path ({reason}); check it") from error
    return path


def _user_path(corpus: str) -> Path:
    """A corpus that is neither of the known names."""
    path = _absolute(corpus)
    if not corpus or not path.exists():
        raise ConfigError(
            f"--corpus {corpus!r}: neither auto, smollm nor bundled, and no such file or folder; give {KINDS}"
        )
    return path


def _identity(path: Path) -> str:
    # The bundled documents declare their split, and no two are alike: nothing of theirs has changed.
    return fingerprint(path, b"" if path == BUNDLED_TEXT else f"{_NORMALISED}\n".encode())


def _survey(path: Path, data: DataConfig) -> str:
    """Read what the runs will read, and say it in one line: a broken line is found at enqueue."""
    account = Account(corpus_files(path))
    for _ in read_documents(path, data.document_characters, data.documents, data.text_column, account):
        pass
    if not account.documents:
        raise ConfigError(f"{path}: an empty corpus, no document in it has any text; give {KINDS}")
    files, used = account.files, f"{account.documents:,} documents, {account.characters:,} characters"
    parts = [f"{used} from {_listed([file.name for file in files.read])}"]
    if account.pieces:
        told = "it is" if len(files.read) == 1 else f"{_listed(list(account.pieces))}, each"
        parts.append(f"{told} one text cut into several, {sum(account.pieces.values()):,} in all")
    if files.by_name:
        drawn = f", {' and '.join(files.drawn)} drawn from training" if files.drawn else ""
        parts.append(f"split by the files' names{drawn}")
    if files.skipped:
        parts.append(f"left alone: {_listed([f'{name} ({why})' for name, why in files.skipped])}")
    if account.without_text:
        parts.append(f"skipped: {account.without_text:,} without text")
    if account.further:
        more = f"{account.further:,}{' or more' if account.further % 100_000 == 0 else ''} documents"
        parts.append(f"left out: {more} past data.documents = {data.documents:,}")
    if account.cut_characters:
        limit = f"data.document_characters = {data.document_characters:,}"
        parts.append(f"left out: {account.cut_characters:,} characters past {limit} a document")
    if account.further or account.cut_characters:
        parts.append("--set raises a limit")
    return f"text: {'; '.join(parts)}"


def _listed(names: list[str]) -> str:
    first = ", ".join(names[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3:,} more"
