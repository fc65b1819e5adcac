"""A training program: a Python file with Config, METRICS and train, loaded by its path; docs/programs.md.

Nothing here knows which program it is. What `studies.program` holds is `record`: whoever reads a study reads
that row, and never this file. Who runs it: runner/work/trainer.py, with what runner/work/run.py hands it.
Its files, how they are loaded and the copy that is queued: runner/design/copies.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field

from model import fields
from model.fields import ConfigError, canonical_json
from runner.design.checking import CLOSED, checked, told
from runner.design.copies import PROJECT, digest_of, files_of, imported, place, require_copy

DEFAULT = PROJECT / "model" / "program.py"
"""The program of a grid that names none."""
RESERVED = {
    *("id", "job_id", "study", "cell", "config", "seed", "repeat", "status", "held", "attempt", "failures"),
    *("priority", "progress_step", "total_steps", "config_hash", "hash", "cause", "created_at"),
    *("finished_at", "result_attempt", "recorded_at", "exact", "wasted"),
}
"""Names of columns that a measure would be taken for."""
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
    ratio: Annotated[bool, Field(strict=True), told("must be True or False")] = False
    """Claims compare its logarithms: it is above 0, and its spread over seeds grows with its size."""
    label: str = ""
    """What tables call it; its name where this is empty."""


@dataclass(frozen=True)
class Program:
    """A program that was loaded and holds to the contract."""

    path: Path
    root: Path
    """The folder that its imports start from: the first one above the file that is no package."""
    module: ModuleType
    measures: tuple[Measure, ...]
    """In the program's order; the first is primary."""
    default: Any
    """Config with every field at its default."""
    keys: Mapping[str, str]
    """Dotted key of Config → int, float, bool or str."""
    scales: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    # --- its configurations -------------------------------------------------------------------------------

    def full_key(self, key: str) -> str:
        """The dotted form of a dotted or short key."""
        return fields.full_key(self.keys, key, getattr(self.module, "CALLED_ELSEWHERE", None))

    def with_values(self, config: Any, values: Mapping[str, Any]) -> Any:
        """A copy with dotted or short keys replaced.

        Raises:
            ConfigError: a key is unknown or ambiguous, or a value is refused.
        """
        return fields.with_values(config, {self.full_key(key): value for key, value in values.items()})

    def from_json(self, text: str) -> Any:
        """The configuration of a job; missing keys take their defaults."""
        return self.with_values(self.default, fields.flatten(json.loads(text)))

    def value(self, config: Any, key: str) -> Any:
        """The value under a dotted or short key."""
        return fields.value_of(config, self.full_key(key))

    def with_seed(self, config: Any, seed: int, repeat: int) -> Any:
        """The configuration of a run."""
        return replace(config, seed=seed, **({"repeat": repeat} if "repeat" in self.keys else {}))

    def identity(self, config: Any) -> dict[str, Any]:
        """All that defines the result: the content of the hash. The program may say; else every field.

        A first repeat is the run itself: its hash is that of a grid without repeats.
        """
        own = getattr(self.module, "identity", None)
        values = dict(own(config)) if own else fields.as_dict(config)
        if values.get("repeat") == 0:
            del values["repeat"]
        return values

    def digest(self, config: Any) -> str:
        """SHA-256 of the canonical JSON of `identity`, in hex."""
        return hashlib.sha256(canonical_json(self.identity(config)).encode()).hexdigest()

    def steps(self, config: Any) -> int:
        """The value of its key `steps`, by which progress is counted; 0 if it has none."""
        named = [key for key in self.keys if key.rsplit(".", 1)[-1] == "steps"]
        return int(fields.value_of(config, named[0])) if len(named) == 1 else 0

    @property
    def options(self) -> Mapping[str, str]:
        """Keys that --set refuses, and what sets them instead."""
        instead = {"seed": "--seeds", "repeat": "the key repeats in the grid file"}
        return {**instead, **getattr(self.module, "OPTIONS", {})}

    def is_shared(self, key: str) -> bool:
        """Whether all runs of a study have the same value of a dotted key, which is no factor then."""
        shared = ("seed", "repeat", *getattr(self.module, "SHARED", ()))
        return key in shared or key.partition(".")[0] in shared

    def facts(self, config: Any) -> dict[str, str]:
        """What a report says of all runs of a study: label → text."""
        own = getattr(self.module, "facts", None)
        return dict(own(config)) if own else {}

    def checked_results(self, results: Any) -> dict[str, float | int | None]:
        """What `train` returned, by measure; what it left out is not there.

        Raises:
            TypeError, ValueError: it is no mapping of numbers, or names what METRICS does not.
        """
        if not isinstance(results, Mapping):
            raise TypeError(f"train returned {type(results).__name__}, not a dict of its results")
        names = [measure.name for measure in self.measures]
        if unknown := sorted(map(str, set(results) - set(names))):
            raise ValueError(f"train returned {', '.join(unknown)}: not in METRICS")
        given = {name: results[name] for name in names if results.get(name) is not None}
        return {name: value if isinstance(value, int) else float(value) for name, value in given.items()}

    # --- its source ---------------------------------------------------------------------------------------

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Path below `root` → content of the file and of the modules beside it that it imports, and they.

        Empty for a program in model/, which every worker copies anyway. Raises what `files_of` does.
        """
        if self.path.is_relative_to(DEFAULT.parent):
            return {}
        return files_of(self.path, self.root, getattr(self.module, "FILES", ()))

    @cached_property
    def hash(self) -> str:
        """Of every path and content; empty for a program in model/."""
        return digest_of(self.files) if self.files else ""

    def record(self) -> dict[str, Any]:
        """What `studies.program` keeps of it."""
        return {
            "path": str(self.path.relative_to(self.root)),
            "hash": self.hash,
            "measures": [asdict(measure) for measure in self.measures],
            "keys": dict(self.keys),
            "sized": hasattr(self.module, "estimated_bytes"),
            "identity": hasattr(self.module, "identity"),
            "warm": hasattr(self.module, "open_device"),
            "stalled_seconds": getattr(self.module, "STALLED_SECONDS", None),
            "pace": getattr(self.module, "PACE", {}),
        }


def load_copy(known: Mapping[str, Any], runs: Path) -> Program:
    """The program of a study's row: its own copy below the database's run folder, or the project's.

    Raises:
        ConfigError: it cannot be imported.
        CopyDamaged: the copy is not what was queued.
    """
    path = place(known, runs)
    if known["hash"]:
        require_copy(path, known["hash"])
    return load(path)


def reseeding(runs: Path) -> Callable[[Mapping[str, Any], str, int], tuple[str, str]]:
    """What gives a stored configuration another seed; only a program with `identity` is loaded for that."""

    def reseed(known: Mapping[str, Any], config_json: str, seed: int) -> tuple[str, str]:
        values = {**json.loads(config_json), "seed": seed}
        if known.get("identity", True):
            program = load_copy(known, runs)
            config = program.from_json(json.dumps(values))
            return program.digest(config), canonical_json(fields.as_dict(config))
        hashed = {key: value for key, value in values.items() if (key, value) != ("repeat", 0)}
        return hashlib.sha256(canonical_json(hashed).encode()).hexdigest(), canonical_json(values)

    return reseed


def load(path: Path = DEFAULT) -> Program:
    """Import a program and hold it to the contract.

    Raises:
        ConfigError: there is no such file, it cannot be imported, or something in it is missing or wrong.
    """
    path = path.resolve()
    module, root = imported(path)
    try:
        config = getattr(module, "Config", None)
        if not isinstance(config, type) or not is_dataclass(config):
            raise ConfigError("Config: missing; it is a dataclass of what a run is told")
        keys = fields.kinds(config)
        if keys.get("seed") != "int":
            raise ConfigError("Config: needs a field seed: int")
        if not callable(getattr(module, "train", None)):
            raise ConfigError("train: missing; it is a function of config and run")
        measures = read_measures(getattr(module, "METRICS", None))
        if both := {measure.name for measure in measures} & keys.keys():
            raise ConfigError(f"METRICS: {min(both)!r} is a key of Config too; rename one")
        try:
            default = config()
        except Exception as error:
            raise ConfigError(f"Config: every field needs a default ({error})") from error
        _require_pace(getattr(module, "PACE", {}), keys)
        silent = getattr(module, "STALLED_SECONDS", 1)
        if isinstance(silent, bool) or not isinstance(silent, int | float) or not silent > 0:
            raise ConfigError(f"STALLED_SECONDS: {silent!r}: write a number of seconds above 0, as in 3600")
        scales = {"full": {}, **getattr(module, "SCALES", {})}
        program = Program(path, root, module, measures, default, keys, scales)
        program.files  # noqa: B018  as they are now: an edit may follow
        return program
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
        if name in RESERVED:
            raise ConfigError(f"METRICS: {name!r} is a column of the queue's own; take another name")
        values = content if isinstance(content, dict) else {"better": content}
        try:
            found.append(checked(Measure, {**values, "name": name}, {}))
        except ConfigError as error:
            raise ConfigError(f"METRICS[{name!r}]: {error}") from None
    return tuple(found)


def _require_pace(pace: Mapping[str, Any], keys: Mapping[str, str]) -> None:
    """Hold that PACE names keys of Config."""
    for name, keyed in pace.items():
        if name not in ("size", "update", "evaluate_every", "evaluated"):
            raise ConfigError(f"PACE: {name!r}: write size, update, evaluate_every or evaluated")
        for key in keyed if name == "size" else [keyed]:
            if key not in keys:
                raise ConfigError(f"PACE[{name!r}]: {key!r} is no key of Config")
