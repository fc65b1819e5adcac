"""The files that a program of the user's own is made of, and the copy of them that a night runs.

The copy lies below the run folder, named by its content, so that an edit reaches no run that is queued.
Which program it is: runner/design/program.py. Who writes the copy: runner/work/source.py.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from model.fields import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
COPIES = "program"
"""Below the run folder: the programs that were queued, each in a folder named by its hash."""
MAX_FILES_BYTES = 20_000_000
"""Of a program and what it imports; more is refused: data belongs into the cache."""


def files_of(program: Path, root: Path, further: Iterable[str]) -> dict[str, bytes]:
    """Path below `root` → content of the program, of the `further` files beside it, and of what they import.

    Raises:
        ConfigError: a file cannot be read, or it is too much to be copied.
    """
    found: dict[str, bytes] = {}
    wanted = [program, *(program.with_name(name) for name in further)]
    while wanted:
        path = wanted.pop()
        name = str(path.relative_to(root))
        if name not in found:
            try:
                found[name] = path.read_bytes()
            except OSError as error:
                raise ConfigError(f"FILES: {path}: cannot be read ({error.strerror})") from error
            if path.suffix == ".py":
                wanted += _beside(root, ast.parse(found[name]))
    if sum(map(len, found.values())) > MAX_FILES_BYTES:
        raise ConfigError(f"{program}: it and its modules hold more than {MAX_FILES_BYTES:,} bytes")
    return dict(sorted(found.items()))


def _beside(root: Path, tree: ast.AST) -> Iterable[Path]:
    """The files below a root that a module imports, anywhere in it: modules, and packages whole."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
        for name in names:
            first = name.partition(".")[0]
            if (module := root / f"{first}.py").is_file():
                yield module
            elif (root / first / "__init__.py").is_file():
                inner = (path for path in (root / first).rglob("*") if path.is_file())
                yield from (path for path in inner if "__pycache__" not in path.parts)


def digest_of(files: Mapping[str, bytes]) -> str:
    """SHA-256 of paths and contents."""
    each = [[name, hashlib.sha256(content).hexdigest()] for name, content in sorted(files.items())]
    return hashlib.sha256(json.dumps(each).encode()).hexdigest()


class CopyDamaged(Exception):
    """The copy of a program is not what was queued."""

    cause = "infrastructure"
    exit_code = 65


def require_copy(path: Path, sha256: str) -> None:
    """Hold that the folder of this hash, which holds a program, is what its name says.

    Raises:
        CopyDamaged: it is not, or not there.
    """
    folder = next((each for each in path.parents if each.name == sha256), path.parent)
    files = {
        str(each.relative_to(folder)): each.read_bytes()
        for each in folder.rglob("*")
        if each.is_file() and "__pycache__" not in each.relative_to(folder).parts
    }
    if digest_of(files) != sha256:
        raise CopyDamaged(f"{folder}: not the program that was queued; enqueue its grid again to mend it")


def place(known: Mapping[str, Any], runs: Path, code: Path = PROJECT) -> Path:
    """The file of the program of a study's row.

    Args:
        runs: the database's run folder, which holds the copy of a program that is a user's own.
        code: where the program is that is part of this project: there, or in a copy of its source.
    """
    folder = runs / COPIES / known["hash"] if known.get("hash") else code
    return folder / str(known.get("path", ""))
