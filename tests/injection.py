"""Faults at an exact line of a real process: a `sitecustomize` that the interpreter runs at its start.

The test writes one into a folder and puts that on PYTHONPATH; supervisor and trainer both run it, and it
looks at the command line to know which it is in. Each fault strikes once: it leaves a mark beside itself.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

PROLOGUE = """
import os, signal, sys
HERE = os.path.dirname(os.path.abspath(__file__))
TRAINER = "runner.work.trainer" in sys.orig_argv
SUPERVISOR = any(word.endswith("cli.py") for word in sys.orig_argv) and "work" in sys.orig_argv

def once(mark):
    try:
        os.close(os.open(os.path.join(HERE, mark), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""

COMMIT = """
if SUPERVISOR:
    from sqlalchemy.engine.default import DefaultDialect
    commit = DefaultDialect.do_commit
    def faulty(self, connection):
        finishing = connection.execute("SELECT COUNT(*) FROM results").fetchone()[0] > 0
        strike = finishing and once("commit")
        if strike:
            BEFORE
        commit(self, connection)
        if strike:
            AFTER
    DefaultDialect.do_commit = faulty
"""

CHECKPOINT = """
if TRAINER:
    synced, renamed = os.fsync, os.rename
    calls = []
    marks = [os.path.join(HERE, f"checkpoint-{stage}") for stage in (1, 2, 3)]
    stage = 1 + sum(map(os.path.exists, marks))
    def strikes(name):
        calls.append(name)
        return len(calls) == stage + 3 and stage <= 3 and once(f"checkpoint-{stage}")
    def fsync(descriptor):
        if strikes("fsync"):
            die()
        synced(descriptor)
    def rename(source, target, **options):
        if str(target).endswith(".safetensors") and strikes("rename"):
            die()
        renamed(source, target, **options)
    os.fsync, os.rename = fsync, rename
"""
"""A checkpoint makes three calls: flush, rename, flush the folder. In its second checkpoint the first trainer
dies before the first of them, the second before the second, the third before the third."""

LATE = """
if SUPERVISOR:
    import time
    clock = time.clock_gettime
    time.clock_gettime = lambda which: clock(which) + 3600.0 * os.path.exists(os.path.join(HERE, "late"))
"""
"""The clock of time limits jumps by an hour when there is a file `late`."""

SHIFTED_CLOCK = """
if SUPERVISOR:
    from runner.queue import dialects
    from sqlalchemy.ext.compiler import compiles
    @compiles(dialects.now, "sqlite")
    def shifted(*_, **__):
        once("fault")
        return "((julianday('now') - 2440587.5) * 86400.0 + SECONDS)"
"""
"""The worker's clock, by which leases are judged, is off by so many seconds."""

RESTARTS = """
if SUPERVISOR:
    import itertools, time
    from runner.queue.store import Store
    numbers, plain = itertools.count(1), Store.try_write
    def try_write(self, transaction):
        number = next(numbers)
        def struck(connection):
            answer = transaction(connection)
            if number % 2 and number < 12:
                open(os.path.join(HERE, f"ask-{number}"), "w").close()
                while not os.path.exists(os.path.join(HERE, f"went-{number}")):
                    time.sleep(0.01)
            return answer
        return plain(self, struck)
    Store.try_write = try_write
"""
"""Every other write is cut off before its COMMIT: the claim, measurements, the ending, the sign-off."""

FROZEN = """
if TRAINER:
    import ctypes, json
    frozen_dumps = json.dumps
    def freeze(message, **options):
        if message.get("event") == "Progressed" and message["step"] == 20 and once("fault"):
            wait = f"while [ ! -e {HERE}/go ]; do sleep 0.05; done"
            ctypes.PyDLL(None).system(wait.encode())  # PyDLL keeps the interpreter's lock
        return frozen_dumps(message, **options)
    json.dumps = freeze
"""
"""At step 20 a native call holds the interpreter, and all its threads, until there is a file `go`."""

OUT_OF_MEMORY = """
if TRAINER:
    import resource
    class Hungry:
        def find_spec(self, name, path=None, target=None):
            if name == "model.training.loop":  # torch is in: from here on, 600 MB more than it holds
                held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (held + (600 << 20),) * 2)
            return None
    sys.meta_path.insert(0, Hungry())
"""

FULL_DISK = """
if TRAINER:
    renamed = os.rename
    def rename(source, target, **options):
        renamed(source, target, **options)
        if str(target).endswith(".safetensors") and once("fault"):
            with open("DISK/ballast", "wb", buffering=0) as file:
                for size in (1 << 16, 1 << 9, 1):
                    try:
                        while True:
                            file.write(b"x" * size)
                    except OSError:
                        pass
    os.rename = rename
"""
"""The disk of the checkpoints is full from the moment the first one is saved."""

GATE = """
if TRAINER:
    import json, time
    gate_dumps = json.dumps
    def gated(message, **options):
        Asked = sys.modules["model.events"].Asked
        if not hasattr(Asked, "unmarked"):
            Asked.unmarked = Asked.ask
            def ask(self, request):
                self.unmarked(request)
                open(os.path.join(HERE, f"asked-{os.getpid()}"), "w").close()
            Asked.ask = ask
        if isinstance(message, dict) and message.get("event") == "Progressed" and message["step"] in (20,):
            open(os.path.join(HERE, f"at-{message['step']}-{os.getpid()}"), "w").close()
            while not os.path.exists(os.path.join(HERE, "go")):
                time.sleep(0.01)
        return gate_dumps(message, **options)
    json.dumps = gated
"""
"""Each trainer stands still at step 20, leaving a mark, until there is a file `go`; and one when asked."""


def gate_at(*steps: int) -> str:
    """GATE at other steps."""
    return GATE.replace("(20,)", repr(steps))


TOY = """
if TRAINER:
    from tests import toy
    toy.install()
"""
"""The trainer runs tests/toy.py instead of the model."""

NO_SUMMARY = """
if SUPERVISOR:
    sys.modules["reports.output.files"] = None
"""
"""`work` ends without the first screen of a report, which takes longer than all else that the worker does."""

DIVERGENCE = """
if TRAINER:
    import json
    dumps = json.dumps
    def poisoned(message, **options):
        passes = sys.modules.get("model.training.passes")
        if hasattr(passes, "_piece") and not hasattr(passes, "sound"):
            passes.sound = passes._piece
            def bad(run, *rest):
                losses, counts = passes.sound(run, *rest)
                return losses * (float("nan") if run.step >= 20 else 1.0), counts
            passes._piece = bad
        return dumps(message, **options)
    json.dumps = poisoned
"""
"""The training loss is not a number from step 20 on, whatever the processor computes."""

BROKEN_CONNECTION = """
            connection.driver_connection.close()
            from psycopg import OperationalError
            raise OperationalError("server closed the connection unexpectedly")
"""
"""On PostgreSQL: before COMMIT nothing was done, after it everything; the worker cannot know which."""

LOST_ANSWER = """
            from pysqlite3 import dbapi2
            error = dbapi2.OperationalError("disk I/O error")
            error.sqlite_errorcode = 10
            raise error
"""


def inject(folder: Path, fault: str, **parts: str) -> dict[str, str]:
    """Write the fault into a folder; returns the environment that makes processes run it."""
    folder.mkdir(exist_ok=True)
    for name, text in parts.items():
        fault = fault.replace(name, textwrap.dedent(text).strip().replace("\n", "\n            "))
    (folder / "sitecustomize.py").write_text(PROLOGUE + fault)
    house = [str(PROJECT)] if "from runner" in fault or "from tests" in fault else []
    return {"PYTHONPATH": os.pathsep.join([str(folder), *house])}


def struck(folder: Path) -> bool:
    """Whether the fault has happened: a test in which it has not proves nothing."""
    return any(path.name in ("commit", "checkpoint-3", "fault") for path in folder.iterdir())
