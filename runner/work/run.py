"""The run that a training program is given: where it goes on, what it measures, when to save, whether to end.

Lives in the trainer process, and turns calls into the events that the supervisor records (model/events.py).
Imports no framework: a program brings its own. The contract: docs/programs.md.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.events import Asked, Checkpointed, Event, Measured, NotSaved, Phase, Progressed, Resumed
from runner.queue.series import chosen

SPLITS = ("train", "val", "test")
ALIVE_SECONDS = 0.2
"""Between two signs of life that say no more than the step."""
FULL = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EACCES, errno.EPERM),
)
"""A checkpoint that cannot be written for one of these costs the checkpoint, not the run."""
_PACKAGES = ("numpy", "torch", "jax", "tensorflow", "sklearn", "scipy", "xgboost", "lightgbm")
"""Whose versions are part of the numeric environment, if the program has imported them."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint of an earlier attempt."""

    path: Path
    sha256: str
    step: int
    environment: Mapping[str, Any]
    """The numeric environment of the attempt that wrote it."""


@dataclass
class Run:
    """One attempt, as the program sees it."""

    workdir: Path
    """The attempt's own folder, for whatever the program writes beside its checkpoints."""
    device: str
    """cpu, cuda:0, …"""
    cache: Path
    """A folder that all runs share: prepared data."""
    saved: Sequence[Saved]
    """Newest first."""
    asked: Asked
    tell: Callable[[Event], None]
    """Sends an event: for a program that speaks them itself."""
    source: str
    """SHA-256 of the code that runs."""
    primary: str
    """The program's first measure: which series stands for a run goes by it."""
    checkpoint_seconds: float = 120.0
    keep_weights: bool = False
    threads: int = 1
    _begun: tuple[int, Path | None] | None = None
    _logged: dict[tuple[str, str], int] = field(default_factory=dict)
    _step: int = 0
    _saved_step: int = 0
    _saved_at: float = field(default_factory=time.monotonic)
    _alive_at: float = 0.0

    @property
    def checkpoints(self) -> list[tuple[str, str]]:
        """(path, SHA-256) of earlier checkpoints, newest first: for a program that verifies them itself."""
        return [(str(each.path), each.sha256) for each in self.saved]

    # --- where it goes on ---------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The step of `checkpoint`; 0 without one."""
        return self.begin()[0]

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint whose content is what was written, or None."""
        return self.begin()[1]

    def begin(self) -> tuple[int, Path | None]:
        """Say, once, where the run starts from: rows past that step are of a lost past, and are deleted."""
        if self._begun is None:
            refused: list[str] = []
            found = None
            for each in self.saved:
                if reason := _unusable(each):
                    refused.append(f"{each.path}: {reason}")
                else:
                    found = each
                    break
            environment = self._environment()
            changed = _changed(found.environment, environment) if found else []
            step, path = (found.step, found.path) if found else (0, None)
            self._begun, self._step, self._saved_step = (step, path), step, step
            self.tell(Resumed(step, str(path) if path else None, not changed, refused, environment, changed))
        return self._begun

    def _environment(self) -> dict[str, Any]:
        """What the numbers may depend on beside the configuration, as far as it can be known from outside."""
        versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in _PACKAGES}
        return {
            "source": self.source,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": self.device,
            "threads": self.threads,
            **{name: str(version) for name, version in versions.items() if version is not None},
        }

    # --- what it measures ---------------------------------------------------------------------------------

    def log(self, step: int, split: str = "train", **values: float) -> None:
        """Record values at a step, which is also the sign of life; `test` stays sealed until it is opened.

        Raises:
            ValueError: a step that is not above the last one of this split, or no such split.
        """
        self._measure("log", step, split)
        numbers = {name: float(value) for name, value in values.items()}
        if numbers:
            self.tell(Measured(step, split, numbers))
        self._alive(Phase.STEP if split == "train" else Phase.EVALUATE, step, numbers)

    def count(self, step: int, counts: Sequence[Sequence[int]], split: str = "val") -> None:
        """Record how much went to each expert of each layer at a step: counts[layer][expert].

        Raises:
            ValueError: as `log`, or a count is below 0.
        """
        told = [[int(number) for number in layer] for layer in counts]
        if any(number < 0 for layer in told for number in layer):
            raise ValueError(f"run.count: {told!r}: a count cannot be below 0")
        self._measure("count", step, split)
        self.tell(Measured(step, split, {}, told))

    def _measure(self, what: str, step: int, split: str) -> None:
        began, _ = self.begin()
        if split not in SPLITS:
            raise ValueError(f"run.{what}: split = {split!r}: choose one of {', '.join(SPLITS)}")
        # Rows up to the checkpoint's step are there already, and a second one would be passed over.
        last = self._logged.get((what, split), began if began else -1)
        if isinstance(step, bool) or not isinstance(step, int) or step <= last:
            raise ValueError(
                f"run.{what}: step = {step!r} of {split}: must be a whole number above {last}, the last one"
            )
        self._logged[what, split] = step

    def _alive(self, phase: Phase, step: int, numbers: Mapping[str, float]) -> None:
        now = time.monotonic()
        self._step = max(self._step, step)
        if now - self._alive_at >= ALIVE_SECONDS:
            self._alive_at = now
            series = chosen(numbers, self.primary)
            self.tell(Progressed(phase, self._step, numbers.get(series), series=series))

    # --- saving and ending --------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether to save now: it is time, or somebody asked; never twice at one step that was logged."""
        self.begin()
        if self._step <= self._saved_step:
            return False
        return self.asked.pending or time.monotonic() - self._saved_at >= self.checkpoint_seconds

    @property
    def ends(self) -> bool:
        """Whether to return None now: somebody asked to stop or to cancel."""
        return self.asked.to_end

    @contextlib.contextmanager
    def save(self, step: int) -> Iterator[Path]:
        """A path to write one file to, the state after `step` steps: then flushed, hashed and renamed.

        A full disk costs the checkpoint, and the run goes on.

        Raises:
            ValueError: nothing was written there, or a folder.
        """
        self.begin()
        began = time.monotonic()
        self.tell(Progressed(Phase.SAVE, max(step, self._step)))
        path = self.workdir / f"step-{step}"
        beside = path.with_name(f"step-{step}.part")
        written = None
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            yield beside
            written = _kept(beside, path)
        except OSError as error:
            if error.errno not in FULL:
                raise
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            self.tell(NotSaved(step, str(error)))
        self._saved_step, self._saved_at = max(step, self._step), time.monotonic()
        self.asked.saved()
        if written is not None:
            self.tell(Checkpointed(step, str(path), *written, time.monotonic() - began))


def _kept(beside: Path, path: Path) -> tuple[str, int]:
    """Flush, hash and rename what was written; (SHA-256, bytes)."""
    if not beside.exists():
        suffixed = list(beside.parent.glob(f"{beside.name}.*"))  # NumPy adds .npy or .npz
        if len(suffixed) != 1:
            raise ValueError(f"run.save: nothing was written to {beside}")
        suffixed[0].rename(beside)
    if not beside.is_file():
        raise ValueError(f"run.save: {beside} is a folder; write a checkpoint as one file")
    with beside.open("rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = beside.stat().st_size
    beside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return sha256, size


def _unusable(saved: Saved) -> str:
    """Why a checkpoint cannot be gone on from; empty where it can."""
    try:
        with saved.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found == saved.sha256 else "its SHA-256 is another"


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return [f"{name}: {before.get(name)} → {now.get(name)}" for name in names]
