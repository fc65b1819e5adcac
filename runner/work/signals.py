"""Why and when a worker stops: a signal, or its time limit. Owns the process's signal handlers.

The first SIGINT, SIGTERM or SIGHUP asks; a second SIGINT or SIGTERM leaves at once. A SIGHUP never counts as
the second: one closed terminal brings one from the shell and one from the kernel. A handler only notes the
signal and wakes whoever waits on `wake_fd`; the worker looks at `asked` between its steps.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable
from types import FrameType


def awake_seconds() -> float:
    """A clock that goes on while the machine sleeps: a lease does, and so does a time limit."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Stop:
    """What was asked of this worker, and how long it still has."""

    def __init__(self, time_limit_seconds: float | None, leave: Callable[[], None]) -> None:
        """`leave` is called on the second signal, before the process exits."""
        self.signal: int | None = None
        self.slowest_update_seconds = 0.0  # of the jobs that run now
        self._limit, self._leave = time_limit_seconds, leave
        self._late = False  # for good: what is stopping may have no slow update any more
        self._started_at = awake_seconds()
        self.wake_fd, self._wake_write = os.pipe()
        for end in (self.wake_fd, self._wake_write):
            os.set_blocking(end, False)

    def catch_signals(self) -> None:
        """Install the handlers; a SIGHUP that is ignored (nohup) stays ignored."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGHUP:
            return
        if self.signal is not None:
            self._leave()
            os._exit(128 + number)
        self.signal = number

    @property
    def asked(self) -> bool:
        """Whether to finish the update, save and release."""
        if self._limit is not None and self.left_seconds < self._margin_seconds(self._limit):
            self._late = True
        return self.signal is not None or self._late

    @property
    def left_seconds(self) -> float:
        """Of the time limit; infinite without one."""
        return math.inf if self._limit is None else self._limit - (awake_seconds() - self._started_at)

    def _margin_seconds(self, limit: float) -> float:
        """Time kept for finishing an update and saving: a tenth of the limit, or two slow updates."""
        return max(min(30.0, 0.1 * limit), min(2 * self.slowest_update_seconds, 0.5 * limit))

    def clear_wake(self) -> None:
        """Empty the pipe that a signal has written to, so that waiting on it waits again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 512)
