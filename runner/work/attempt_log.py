"""An attempt's log as the trainer process writes it: everything that is printed, and a line for each event.

A full disk costs lines, never the job. Who shows it: runner/view/logs.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from model.events import Checkpointed, Event, Finished, Measured, NotSaved, Resumed, Waiting
from runner.work import output


def log_to(path: Path) -> None:
    """Send everything that is printed from here on to this attempt's log, as far as the disk has room."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    sys.stdout = sys.stderr = output.stream(1)


def log(event: Event) -> None:
    """Print what a reader of the attempt's log wants to see; never a value of the sealed test split."""
    text = ""
    if isinstance(event, Resumed):
        refused = [f"checkpoint refused: {reason}; " for reason in event.refused]
        text = "".join(refused) + f"from step {event.step}{event.not_exact}"
        text += "".join(f"; {remark}" for remark in event.remarks)
    elif isinstance(event, Measured) and event.split != "test":
        text = f"step {event.step} {event.split}: " + ", ".join(
            f"{name} {value:.6g}" for name, value in event.values.items()
        )
    elif isinstance(event, Checkpointed):
        text = f"step {event.step} checkpoint: {Path(event.path).name}, {event.size_bytes:,} bytes"
    elif isinstance(event, NotSaved):
        text = f"step {event.step} checkpoint not saved: {event.reason}"
    elif isinstance(event, Waiting):
        text = f"waiting: {event.reason}"
    elif isinstance(event, Finished):
        text = f"step {event.step} finished"
    if text:
        print(time.strftime("%m-%d %H:%M:%S"), text, flush=True)
