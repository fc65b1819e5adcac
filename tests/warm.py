"""Commands without their start: a process that has loaded what commands load, and forks for each of them.

A test's command is a real process with its own output, signals and exit code; what it is spared is a second
or two of imports. torch is not loaded ahead: a command that needs it loads it itself. Where a command's
environment is not that of the loading process, it is started from nothing.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import reports
import runner

PROJECT = Path(__file__).resolve().parent.parent
CLI = str(PROJECT / "cli.py")
READ_LATE = ("JOBS_DB", "PYTEST_CURRENT_TEST")
"""Variables that no module reads while it is loaded."""
LARGEST = 1 << 17
"""Bytes of a request: arguments, folder and environment."""


class Commands:
    """Runs commands, one at a time; the loading process starts with the first of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}

    def run(
        self, arguments: Sequence[str], cwd: Path, env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """`subprocess.run` of cli.py in a folder, its output as text.

        Raises:
            TimeoutExpired: it took longer than `timeout` seconds, and was killed.
        """
        if self._process is None:
            self._start(env)
        words = [sys.executable, CLI, *arguments]
        if _lasting(env) != self._environment:
            return subprocess.run(
                words, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
            )
        request = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": env}).encode()
        with TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
            socket.send_fds(self._socket, [request], [out.fileno(), errors.fileno()])
            code = self._code(int(self._socket.recv(32)), words, timeout)
            out.seek(0), errors.seek(0)
            return subprocess.CompletedProcess(words, code, out.read(), errors.read())

    def _start(self, env: dict[str, str]) -> None:
        self._environment = _lasting(env)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
            self._process = subprocess.Popen(words, cwd=PROJECT, env=env, pass_fds=[theirs.fileno()])
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        if self._process is not None:
            self._process.wait(timeout=60)

    def _code(self, pid: int, words: list[str], timeout: float) -> int:
        """The exit code of a command that runs, as subprocess gives it."""
        self._socket.settimeout(timeout)
        try:
            return int(self._socket.recv(32))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            self._socket.settimeout(None)
            self._socket.recv(32)
            raise subprocess.TimeoutExpired(words, timeout) from None
        finally:
            self._socket.settimeout(None)


COMMANDS = Commands()


def _lasting(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in READ_LATE}


def load() -> None:
    """Import what commands import, but for torch.

    Raises:
        RuntimeError: a module that should not does load torch.
    """
    names = ["model.program", "model.text.dataset", "tokenizers"]
    for package in (runner, reports):
        names += [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for name in names:
        if "migrations" not in name:  # alembic runs those
            importlib.import_module(name)
    if "torch" in sys.modules:
        raise RuntimeError("torch is loaded by what only reads")


def serve(requests: socket.socket) -> None:
    """Fork for each request, tell its process number and then its exit code, until nobody is there to ask."""
    load()
    gc.collect()
    gc.freeze()
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, LARGEST, 2)
        if not request:
            return
        pid = os.fork()
        if not pid:
            requests.close()
            become(descriptors, **json.loads(request))
        for each in descriptors:
            os.close(each)
        requests.send(str(pid).encode())
        requests.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def become(descriptors: list[int], arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """Be `python cli.py …`, and end."""
    for number, descriptor in zip((1, 2), descriptors, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [CLI, *arguments]
    sys.path[0] = str(PROJECT)
    code = 1
    try:
        runpy.run_path(CLI, run_name="__main__")
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
