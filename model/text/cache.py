"""Arrays on the disk: written beside and renamed, hashed, memory-mapped and verified when read.

Writes only inside the cache folder that it is given. Plain .npy files and JSON: nothing runs on load.
What is kept in it: model/text/tokens.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.config import canonical_json

Arrays = dict[str, np.ndarray]


NOT_NOW = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class CacheDamaged(Exception):
    """A cache entry is not what was written; it is rebuilt."""

    cause = "infrastructure"
    remedy = "they are prepared anew at the next attempt"


class CacheUnwritable(OSError):
    """The cache's disk is full, or read-only; later it may not be."""


class Entry(NamedTuple):
    """What a run reads: verified when it was opened, and once more with `require_unchanged`."""

    arrays: Arrays
    """Read-only, memory-mapped."""
    facts: dict[str, Any]
    hashes: dict[str, str]
    """Array → SHA-256 of its file."""

    def require_unchanged(self) -> None:
        """Hash what is mapped, which another file of that name would not be.

        Raises:
            CacheDamaged: a file was written to since it was opened.
        """
        for name, array in self.arrays.items():
            if hashlib.sha256(array.base).hexdigest() != self.hashes[name]:  # type: ignore[arg-type]
                raise CacheDamaged(f"the prepared {name} tokens were changed while the run read them")


def load(folder: Path) -> Entry | None:
    """An entry's arrays and facts, None when there is none.

    Raises:
        CacheDamaged: a file is missing, cut short or changed.
    """
    if not folder.exists():
        return None
    try:
        sealed = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        meta = sealed["content"]
        if _seal(meta) != sealed["sha256"]:
            raise CacheDamaged(f"{folder / 'meta.json'}: changed since it was written")
        arrays: Arrays = {}
        for name, expected in meta["arrays"].items():
            file = folder / f"{name}.npy"
            if _sha256(file) != expected:
                raise CacheDamaged(f"{file}: changed since it was written")
            arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
        return Entry(arrays, meta["facts"], meta["arrays"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise CacheDamaged(f"{folder}: {error}") from error


def damage_of(folder: Path) -> str | None:
    """What is wrong with an entry, for people; None if nothing is."""
    try:
        load(folder)
    except CacheDamaged as error:
        return str(error)
    return None


def store(folder: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write an entry beside its place and rename it there; another process's equal entry may stay.

    An entry that is in the way and damaged is moved aside first. Readers that have it open keep their files.

    Raises:
        CacheUnwritable: there is no room, or the folder cannot be written.
    """
    try:
        _write(folder, arrays, facts)
    except OSError as error:
        if error.errno not in NOT_NOW:
            raise
        raise CacheUnwritable(error.errno, error.strerror, str(folder.parent)) from error


def _write(folder: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:12]}-", dir=folder.parent))
    try:
        fresh = beside / "new"
        fresh.mkdir()
        hashes = {}
        for name, array in arrays.items():
            file = fresh / f"{name}.npy"
            with file.open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
            hashes[name] = _sha256(file)
        meta = {"arrays": hashes, "facts": dict(facts)}
        sealed = {"content": meta, "sha256": _seal(meta)}
        (fresh / "meta.json").write_text(json.dumps(sealed, indent=1, sort_keys=True), encoding="utf-8")
        _publish(fresh, folder, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _publish(fresh: Path, folder: Path, beside: Path) -> None:
    """Rename `fresh` to `folder`. Onto a full folder that fails: a sound entry is never half replaced."""
    failure = None
    for turn in range(8):
        try:
            os.rename(fresh, folder)
            return
        except OSError as error:
            failure = error
            try:
                if load(folder) is not None:
                    return
            except CacheDamaged:
                # Another process may have moved it first; then the next rename finds the place free.
                with contextlib.suppress(OSError):
                    os.rename(folder, beside / f"damaged-{turn}")
    raise OSError(f"{folder}: cannot be put in place; check the folder's permissions") from failure


def _seal(meta: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON, so that a changed count is found as well as a changed array."""
    return hashlib.sha256(canonical_json(meta).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
