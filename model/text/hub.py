"""SmolLM's corpus and tokenizers from the Hugging Face hub, stored so that later runs need no network.

The only module that uses the network. Writes below the cache folder, beside and renamed: half a download
never becomes an entry. Imports the hub's packages only when they are needed. Who asks: model/text/corpus.py.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from model.text.tokenizer import TOKENIZER_FILES, tokenizer_fingerprint

SMOLLM_CORPUS, SMOLLM_PART = "HuggingFaceTB/smollm-corpus", "cosmopedia-v2"
SMOLLM_TOKENIZER = "HuggingFaceTB/SmolLM-135M"
ANSWER_SECONDS = 10.0
ATTEMPTS = 5
_TRANSIENT = {408, 429, 500, 502, 503, 504}

T = TypeVar("T")


class HubFailed(ConnectionError):
    """The hub did not give what was asked for; one line says why. Later it may."""


def corpus_revision(attempts: int = ATTEMPTS) -> str:
    """The commit of SmolLM's corpus that the hub gives now.

    Raises:
        HubFailed: no answer, `attempts` times if it may pass, at once if the name cannot be resolved.
    """
    from huggingface_hub import HfApi

    def ask() -> str:
        sha = HfApi().dataset_info(SMOLLM_CORPUS, timeout=ANSWER_SECONDS).sha
        if not sha:
            raise HubFailed(f"{SMOLLM_CORPUS}: the hub names no revision")
        return sha

    return patiently(lambda: _within(ANSWER_SECONDS, ask), attempts)


def cached_corpus(cache_dir: Path, documents: int) -> str | None:
    """The revision of the stored text of that many documents, the newest if there are several."""
    files = [p for p in _corpus_folder(cache_dir).glob(f"*-{documents}.jsonl.gz") if _is_whole(p, documents)]
    if not files:
        return None
    return max(files, key=_newest).name.split("-")[0]


def corpus_file(cache_dir: Path, revision: str, documents: int) -> Path:
    """The stored text of a revision's first documents, fetched if it is not there or damaged.

    Raises:
        HubFailed: it had to be fetched and the hub did not give it.
    """
    file = _corpus_folder(cache_dir) / f"{revision}-{documents}.jsonl.gz"
    if not _is_whole(file, documents):
        corpus_revision()  # streaming without a network would retry for half a minute in silence
        patiently(lambda: store_documents(_stream(revision), documents, file))
    return file


def store_documents(rows: Iterable[Mapping[str, Any]], documents: int, file: Path) -> None:
    """Write the first rows' texts as JSON lines, beside and renamed once all are there.

    Raises:
        HubFailed: the rows end too early.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=file.parent) as beside:
        fresh, count = Path(beside) / file.name, 0
        with fresh.open("wb") as raw:
            # No file name and no time in the header: the same text is the same bytes.
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as lines:
                for row in islice(rows, documents):
                    lines.write(json.dumps({"text": row["text"]}, ensure_ascii=False).encode() + b"\n")
                    count += 1
            raw.flush()
            os.fsync(raw.fileno())
        if count < documents:
            raise HubFailed(f"{SMOLLM_CORPUS}: the text ended after {count} of {documents} documents")
        os.replace(fresh, file)


def tokenizer_revision(cache_dir: Path, hub_id: str) -> str:
    """The commit of a stored tokenizer, or of the one that the hub gives now, which is stored.

    Raises:
        HubFailed: it is not stored and the hub did not give it.
    """
    stored = [p for p in _tokenizers(cache_dir).glob(f"{_flat(hub_id)}@*") if _is_sound(p)]
    folder = max(stored, key=_newest, default=None) or _fetch_tokenizer(cache_dir, hub_id, None)
    return folder.name.rsplit("@", 1)[1]


