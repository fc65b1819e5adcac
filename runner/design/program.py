"""A training program: a Python file with Config, METRICS and train, loaded by its path; docs/programs.md.

Nothing here knows which program it is. What `studies.program` holds is `record`: whoever reads a study reads
that row, and never this file. What runs it: runner/work/trainer.py.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field

from model.config import ConfigError
from model.fields import kinds
from runner.design.checking import CLOSED, checked, told

PROJECT = Path(__file__).resolve().parents[2]
DEFAULT = PROJECT / "model" / "program.py"
"""The program of a grid that names none."""
Better = Literal["lower", "higher", "none"]


@dataclass(frozen=True)
class Measure:
    """One number that a finished run comes to."""

    __pydantic_config__ = CLOSED
    name: str
    better: Annotated[Better, told("choose lower, higher or none")] = "none"
    unit: str = ""
    decimals: Annotated[
        int, Field(strict=True, ge=0, le=12), told("must be a whole number between 0 and 12")
    ] = 4
    exponential: Annotated[bool, Field(strict=True), told("must be True or False")] = False
    """Its exponential means something, as that of a cross-entropy in nats does: a perplexity."""


@dataclass(frozen=True)
class Program:
    """A program that was loaded and holds to the contract."""

    path: Path
    module: ModuleType
    measures: tuple[Measure, ...]
    """In the program's order; the first is primary."""

    def record(self) -> dict[str, Any]:
        """What `studies.program` keeps of it."""
        path = self.path.relative_to(PROJECT) if self.path.is_relative_to(PROJECT) else self.path
        measures = [asdict(measure) for measure in self.measures]
        return {"path": str(path), "hash": "", "measures": measures, "keys": kinds(self.module.Config)}


def load(path: Path = DEFAULT) -> Program:
    """Import a program and hold it to the contract.

    Raises:
        ConfigError: there is no such file, it cannot be imported, or something in it is missing or wrong.
    """
    path = path.resolve()
    module = _imported(path)
    try:
        return Program(path, module, read_measures(getattr(module, "METRICS", None)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_measures(metrics: Any) -> tuple[Measure, ...]:
    """METRICS: name → which way is better, or a table of that, unit, decimals and exponential.

    Raises:
        ConfigError: names the measure, the key and the remedy.
    """
    if not isinstance(metrics, dict) or not metrics:
        raise ConfigError("METRICS: missing or empty; name what a run comes to, as in {'test_loss': 'lower'}")
    found = []
    for name, content in metrics.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,59}", name):
            raise ConfigError(f"METRICS: {name!r}: name a measure in up to 60 letters, digits and '_'")
        values = content if isinstance(content, dict) else {"better": content}
        try:
            found.append(checked(Measure, {**values, "name": name}, {}))
        except ConfigError as error:
            raise ConfigError(f"METRICS[{name!r}]: {error}") from None
    return tuple(found)


def _imported(path: Path) -> ModuleType:
    """The module of a file, under the dotted name that it has below the first folder that is no package.

    Raises:
        ConfigError: there is none, or it cannot be imported.
    """
    if not path.is_file():
        raise ConfigError(f"program = {str(path)!r}: no such file")
    root = path.parent
    while (root / "__init__.py").exists():
        root = root.parent
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    known = sys.modules.get(name)
    if known is not None and Path(known.__file__ or "").resolve() == path:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(root))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(str(root))
    return module
