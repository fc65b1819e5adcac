"""Processes without their start: forked of one that has loaded what they load (tests/loaded.py).

A test's command is a real process with its own output, signals and exit code, a child of the test; and so is
a trainer, a child of its worker. What they are spared is one to four seconds of imports. Commands that read
are forked of a process without torch, the others of one with it; and of these their trainers, which take
their modules from the worker's copy of the source as ever.

Started from nothing is what Python would start otherwise (another locale, say), trainers of a program of
one's own, and all that runs in a terminal, in a job of Slurm, in the examples' tests, and in tests/chaos.py.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tests.loaded import CLI, PROJECT

NEED_TORCH = {"work", "doctor", "generate", "--keep-weights"}
"""Words of commands that load it, or have a trainer that does."""
READ_LATE = ("JOBS_DB", "PYTEST_CURRENT_TEST", "PYTHONPATH")
"""Variables that no module reads while it is loaded; PYTHONPATH is heeded by a fork."""
_PR_SET_CHILD_SUBREAPER = 36


_AT_START = {name: value for name, value in os.environ.items() if name not in ("JOBS_DB", "PYTHONPATH")}
"""Before libraries that a test uses set variables of theirs."""


def environment(database: str = "") -> dict[str, str]:
    """That of a test's commands: a file is found by its default name, a server's database is in JOBS_DB."""
    named = {"JOBS_DB": database} if "://" in database else {}
    return {**_AT_START, **named, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


def _lasting(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in READ_LATE}


USUAL = _lasting(environment())


class Loaded:
    """A process that has loaded what commands load; it starts with the first of them."""

    def __init__(self, torch: bool) -> None:
        self._torch = torch
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, request: dict[str, Any], streams: Sequence[int]) -> int:
        """Start a command; returns the number of the process, which is a child of this one."""
        if self._process is None:
            self._start()
        _adopt(True)
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], streams)
            return int(self._socket.recv(32))
        finally:
            _adopt(False)

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            kept = [theirs.fileno()]
            code = f"from tests import loaded; loaded.serve(*{kept}, torch={self._torch})"
            words = [sys.executable, "-c", code]
            self._process = subprocess.Popen(words, cwd=PROJECT, env=USUAL, pass_fds=kept)
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        if self._process is not None:
            self._process.wait(timeout=60)


WITHOUT, WITH_TORCH = Loaded(torch=False), Loaded(torch=True)


class Command(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` of cli.py, of another script of the project, or of `python -c` in its folder."""

    def _execute_child(  # type: ignore[no-untyped-def]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest
    ) -> None:
        words, pipes, env = list(args), rest[3:9], dict(env or os.environ)
        known = words[0] == sys.executable and (words[1] == "-c" or words[1].startswith(f"{PROJECT}/"))
        if not known or preexec_fn or _lasting(env) != USUAL or sys.platform != "linux":
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        loaded = WITHOUT if words[1] in ("-c", CLI) and not NEED_TORCH & {*words} else WITH_TORCH
        given = (pipes[0], pipes[3], pipes[5])
        streams = [number if each == -1 else each for number, each in enumerate(given)]
        self.pid = loaded.fork({"words": words, "cwd": str(cwd), "env": env}, streams)
        self._child_created = True
        self._close_pipe_fds(*pipes)


def run(words: Sequence[str], timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` of a script of the project, with the options of Popen.

    Raises:
        TimeoutExpired: it took longer than `timeout` seconds, and was killed.
    """
    with Command(words, **options) as started:
        try:
            out, errors = started.communicate(timeout=timeout)
        except BaseException:
            started.kill()
            raise
        return subprocess.CompletedProcess(words, started.returncode, out, errors)


def _adopt(wanted: bool) -> None:
    """Have processes whose parents end become children of this one (Linux)."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError("prctl: no processes can be adopted")
