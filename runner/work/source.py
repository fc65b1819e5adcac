"""The source that a night runs: read once when `work` starts, kept below the run folder, run from there.

An edit, a commit or another branch in the project's folder reaches no trainer of a worker that is at work.
The copy is named by its content, `source/<SHA-256>/`, so that workers of the same code share one, and it is
compared with what was read before each job. What is recorded with an attempt: docs/schema.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from runner.design.copies import COPIES, digest_of
from runner.work.provenance import PROJECT, code

FOLDER = "source"
TREE = "model"
"""Copied whole, with the bundled corpus and its tokenizers: 3 MB."""
FILES = (
    "runner/__init__.py",
    *(f"runner/design/{name}.py" for name in ("__init__", "program", "copies", "checking")),
    *(f"runner/work/{name}.py" for name in ("__init__", "trainer", "run", "attempt_log", "output", "causes")),
    *("runner/queue/__init__.py", "runner/queue/series.py"),
)
"""Copied besides: what the trainer process imports of runner/."""
COMPILED = "__pycache__"
"""An empty file of this name in each folder of a copy: no compiled module, which nobody compares, is kept."""
TRIES = 5


@dataclass(frozen=True)
class Source:
    """What the trainers of a worker run, and the commit that it was taken from."""

    files: Mapping[str, bytes]
    """Path below the project → content."""
    git_commit: str | None
    """None without git."""
    git_dirty: bool | None
    """Whether a tracked file of the project differed from the commit; None without git."""

    @cached_property
    def sha256(self) -> str:
        """Of every path and content."""
        return digest_of(self.files)

    def provenance(self) -> dict[str, Any]:
        """As it is recorded with an attempt."""
        return {"source_sha256": self.sha256, "git_commit": self.git_commit, "git_dirty": self.git_dirty}

    def keep(self, runs: Path) -> Path:
        """The folder of a copy that is whole at this moment; it is made or mended first if it is not.

        Raises:
            OSError: it cannot be written.
        """
        folder = self.folder(runs)
        try:
            if not folder.exists():
                self._make(folder)
            _mend(folder, self.files)
            with contextlib.suppress(OSError):  # on a read-only disk it is good as it is
                os.utime(folder)  # `clean` removes what was not used for long
        except OSError as error:
            if error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(folder)) from error  # a full disk names no file
        return folder

    def folder(self, runs: Path) -> Path:
        """Where `keep` puts it."""
        return runs / FOLDER / self.sha256

    def _make(self, folder: Path) -> None:
        beside = _beside(folder)
        try:
            _mend(beside, self.files)
            beside.rename(folder)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            if not folder.is_dir():  # else another worker was quicker
                raise


def keep_program(files: Mapping[str, bytes], runs: Path) -> None:
    """Copy a program below the run folder, named by its hash, or mend the copy; nothing for no files.

    Raises:
        OSError: it cannot be written.
    """
    if files:
        folder = runs / COPIES / digest_of(files)
        folder.mkdir(parents=True, exist_ok=True)
        _mend(folder, files)


def take(project: Path = PROJECT) -> Source:
    """Read the source and its commit, again until two readings agree: a checkout may be under way.

    Raises:
        OSError: a file cannot be read.
    """
    found = _look(project)
    for _ in range(TRIES):
        before, found = found, _look(project)
        if found == before:
            break
    return found


def copies(runs: Path) -> list[Path]:
    """The copies below a run folder; what a killed worker left half made begins with a dot."""
    return sorted((runs / FOLDER).glob("[!.]*"))


def is_whole(copy: Path) -> bool:
    """Whether a copy's content is what its name says."""
    return digest_of(_without_blocks(_read(copy))) == copy.name


def _look(project: Path) -> Source:
    wanted = [path for path in (project / TREE).rglob("*") if path.is_file() and _is_source(path, project)]
    files = {str(path.relative_to(project)): path.read_bytes() for path in sorted(wanted)}
    files |= {name: (project / name).read_bytes() for name in FILES}
    return Source(files, **code(project))


def _is_source(path: Path, project: Path) -> bool:
    """Neither compiled nor an editor's own file."""
    parts = path.relative_to(project).parts
    return COMPILED not in parts and not path.name.startswith((".", "#")) and not path.name.endswith("~")


def _blocks(names: Iterable[str]) -> dict[str, bytes]:
    return {str(folder / COMPILED): b"" for name in names for folder in PurePath(name).parents}


def _without_blocks(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if PurePath(name).name != COMPILED}


def _read(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; one that cannot be read is as one that is not there."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if not path.is_dir():
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def _mend(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder hold these files and no other.

    File by file, each beside and renamed: a trainer of another worker may be reading the good ones.
    """
    whole = {**files, **_blocks(files)}
    found = _read(folder)
    if found == whole:
        return
    for name in found.keys() - whole.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in whole.items():
        if found.get(name) != content:
            path, beside = folder / name, _beside(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.rmtree(path)
            beside.write_bytes(content)
            beside.replace(path)
    if _read(folder) != whole:
        raise OSError(errno.EIO, "a copy of the source does not stay as it was written", str(folder))


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{uuid.uuid4()}.part")
