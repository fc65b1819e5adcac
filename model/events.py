"""What a training run tells its caller, and what the caller may ask: the contract upward.

`train(config, …)` is an iterator of these events. The model's code knows a work folder, never a job id,
a database or a heartbeat; the trainer process sends events on as JSON lines (runner/work/trainer.py).
Imports no torch.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """What the run is busy with; the supervisor's watchdog has a limit for each."""

    START = "start"
    """Reading or preparing the data, building the model, loading a checkpoint."""
    COMPILE = "compile"
    """The first step, where kernels are built."""
    STEP = "step"
    EVALUATE = "evaluate"
    SAVE = "save"


class Request(StrEnum):
    """What a caller may ask for; it is served at the next update boundary. A later one here is stronger."""

    SAVE = "save"
    """Write a checkpoint and go on."""
    STOP = "stop"
    """Write a checkpoint and return, without `Finished`."""
    CANCEL = "cancel"
    """As STOP; after the last update it ends the run all the same, where STOP lets it finish."""


class Asked:
    """What a run is asked for and has not served yet. Any thread may ask; the strongest word wins."""

    def __init__(self) -> None:
        self._request: Request | None = None
        self._served: Request | None = None
        self._lock = threading.Lock()

    def ask(self, request: Request) -> None:
        order = list(Request)
        with self._lock:
            if self._request is None or order.index(request) > order.index(self._request):
                self._request = request

    def take(self) -> Request | None:
        """What is asked, which is then no longer asked."""
        with self._lock:
            request, self._request = self._request, None
            self._served = request or self._served
        return request

    @property
    def pending(self) -> bool:
        """Whether anything is asked for."""
        return self._request is not None

    def saved(self) -> None:
        """A checkpoint is written: no more was asked for, unless the run is to end."""
        with self._lock:
            if self._request is Request.SAVE:
                self._request = None

    @property
    def cancelled(self) -> bool:
        return self._request is Request.CANCEL

    @property
    def was_to_end(self) -> bool:
        """As `to_end`, whether or not that is served."""
        return self.to_end or self._served in (Request.STOP, Request.CANCEL)

    @property
    def to_end(self) -> bool:
        """Whether the run is to stop or be cancelled."""
        return self._request in (Request.STOP, Request.CANCEL)


@dataclass(frozen=True)
class Resumed:
    """The first event: where the run starts from. Rows past `step` belong to a lost past."""

    step: int
    """0 for a run that starts from nothing."""
    path: str | None = None
    """The checkpoint, None when starting from nothing."""
    exact: bool = True
    """False where a repetition need not give these bits: the device promises none, or the checkpoint was
    written in another numeric environment."""
    refused: list[str] = field(default_factory=list)
    """Newer checkpoints that were not usable, each with the reason."""
    environment: dict[str, Any] = field(default_factory=dict)
    """The numeric environment: what the bits depend on beside the configuration."""
    changed: list[str] = field(default_factory=list)
    """What differs between the checkpoint's environment and this one: `name: before → now`."""

    remarks: list[str] = field(default_factory=list)
    """What on this device is otherwise than asked for, and why: a line each."""

    @property
    def not_exact(self) -> str:
        """` (not exact: other source, threads)`, or nothing."""
        names = ", ".join(text.partition(":")[0] for text in self.changed)
        return "" if self.exact else f" (not exact{': other ' if names else ''}{names})"


@dataclass(frozen=True)
class Waiting:
    """The run cannot start yet, and tries again by itself: the disk of the prepared data is full, say."""

    reason: str


@dataclass(frozen=True)
class Progressed:
    """The run is alive, in this phase, at this step; sent at every step and evaluation batch."""

    phase: Phase
    step: int
    value: float | None = None
    """The last that was read of the series that stands for the run."""
    tokens_per_second: float | None = None
    series: str = "loss"


@dataclass(frozen=True)
class Measured:
    """Values at a step. `split` is train, val or test; test values stay sealed."""

    step: int
    split: str
    values: dict[str, float]
    expert_counts: list[list[int]] | None = None
    """Assignments by layer (rows) and expert (columns); a row sums to tokens × top_k."""


@dataclass(frozen=True)
class Checkpointed:
    """A checkpoint is on the disk, whole and flushed, at an update boundary."""

    step: int
    path: str
    sha256: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True)
class NotSaved:
    """A checkpoint could not be written (a full disk, say); the one before still stands, the run goes on."""

    step: int
    reason: str


@dataclass(frozen=True)
class Finished:
    """The last event: the run's wide row, named as the columns of the table `results`."""

    step: int
    results: dict[str, float | int | None]


Event = Waiting | Resumed | Progressed | Measured | Checkpointed | NotSaved | Finished

_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (Waiting, Resumed, Progressed, Measured, Checkpointed, NotSaved, Finished)
}


def to_json(event: Event) -> dict[str, Any]:
    """The event as a JSON object that names its kind."""
    return {"event": type(event).__name__, **asdict(event)}


def from_json(message: dict[str, Any]) -> Event:
    """The inverse of `to_json`.

    Raises:
        KeyError: the message names no known event.
    """
    values = dict(message)
    if "phase" in values:
        values["phase"] = Phase(values["phase"])
    event = _KINDS[values.pop("event")](**values)
    assert isinstance(event, Event)
    return event