def tokenizer_folder(cache_dir: Path, hub_id: str, revision: str) -> Path:
    """The stored files of a tokenizer's revision, fetched if they are not there or changed.

    Raises:
        HubFailed: they had to be fetched and the hub did not give them.
    """
    folder = _tokenizers(cache_dir) / f"{_flat(hub_id)}@{revision}"
    return folder if _is_sound(folder) else _fetch_tokenizer(cache_dir, hub_id, revision)


def patiently(
    action: Callable[[], T], attempts: int = ATTEMPTS, wait: Callable[[float], None] = time.sleep
) -> T:
    """Do it, again after 1, 2, 4 … seconds where the failure may pass: 429, 5xx, a timeout.

    Raises:
        HubFailed: the last failure, or the first that will not pass.
    """
    for attempt in range(attempts):
        try:
            return action()
        except HubFailed:
            raise
        except Exception as error:  # the hub's packages raise theirs, httpx's, fsspec's and the system's
            if attempt + 1 == attempts or not _may_pass(error):
                raise HubFailed(_in_one_line(error)) from error
        wait(2.0**attempt)
    raise ValueError(f"attempts = {attempts}: at least one is needed")


def _stream(revision: str) -> Iterable[Mapping[str, Any]]:
    from datasets import load_dataset

    stream: Iterable[Mapping[str, Any]] = load_dataset(
        SMOLLM_CORPUS, SMOLLM_PART, split="train", streaming=True, revision=revision
    )
    return stream


def _fetch_tokenizer(cache_dir: Path, hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    def download() -> Path:
        patterns = list(TOKENIZER_FILES)
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=patterns, etag_timeout=ANSWER_SECONDS)
        )

    snapshot = patiently(download)  # a folder of the hub's own cache, named after the commit
    if not any((snapshot / name).is_file() for name in TOKENIZER_FILES if name != "config.json"):
        raise HubFailed(f"{hub_id}: no tokenizer in that repository")
    folder = _tokenizers(cache_dir) / f"{_flat(hub_id)}@{revision or snapshot.name}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent, ignore_cleanup_errors=True) as beside:
        fresh = Path(beside) / "new"
        fresh.mkdir()
        for name in TOKENIZER_FILES:
            if (snapshot / name).is_file():
                shutil.copyfile(snapshot / name, fresh / name)
        (fresh / "fingerprint").write_text(tokenizer_fingerprint(fresh), encoding="utf-8")
        if folder.exists() and not _is_sound(folder):
            os.rename(folder, Path(beside) / "damaged")
        try:
            os.rename(fresh, folder)
        except OSError:  # another process was first
            if not _is_sound(folder):
                raise
    return folder


def _is_sound(folder: Path) -> bool:
    """Whether a stored tokenizer is what was stored: a changed merge would change tokens in silence."""
    try:
        return (folder / "fingerprint").read_text(encoding="utf-8") == tokenizer_fingerprint(folder)
    except (OSError, ValueError):  # ConfigError is a ValueError
        return False


def _is_whole(file: Path, documents: int) -> bool:
    """Whether every document is there; gzip's checksum finds what was changed."""
    try:
        with gzip.open(file, "rb") as lines:
            return sum(1 for _ in lines) == documents
    except (OSError, EOFError, zlib.error):
        return False


def _corpus_folder(cache_dir: Path) -> Path:
    return Path(cache_dir) / "smollm"


def _tokenizers(cache_dir: Path) -> Path:
    return Path(cache_dir) / "tokenizers"


def _newest(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name


def _flat(hub_id: str) -> str:
    return hub_id.replace("/", "--")


def _within(seconds: float, action: Callable[[], T]) -> T:
    """Do it on a daemon thread and give up after `seconds`: a silent name server has no timeout."""
    done: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            done.append(action())
        except BaseException as error:  # passed on to the caller's thread
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"the hub did not answer within {seconds:.0f} s")
    return done[0]


def _may_pass(error: BaseException) -> bool:
    """Whether the failure, or what caused it, is a 429, a 5xx or a timeout. A name not known is not."""
    while True:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in _TRANSIENT or isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            return True
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause


def _in_one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the hub did not give it ({lines[0][:160]})"
