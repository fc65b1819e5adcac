"""What ran this: code, packages, machine. Recorded with each attempt, so that a report can say what differs.

Imports no torch; device and numeric environment come from the trainer process (runner/work/trainer.py).
Nothing secret goes in: no environment variables, no git remote, no path of the user's.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from model.processor import processor

PROJECT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "numpy", "transformers", "datasets", "tokenizers", "sqlalchemy", "pandas", "pysqlite3")


def of_this_machine() -> dict[str, Any]:
    """Code version, package versions, host and processor."""
    return {
        **code(PROJECT),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "processor": processor(),
    }


def code(project: Path) -> dict[str, Any]:
    """The commit of a project's folder, and whether tracked files differ from it; None without git."""
    commit = _git(project, "rev-parse", "HEAD")
    changes = None if commit is None else _git(project, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def _git(project: Path, *arguments: str) -> str | None:
    # GIT_DIR and its like would answer for another repository, and a folder above may be one.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own = {"GIT_CEILING_DIRECTORIES": str(project.parent), "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=project,
            env=outside | own,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # a downloaded archive, or no git: unknown, and the report says so
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
