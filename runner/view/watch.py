"""`watch`: the queue, live in a terminal; one frame on a pipe. Reads the database, changes nothing.

A snapshot is read once a second (runner/view/snapshot.py) and drawn (runner/view/frame.py). Ctrl-C leaves it.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from rich.live import Live

from runner.queue.store import Store, StoreUnavailable
from runner.view.console import console
from runner.view.frame import frame
from runner.view.gpus import gpus
from runner.view.snapshot import snapshot

REFRESH_SECONDS = 1.0
GPU_SECONDS = 5.0
"""Between two questions to nvidia-smi, which takes its time."""


def watch(store: Store, study: str | None) -> None:
    """Show the queue until Ctrl-C; where stdout is no terminal, once."""
    out = console()
    cards = gpus()
    with store.read() as connection:
        first = snapshot(connection, study, cards)
    if not out.is_terminal:
        out.print(frame(first, out.width, None))
        return
    signal.signal(signal.SIGTERM, _leave)
    asked_at = time.monotonic()
    live = Live(frame(first, out.width, out.height), console=out, screen=True, auto_refresh=False)
    # Not `with`: a Ctrl-C while the first frame is drawn would leave the terminal without its own screen.
    try:
        live.start(refresh=True)
        while True:
            time.sleep(REFRESH_SECONDS)
            if cards and time.monotonic() - asked_at > GPU_SECONDS:
                cards, asked_at = gpus(), time.monotonic()
            store.check_identity()
            try:
                with store.read() as connection:
                    shown = snapshot(connection, study, cards)
            except StoreUnavailable:  # the last frame stays until the next can be had
                continue
            live.update(frame(shown, out.width, out.height), refresh=True)
    finally:
        live.stop()


def _leave(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
