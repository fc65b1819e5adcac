"""Which files make a corpus, which are left alone and why, and the split that their names tell.

Looks at names and hashes contents; what is in a file: model/text/rows.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.config import ConfigError
from model.text.rows import DATASET, SUFFIXES, complaints

KINDS = (
    "a .jsonl (also .gz, .xz, .zst), .json (also .gz), .csv, .txt or .parquet file, a folder of them, or a "
    "dataset saved by Hugging Face's save_to_disk"
)
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    "test": "test",
}
_MOST_FILES = 10_000
_NOT_TEXT = {
    "a licence": r"(licen[cs]e|copying|notice)\b.*",
    "about the text, not the text": r"(readme|changelog|changes|authors|citation|contributing)\b.*",
    "a list of packages": r"requirements.*\.txt",
    "a dataset's description": r"(dataset_infos?|dataset_dict|state|package|config|.*_config)\.json",
}
"""Why a file in a folder is no document, whatever its ending."""


@dataclass(frozen=True)
class File:
    """One source of documents."""

    path: Path
    name: str
    """Below the corpus folder, for people."""
    kind: str
    """The supported ending of its name, or DATASET for a folder that save_to_disk made."""
    split: str | None = None
    """train, val or test, as its name tells; None where names tell nothing."""


@dataclass(frozen=True)
class Files:
    """The files of a corpus, in the order in which they are read."""

    read: tuple[File, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    """(name, why) of each file that is left alone."""

    @property
    def by_name(self) -> bool:
        """Whether the names tell the split."""
        return self.read[0].split is not None

    @property
    def drawn(self) -> tuple[str, ...]:
        """Held-out splits that no file is of, so that they are drawn from the training files."""
        if not self.by_name:
            return ()
        return tuple(split for split in SPLITS if split not in {file.split for file in self.read})


def corpus_files(path: Path) -> Files:
    """The files of a corpus: the path itself, or a folder's, by name; held-out ones first where names tell.

    Raises:
        ConfigError: there is nothing readable at the path.
    """
    try:
        if path.is_dir():
            return _of_folder(path)
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder; give {KINDS}")
        if not path.is_file() or not _suffix(path):
            raise ConfigError(f"{path}: not a corpus; give {KINDS}")
    except ConfigError:  # a ValueError too, and already worded
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r}: cannot be read ({error}); give {KINDS}") from error
    return Files((File(path, path.name, _suffix(path) or ""),))


def fingerprint(path: Path, seed: bytes = b"") -> str:
    """SHA-256 over `seed` and the kinds, splits and contents of a corpus's files, in order.

    Raises:
        ConfigError: a file cannot be read.
    """
    whole = hashlib.sha256(seed)
    for file in corpus_files(path).read:
        parts = sorted(file.path.glob("*.arrow")) if file.kind == DATASET else [file.path]
        for part in parts:
            with complaints(part), part.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            whole.update(f"{f'{file.split} ' if file.split else ''}{file.kind} {content}\n".encode())
    return whole.hexdigest()


def _of_folder(folder: Path) -> Files:
    if _is_dataset(folder):
        return Files((File(folder, folder.name, DATASET),))
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        found = [(folder / name, str(name), DATASET) for name in names if _is_dataset(folder / str(name))]
        return _split_by_name(folder, found, [])
    found, skipped = [], []
    for path in _below(folder):
        name = path.relative_to(folder).as_posix()
        why = next((why for why, rule in _NOT_TEXT.items() if re.fullmatch(rule, path.name.lower())), None)
        suffix = _suffix(path)
        if any(part.startswith(".") for part in Path(name).parts):
            skipped.append((name, "hidden"))
        elif why or not suffix:
            skipped.append((name, why or "not a kind that is read"))
        else:
            found.append((path, name, suffix))
    return _split_by_name(folder, found, skipped)


def _split_by_name(folder: Path, found: list[tuple[Path, str, str]], skipped: list[tuple[str, str]]) -> Files:
    """Names count where they tell training from held-out text: then a file of no split is left alone."""
    if not found:
        why = f"; left alone: {_some(skipped)}" if skipped else ""
        raise ConfigError(f"{folder}: an empty corpus, no file in it is {KINDS}{why}")
    told = {name: _split_of_name(name) for _, name, _ in found}
    if not ("train" in told.values() and {"val", "test"} & set(told.values())):
        return Files(tuple(File(*each) for each in found), tuple(skipped))
    # Held-out files first: a text that is in both is then dropped from training, not from what is scored.
    files = [File(*each, told[each[1]]) for each in found if told[each[1]]]
    files.sort(key=lambda file: -SPLITS.index(str(file.split)))
    skipped += [(name, "no split in its name") for name, split in told.items() if split is None]
    return Files(tuple(files), tuple(skipped))


def _split_of_name(name: str) -> str | None:
    """`train`, `validation-00000-of-00001.parquet`, `dev/a.txt`: the file's own name goes first."""
    for part in reversed(Path(name).parts):
        found = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLIT_NAMES}
        if len(found) == 1:
            return found.pop()
    return None


def _below(folder: Path) -> Iterator[Path]:
    files = []
    for path in folder.rglob("*"):
        if path.is_file():
            files.append(path)
        if len(files) > _MOST_FILES:
            raise ConfigError(f"{folder}: more than {_MOST_FILES:,} files; give a folder of text alone")
    yield from sorted(files)


def _is_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _suffix(path: Path) -> str | None:
    """The supported ending of a file's name, None when there is none; the longest wins."""
    return max((s for s in SUFFIXES if path.name.lower().endswith(s)), key=len, default=None)


def _some(skipped: list[tuple[str, str]]) -> str:
    return "; ".join(f"{name} ({why})" for name, why in skipped[:5])
