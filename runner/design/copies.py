"""The files of a program of the user's own: how they become a module, and the copy of them that a night runs.

A module is what its file says now. Python itself takes a compiled one for current where the file's time, in
whole seconds, and size agree: an edit within the second would run as before it and be recorded as after it.
The copy lies below the run folder, named by its content, so that an edit reaches no run that is queued.
Which program it is: runner/design/program.py. Who writes the copy: runner/work/source.py.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from model.fields import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
COPIES = "program"
"""Below the run folder: the programs that were queued, each in a folder named by its hash."""
MAX_FILES_BYTES = 20_000_000
"""Of a program and what it imports; more is refused: data belongs into the cache."""
_LOADED: list[str] = []
"""Names in sys.modules of the program that was loaded last, and of its neighbours."""
_ROOTS: set[Path] = set()
"""Folders below which modules are compiled anew."""


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


def imported(path: Path) -> tuple[ModuleType, Path]:
    """The module of a file, by the dotted name that it has below its root, and that root.

    Raises:
        ConfigError: there is no such file, its name is no module's, or it cannot be imported.
    """
    if not path.is_file():
        raise ConfigError(f"program = {str(path)!r}: no such file")
    root = path.parent
    while (root / "__init__.py").exists():
        root = root.parent
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"program = {str(path)!r}: name the file with letters, digits and '_'")
    if path.is_relative_to(PROJECT / "model"):
        return importlib.import_module(name), root
    for other in _LOADED:
        sys.modules.pop(other, None)  # of another program, or of this one before an edit
    _compile_anew(root)
    spec = importlib.util.spec_from_file_location(name, path, loader=_AsWritten(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module, before = importlib.util.module_from_spec(spec), {*sys.modules}
    sys.modules[name] = module
    if str(root) not in sys.path:  # it may import a neighbour later, too
        sys.path.insert(0, str(root))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from error
    new = {each: getattr(sys.modules[each], "__file__", None) for each in {*sys.modules} - before}
    _LOADED[:] = [each for each, file in new.items() if file and _is_below(Path(file).parent, root)]
    return module, root


class _AsWritten(SourceFileLoader):
    """Compiles what the file says, and keeps nothing beside it."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _compile_anew(root: Path) -> None:
    """Load the modules below this folder as they are written, those too that are imported later."""
    if root in _ROOTS:
        return
    if not _ROOTS:
        sys.path_hooks.insert(0, _finder)
    _ROOTS.add(root)
    sys.path_importer_cache.clear()


def _finder(folder: str) -> FileFinder:
    """What finds modules in a folder of a program."""
    if not any(_is_below(Path(folder), root) for root in _ROOTS):
        raise ImportError("not of a program", path=folder)
    return FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES), (_AsWritten, SOURCE_SUFFIXES))


def _is_below(folder: Path, root: Path) -> bool:
    """Whether modules in there are a program's own; those of an environment below its root are not."""
    return folder.is_relative_to(root) and all(map(str.isidentifier, folder.relative_to(root).parts))
