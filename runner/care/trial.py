"""`try` and `new`: one run of a grid in the foreground before a night, and a program to begin with.

No database, no worker: the program runs in this process, its checkpoints go to a folder that is removed.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.events import Asked, Event, Measured, Progressed, Request
from model.fields import ConfigError
from runner.design.copies import PROJECT
from runner.design.grid import Grid
from runner.view.text import duration, label
from runner.work.attempt_log import log
from runner.work.causes import cause_of
from runner.work.run import Run

SAY_SECONDS = 1.0
BEGINNING = PROJECT / "examples" / "ridge.py"
"""What `new` writes, and the grid beside it."""


class TrialFailed(Exception):
    """The program raised something; its traceback has been printed, the message is the one line."""

    exit_code = 65


@dataclass
class Trial:
    """How far one run came."""

    config: Any
    began: float
    """Of this process's clock, as all instants here."""
    ended: float = 0.0
    first: tuple[int, float] | None = None
    """The first step that was told, and when: before it lies what a run does once."""
    last: tuple[int, float] = (0, 0.0)
    results: dict[str, Any] | None = None
    """None if it was stopped before its end."""

    _said_at: float = -math.inf

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def take(self, event: Event) -> None:
        """Print what a log would have, of measurements one a second; note how far the run is."""
        now = time.monotonic()
        measured = isinstance(event, Measured)
        if not measured or now - self._said_at >= SAY_SECONDS:
            self._said_at = now if measured else self._said_at
            log(event)
        if isinstance(event, (Measured, Progressed)) and event.step > self.last[0]:
            self.last = event.step, now
            self.first = self.first or self.last

    def whole_seconds(self, steps: int) -> float | None:
        """Seconds that a run of `steps` would take; None if the trial logged too few steps to say."""
        if self.results is not None:
            return self.seconds
        if self.first is None or self.last[0] <= self.first[0]:
            return None
        step_seconds = (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])
        return self.first[1] - self.began + (steps - self.first[0]) * step_seconds


def attempt(grid: Grid, limit_seconds: float, device: str, threads: int, cache: Path) -> Trial:
    """Run the grid's first cell, and ask it to stop after `limit_seconds`.

    Raises:
        TrialFailed: the program raised something.
        ConfigError: what the program refuses.
    """
    program = grid.program
    cell, config = next(grid.runs())
    print(f"trying {label(cell, config.seed)} for at most {duration(limit_seconds)}", flush=True)
    trial, asked = Trial(config, time.monotonic()), Asked()
    stop = threading.Timer(limit_seconds, asked.ask, (Request.STOP,))
    stop.daemon = True
    open_device = getattr(program.module, "open_device", None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            opened = open_device(device, threads)["device"] if open_device else device.replace("auto", "cpu")
            told = (asked, trial.take, program.hash, program.measures[0].name)
            run = Run(Path(folder), opened, cache, (), *told, threads=threads)
            stop.start()
            results = program.module.train(config, run)
            trial.ended = time.monotonic()
            if results is None and not asked.was_to_end:
                raise TypeError("train returned None, though nobody asked it to stop; return the results")
            trial.results = None if results is None else program.checked_results(results)
            if trial.results is not None and (first := program.measures[0].name) not in trial.results:
                raise ValueError(f"train returned no {first}, the first of METRICS")
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            cause, line = cause_of(error)
            raise TrialFailed(
                f"{program.path.name}: {line}; a night would record the cause {cause}"
            ) from None
        finally:
            stop.cancel()
    return trial


def verdict(grid: Grid, trial: Trial) -> list[str]:
    """What it came to, and what all runs of the grid would cost, if each took as long as this one."""
    program, total = grid.program, grid.program.steps(trial.config)
    if trial.results is None:
        lines = [f"stopped after step {trial.last[0]} of {total}, in {duration(trial.seconds)}"]
    else:
        known = [measure for measure in program.measures if measure.name in trial.results]
        told = ", ".join(f"{m.name} {trial.results[m.name]:.{m.decimals}f}" for m in known)
        lines = [f"done in {duration(trial.seconds)}: {told}"]
    each = trial.whole_seconds(total)
    if each is None:
        return [*lines, "what a run costs is not known: it logged too few steps"]
    return [*lines, f"{grid.size} runs like this one: about {duration(grid.size * each)} with one trainer"]


def begin(name: str) -> tuple[Path, Path]:
    """Write NAME.py and NAME.toml, which run as they are.

    Raises:
        ConfigError: not a name for a module, or one of the files exists.
    """
    if not name.isidentifier():
        raise ConfigError(f"new {name}: name it with letters, digits and '_', as Python names a module")
    made = Path(f"{name}.py"), Path(f"{name}.toml")
    for path in made:
        if path.exists():
            raise ConfigError(f"{path}: exists already; take another name")
    grid = BEGINNING.with_suffix(".toml").read_text(encoding="utf-8")
    made[0].write_text(BEGINNING.read_text(encoding="utf-8"), encoding="utf-8")
    made[1].write_text(grid.replace(BEGINNING.stem, name), encoding="utf-8")
    return made
