"""A process that has loaded what commands load, and what is forked of it; tests/warm.py asks it to.

A fork runs what Python would: it takes the streams, folder, environment and words that it is given, and lets
go of all else but modules. Those of torch and of other packages stay; the project's own are loaded anew
where another copy of them, or another script, is to run.
"""

from __future__ import annotations

import atexit
import contextlib
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
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import reports
import runner
from runner.work import process

PROJECT = Path(__file__).resolve().parent.parent
CLI = str(PROJECT / "cli.py")
TRAINER = "runner.work.trainer"
OWN = ("model", "reports", "runner", "sitecustomize", "tests")
"""What a trainer or another script does not inherit: it is loaded anew, from where it is to be found."""
LARGEST = 1 << 17
"""Bytes of a request: arguments, folder and environment."""
SITE: list[str] = []
"""Where Python finds modules when nobody says otherwise."""
_INHERITED: list[dict[str, types.ModuleType]] = []


def load(torch: bool) -> None:
    """Import what commands import, and with torch what trainers import.

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
    if torch:
        importlib.import_module("model.training.loop")
        process.subprocess = types.SimpleNamespace(**vars(subprocess) | {"Popen": Trainer})  # type: ignore[assignment]


def serve(descriptor: int, torch: bool) -> None:
    """Fork for each request, and tell the process number; until nobody is there to ask."""
    requests = socket.socket(fileno=descriptor)
    SITE[:] = sys.path[1:]  # the first is this folder
    load(torch)
    gc.collect()
    gc.freeze()
    while True:
        request, streams, _, _ = socket.recv_fds(requests, LARGEST, 3)
        if not request:
            return
        told, number = os.pipe()
        between = os.fork()
        if not between:
            between = os.getpid()
            if pid := os.fork():
                os.write(number, str(pid).encode())
                os._exit(0)
            while os.getppid() == between:  # from then on whoever asked is the parent
                time.sleep(0.0002)
            _be(**json.loads(request), streams=streams)
        os.waitpid(between, 0)
        requests.send(os.read(told, 32))
        for each in (*streams, told, number):
            os.close(each)


class Trainer(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` of a trainer, in a process that has loaded torch."""

    def _execute_child(  # type: ignore[no-untyped-def]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest
    ) -> None:
        words, pipes = list(args), rest[3:9]
        if words[1:3] != ["-m", TRAINER] or not words[-1].endswith("/model/program.py"):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        self.pid = os.fork()
        if not self.pid:
            _leave_the_parent()
            _be(words, env, (pipes[0], pipes[3], pipes[5]), pass_fds)
        self._child_created = True
        self._close_pipe_fds(*pipes)


def _be(
    words: Sequence[str],
    env: Mapping[str, str],
    streams: Sequence[int],
    kept: Sequence[int] = (),
    cwd: str | None = None,
) -> NoReturn:
    """Be the process that these words start, and end."""
    status = 1
    try:
        _take(streams, kept)
        if cwd is not None:
            os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        _run(words, [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder])
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
        except OSError:
            status = 120  # as Python leaves
        os._exit(status)


def _run(words: Sequence[str], further: Sequence[str]) -> None:
    """Run what Python would, with these folders further to those in which it finds modules."""
    sys.orig_argv[:] = words
    what = words[1]
    if what not in ("-c", CLI):
        _forget_own()
    sys.argv = ["-c", *words[3:]] if what == "-c" else [*words[1 + (what == "-m") :]]
    first = {"-c": [""], "-m": []}.get(what, [str(Path(what).parent)])  # -m: of trainers, whose path is safe
    sys.path[:] = [*first, *further, *SITE]
    importlib.invalidate_caches()
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")  # as Python does at its start
    if what == "-c":
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(words[2], vars(sys.modules["__main__"]))
    elif what == "-m":
        runpy.run_module(TRAINER, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(what, run_name="__main__")


def _take(streams: Sequence[int], kept: Sequence[int]) -> None:
    """Take these as stdin, stdout and stderr, and leave open nothing else but what is kept."""
    for number, each in enumerate([os.dup(each) for each in streams]):
        os.dup2(each, number)
    for each in map(int, os.listdir("/proc/self/fd")):
        if each > 2 and each not in kept:
            with contextlib.suppress(OSError):
                os.close(each)
    for name, number in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, f"__{name}__")
        made = os.fdopen(number, "w", encoding=before.encoding, errors=before.errors, closefd=False)
        made.reconfigure(line_buffering=number == 2)
        setattr(sys, name, made), setattr(sys, f"__{name}__", made)


def _leave_the_parent() -> None:
    """Keep of the parent what it has loaded of others, and nothing of what it is doing.

    Its objects stay where they are: none is closed here, and a file that it has open is not saved twice.
    """
    gc.freeze()
    os.setsid()
    atexit._clear()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    sys.excepthook = sys.__excepthook__


def _forget_own() -> None:
    """Have the project's modules loaded anew; those of the parent stay, unused."""
    _INHERITED.append({**sys.modules})
    for name in _INHERITED[-1]:
        if name.partition(".")[0] in OWN:
            del sys.modules[name]
