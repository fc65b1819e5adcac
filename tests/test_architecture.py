"""The house's rules that a reader relies on: who may import whom, what may stand in a file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runner.work import source
from tests.conftest import PROJECT

FOLDERS = ("model", "runner", "reports")
FILES = sorted(path for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py"))
SOURCES = [*(path for path in FILES if path.name != "__init__.py"), PROJECT / "cli.py"]


def imports(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reaches(path: Path, *packages: str) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in packages}


WINGS = {
    "model": (
        *("fields", "parts", "config", "randomness", "processor", "events"),
        *("engines", "text", "network", "training", "program"),
    ),
    "runner": ("queue", "design", "work", "view", "page", "care"),
    "reports": ("reading", "statistics", "tables", "sections", "figures", "output"),
}
"""A wing imports only what stands left of it in its row: no circle, no arrow the wrong way."""
ACROSS = {
    "runner": {"model.fields", "model.config", "model.events", "model.processor"},
    "reports": {"runner.queue"},
    "model": set(),
}
"""What a folder may take from another."""
TORCH = ("torch", "transformers", "datasets")
MOST_FILES = 16


def wing(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_imports_go_one_way() -> None:
    wrong = []
    for path in SOURCES[:-1]:
        folder, own = path.relative_to(PROJECT).with_suffix("").parts[:2]
        row = WINGS[folder]
        allowed = {f"{folder}.{name}" for name in row[: row.index(own) + 1]} | ACROSS[folder]
        found = {wing(name) for name in reaches(path, *WINGS) if "." in name}
        wrong += [f"{path.relative_to(PROJECT)} imports {name}" for name in sorted(found - allowed)]
    assert not wrong


def test_copy_of_the_source_has_all_that_the_trainer_imports() -> None:
    for name in source.FILES:
        for module in reaches(PROJECT / name, "runner"):
            path = f"{module.replace('.', '/')}.py"
            assert path in source.FILES or not (PROJECT / path).exists(), (name, module)


def test_without_torch() -> None:
    """The queue, the command line and the report start without paying for it."""
    free = [PROJECT / "cli.py", *(PROJECT / "model").glob("*.py")]
    trainers = {PROJECT / name for name in source.FILES}
    free += [path for path in FILES if "model" not in path.parts and path not in trainers]
    assert not [path for path in free if reaches(path, *TORCH)]


def test_wings_are_small_and_say_what_they_are() -> None:
    for folder in [PROJECT / name for name in WINGS] + sorted({path.parent for path in FILES}):
        depth = len(folder.relative_to(PROJECT).parts)
        if depth > 2:
            continue
        assert len(list(folder.glob("*.py"))) <= MOST_FILES + 1, folder
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring, folder
        assert depth == 1 or "Door: " in docstring, folder


def test_only_jobs_moves_a_job() -> None:
    """`jobs.status` is written by runner/queue/jobs.py; importing.py makes rows that were done elsewhere."""
    writers = {
        path.name
        for path in SOURCES
        if re.search(r"(update|insert)\(jobs\)|jobs\.(insert|update)\(", path.read_text())
    }
    assert writers == {"jobs.py", "importing.py"}


@pytest.mark.parametrize("command", ["--help", "status --help", "enqueue --help"])
def test_commands_do_not_pay_for_torch(command: str) -> None:
    code = (
        f"import sys; sys.argv = ['cli.py', *{command.split()!r}]\n"
        "try:\n    import cli; cli.main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'pandas', 'alembic'} & set(sys.modules)"
    )
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_module_says_what_it_is() -> None:
    for path in SOURCES:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, path
        assert docstring.endswith((".", ":")) or "\n" in docstring, path


def test_no_pickle_anywhere() -> None:
    for path in SOURCES:
        assert not reaches(path, "pickle", "dill", "joblib", "cloudpickle"), path
        assert "allow_pickle=True" not in path.read_text()
        assert not re.search(r"torch\.(load|save)\(", path.read_text()), path
