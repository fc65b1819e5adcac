"""Where a run's seconds go, by clock, and how fast it moves; it reads the clock and decides nothing.

What a checkpoint keeps of it, and who holds it: model/training/state.py. Who books: model/training/loop.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

CLOCKS = ("waiting", "compile", "training", "evaluation")


@dataclass
class Stopwatch:
    """Seconds by clock over all processes of a run, and what was timed since the last reading."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLOCKS, 0.0))
    timed_steps: int = 0
    """Steps whose time is in `training`: all but those of each process's first update."""
    lap_at: float = field(default_factory=time.perf_counter)
    warm: bool = False
    """Whether the first update of this process is behind: kernels are built in it, and it is timed apart."""
    read_at_step: int = 0
    read_at_seconds: float = 0.0

    def lap(self, clock: str) -> float:
        """Book the time since the last lap, and return it."""
        now = time.perf_counter()
        taken = now - self.lap_at
        self.seconds[clock] += taken
        self.lap_at = now
        return taken

    def begin(self, step: int) -> None:
        """Start measuring the speed at this step."""
        self.read_at_step, self.read_at_seconds = step, self._busy_seconds

    def steps_per_second(self, step: int) -> float:
        """The speed since the last reading; the next one begins here."""
        speed = (step - self.read_at_step) / (self._busy_seconds - self.read_at_seconds)
        self.begin(step)
        return speed

    @property
    def _busy_seconds(self) -> float:
        return self.seconds["training"] + self.seconds["compile"]
