"""The trainer process as the supervisor sees it: spawn, send a command, receive events, end the whole group.

JSON lines both ways over pipes of their own; the trainer's stdout and stderr go to log files. Spawned, never
forked, in its own process group, so that one signal reaches whatever it started.
The other side is runner/work/trainer.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.work.provenance import PROJECT

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""glibc keeps what a step frees for the next one, instead of returning it and faulting it in again, page by
page; measured in docs/performance.md. What the user has set wins."""
KILL_SECONDS = 10.0
"""Longest wait for a killed process. One that hangs in its device's driver ends later, by itself."""


def modules_from(source: Path) -> dict[str, str]:
    """The environment in which Python finds modules in `source` first, and none in the current folder.

    That folder may be another checkout, or hold a file named as a module is; `python -m` and `-c` would look
    there before anywhere else. Of the user's PYTHONPATH, the absolute entries elsewhere stay.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([str(source), *filter(_is_elsewhere, entries)])
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _is_elsewhere(entry: str) -> bool:
    try:
        return os.path.isabs(entry) and not os.path.samefile(entry, os.curdir)
    except OSError:
        return False  # nothing is there


class TrainerProcess:
    """One running trainer; replaced, never repaired."""

    def __init__(
        self,
        device: str,
        threads: int,
        log_path: Path,
        command: Sequence[str] | None = None,
        source: Path = PROJECT,
        warm: str = "",
    ) -> None:
        """Spawn it from the code in `source`; it says `ready` first. `command` is for tests of faults.

        Raises:
            OSError: there is no room for a process, or for its log. Nothing is left open.
        """
        program = [*(command or (sys.executable, "-m", "runner.work.trainer"))]
        environment = {
            **ALLOCATOR,
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic cuBLAS; read when CUDA starts
            "TOKENIZERS_PARALLELISM": "false",
            **modules_from(source),
        }
        with contextlib.ExitStack() as opened:
            log = opened.enter_context(log_path.open("ab"))
            events_in, events_out = os.pipe()
            opened.callback(os.close, events_out)  # the trainer has its own
            failed = opened.enter_context(contextlib.ExitStack())
            failed.callback(os.close, events_in)
            self._process = subprocess.Popen(
                [*program, str(events_out), device, str(threads), warm],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(events_out,),
                start_new_session=True,  # a group of its own, and no Ctrl-C from the terminal
                env=environment,
            )
            failed.pop_all()
        os.set_blocking(events_in, False)
        self.events_fd = events_in  # to listen to several trainers at once; `receive` alone reads it
        self.log_path = log_path
        self.jobs_run = 0
        self.first_memory_bytes = 0
        self._buffer = b""
        self._closed = self._released = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    @property
    def ended(self) -> bool:
        """It has closed its pipe or exited, and everything it sent has been received."""
        return self._closed

    def send(self, **message: Any) -> None:
        """Send one command; a trainer that is gone takes none, and `ended` will say so."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, timeout_seconds: float) -> list[dict[str, Any]]:
        """The messages that have come, waiting for the first one or the timeout."""
        if not self._closed:
            select.select([self.events_fd], [], [], timeout_seconds)
            self._fill_buffer()
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def _fill_buffer(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.events_fd, 1 << 16):
                self._buffer += chunk
            self._closed = True  # end of file: every writer is gone

    def memory_bytes(self) -> int:
        """Resident memory; 0 if it cannot be read."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def end_group(self) -> None:
        """SIGKILL to the whole process group, without waiting: safe in a signal handler."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> int:
        """End the whole process group now; returns the exit code."""
        self.end_group()
        try:
            code = self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        self._closed = True
        if not self._released:  # once: the number may be another trainer's pipe by now
            self._released = True
            os.close(self.events_fd)
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
        return code

    def last_words(self) -> str:
        """The last line of its log."""
        try:
            text = self.log_path.read_text(errors="replace")
        except OSError as error:  # the folder was deleted, or its disk is gone
            return f"its log cannot be read ({error.strerror})"
        return (text.strip() or "no output").splitlines()[-1]
