"""The child: a RunConfig in, events out over a pipe. Torch is imported in this process alone.

It owns no database and makes no decision: it runs one job after another as the supervisor commands
(runner/work/worker.py), and ends when its supervisor does. An error is sorted into a cause (causes.py) at the
one broad `except` of a job, where it is still whole. What it imports: runner/work/source.py, FILES.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from model.config import RunConfig
from model.events import Asked, Event, Finished, Request, to_json
from runner.work.attempt_log import log, log_to
from runner.work.causes import cause_of

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve commands from stdin until it closes."""
    events_fd, device, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    die_with_parent()
    # The supervisor decides what a signal means; a terminal's Ctrl-C and Slurm's SIGTERM come here too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    trainer = Trainer(events_fd)
    threading.Thread(target=trainer.listen, daemon=True).start()
    trainer.start(device, threads)
    while True:
        trainer.serve(*trainer.commands.get())


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however that happens (Linux)."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between: no signal will come
            os._exit(1)


def known_answer(device: str) -> dict[str, Any]:
    """The canary, when jobs fail on a device at once, and for `doctor`.

    One tiny update of the model, twice, in the precision that a run would have there. A sound device answers
    with the same bits, and the loss that untrained weights have.
    """
    try:
        from model.training.setting import check

        wrong = check(device)
    except Exception as error:  # whatever a broken device raises is the answer
        wrong = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"ok": not wrong, "message": wrong}


class Trainer:
    """The state of the child: its pipe, its device, and what the supervisor has asked for."""

    def __init__(self, events_fd: int) -> None:
        self.commands: queue.Queue[tuple[dict[str, Any], Asked]] = queue.Queue()
        self._events = os.fdopen(events_fd, "wb", buffering=0)
        self._device = "cpu"

    def listen(self) -> None:
        """Read commands, in a thread: a request reaches a job in the midst of its steps."""
        buffer, asked = b"", Asked()
        while chunk := os.read(0, 1 << 16):  # unbuffered: a lock of sys.stdin would outlive the interpreter
            *lines, buffer = (buffer + chunk).split(b"\n")
            for message in map(json.loads, lines):
                if message["command"] == "request":
                    asked.ask(Request(message["request"]))
                else:  # each command its own: what was asked of a job that ended reaches no other
                    asked = Asked()
                    self.commands.put((message, asked))
        os._exit(0)  # the supervisor closed the pipe or died: nobody wants what would come

    def start(self, device: str, threads: int) -> None:
        """Import torch, start the device and say what it is."""
        import torch

        from model.training.setting import open_device

        torch.set_num_threads(threads)
        opened = open_device(device)
        self._device = opened["device"]
        self._send(event="ready", **opened, threads=threads)

    def serve(self, message: dict[str, Any], asked: Asked) -> None:
        """Run one command to its end; a failed one is reported and ends the process."""
        if message["command"] == "check":
            self._send(event="checked", **known_answer(self._device))
            return
        log_to(Path(message["log_path"]))
        try:
            self._run(message, asked)
        except BaseException as error:
            cause, text = cause_of(error, self._device)
            traceback.print_exc()
            sys.stdout.flush()
            self._send(event="failed", cause=cause, message=text, traceback=traceback.format_exc())
            os._exit(1)  # a process that failed once is not trusted with the next job

    def _run(self, message: dict[str, Any], asked: Asked) -> None:
        from model.training.loop import train

        config = RunConfig.from_dict(json.loads(message["config_json"]))
        event: Event | None = None
        for event in train(
            config,
            Path(message["workdir"]),
            cache_dir=Path(message["cache_dir"]),
            device=self._device,
            resume_from=[(path, sha256) for path, sha256 in message["resume_from"]],
            asked=asked,
            checkpoint_seconds=message["checkpoint_seconds"],
            keep_weights=message["keep_weights"],
            source=message["source"],
        ):
            self._send(**to_json(event))
            log(event)
        if not isinstance(event, Finished):
            self._send(event="stopped")

    def _send(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:  # a raw pipe may take a part
            data = data[self._events.write(data) :]


if __name__ == "__main__":
    main()
