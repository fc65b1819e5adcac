"""The child: a program and a configuration in, events out over a pipe. It imports what the program imports.

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

from model.events import Asked, Event, Finished, Request, to_json
from runner.design.copies import require_copy
from runner.design.program import Program, load
from runner.work.attempt_log import log, log_to
from runner.work.causes import cause_of
from runner.work.run import Run, Saved

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve commands from stdin until it closes."""
    events_fd, device, threads, warm = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    die_with_parent()
    # The supervisor decides what a signal means; a terminal's Ctrl-C and Slurm's SIGTERM come here too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    trainer = Trainer(events_fd)
    threading.Thread(target=trainer.listen, daemon=True).start()
    trainer.start(device, threads, warm)
    while True:
        trainer.serve(*trainer.commands.get())


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however that happens (Linux)."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between: no signal will come
            os._exit(1)


class Trainer:
    """The state of the child: its pipe, its device, and what the supervisor has asked for."""

    def __init__(self, events_fd: int) -> None:
        self.commands: queue.Queue[tuple[dict[str, Any], Asked]] = queue.Queue()
        self._events = os.fdopen(events_fd, "wb", buffering=0)
        self._device, self._threads = "cpu", 1
        self._warm: Program | None = None

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

    def start(self, device: str, threads: int, warm: str) -> None:
        """Open the device as the program `warm` does, if one is named, and say what it is.

        That program's process serves one run after another: what is slow to import is so once a night.
        """
        self._threads = threads
        opened: dict[str, Any] = {"device": "cpu" if device == "auto" else device}
        if warm:
            self._warm = load(Path(warm))
            opened = self._warm.module.open_device(device, threads)
        self._device = opened["device"]
        self._send(event="ready", **opened, threads=threads)

    def serve(self, message: dict[str, Any], asked: Asked) -> None:
        """Run one command to its end; a failed one is reported and ends the process."""
        if message["command"] == "check":
            self._send(event="checked", **self._known_answer())
            return
        log_to(Path(message["log_path"]))
        program = None
        try:
            program = self._program(message)
            self._run(program, message, asked)
        except BaseException as error:
            cause, text = cause_of(error)
            if program is not None and hasattr(program.module, "advise"):
                text = "; ".join(filter(None, (text, program.module.advise(cause, self._device))))
            traceback.print_exc()
            sys.stdout.flush()
            self._send(event="failed", cause=cause, message=text, traceback=traceback.format_exc())
            os._exit(1)  # a process that failed once is not trusted with the next job

    def _known_answer(self) -> dict[str, Any]:
        """The canary, when jobs fail on a device at once, and for `doctor`, if the program has one."""
        try:
            wrong = ""
            if self._warm is not None and hasattr(self._warm.module, "check_device"):
                wrong = self._warm.module.check_device(self._device)
        except Exception as error:  # whatever a broken device raises is the answer
            wrong = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"ok": not wrong, "message": wrong}

    def _program(self, message: dict[str, Any]) -> Program:
        """The program of a job: the one that is loaded, or its study's copy, which must be of that hash."""
        path = Path(message["program"])
        if self._warm is not None and self._warm.path == path.resolve():
            return self._warm
        if message["program_hash"]:
            require_copy(path, message["program_hash"])
        return load(path)

    def _run(self, program: Program, message: dict[str, Any], asked: Asked) -> None:
        run = Run(
            workdir=Path(message["workdir"]),
            device=self._device,
            cache=Path(message["cache_dir"]),
            saved=[Saved(Path(path), *rest) for path, *rest in message["resume_from"]],
            asked=asked,
            tell=self._tell,
            source=message["program_hash"] or message["source"],
            primary=program.measures[0].name,
            checkpoint_seconds=message["checkpoint_seconds"],
            keep_weights=message["keep_weights"],
            threads=self._threads,
        )
        config = program.from_json(message["config_json"])
        results = program.module.train(config, run)
        if results is None and not asked.was_to_end:
            raise TypeError("train returned None, though nobody asked it to stop; return the results")
        if results is None or asked.cancelled:
            self._send(event="stopped")
        else:
            self._tell(Finished(program.steps(config), program.checked_results(results)))

    def _tell(self, event: Event) -> None:
        self._send(**to_json(event))
        log(event)

    def _send(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:  # a raw pipe may take a part
            data = data[self._events.write(data) :]


if __name__ == "__main__":
    main()
