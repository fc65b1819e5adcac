"""What every test of a working night wants: short back-offs, and no signal handler left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from runner.queue import jobs


@pytest.fixture(autouse=True)
def _short_back_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process only, back-offs are short, and the signal handlers of a test are put back."""
    monkeypatch.setattr(jobs, "BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr("runner.work.worker.POLL_SECONDS", 0.1)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
