"""The house's rules that a reader relies on: who may import whom, what may stand in a file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_imports_go_one_way(path: Path) -> None:
    folder, name = path.relative_to(PROJECT).parent.name, path.name
    if folder == "model":
        assert not reaches(path, "runner", "reports")
    if folder == "runner":
        assert not reaches(path, "reports")
        allowed = {"model.config", "model.events"} | (
            {"model.training", "model.memory"} if name == "trainer.py" else set()
        )
        found = {".".join(found.split(".")[:2]) for found in reaches(path, "model")}
        assert found <= allowed | {"model"}, found
    if folder == "reports":
        assert not reaches(path, "model")
        runner = {".".join(found.split(".")[:2]) for found in reaches(path, "runner")}
        assert runner <= {"runner", "runner.store", "runner.schema"}
    if (folder in ("runner", "reports") and name != "trainer.py") or name in (
        "config.py",
        "events.py",
        "cli.py",
    ):
        assert not reaches(path, "torch", "transformers", "datasets")


def test_only_jobs_moves_a_job() -> None:
    """`jobs.status` is written by runner/jobs.py; importing.py makes rows that were done elsewhere."""
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    if "versions" in path.parts:
        return
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring.endswith((".", ":")) or "\n" in docstring


def test_no_pickle_anywhere() -> None:
    for path in SOURCES:
        assert not reaches(path, "pickle", "dill", "joblib", "cloudpickle"), path
        assert "allow_pickle=True" not in path.read_text()
        assert not re.search(r"torch\.(load|save)\(", path.read_text()), path
