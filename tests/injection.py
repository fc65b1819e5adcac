"""Faults at an exact line of a real process: a `sitecustomize` that the interpreter runs at its start.

The test writes one into a folder and puts that on PYTHONPATH; supervisor and trainer both run it, and it
looks at the command line to know which it is in. Each fault strikes once: it leaves a mark beside itself.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

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
    def strikes(name):
        calls.append(name)
        return calls.count("fsync") + calls.count("rename") == STAGE + 3 and once("checkpoint")
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
"""A checkpoint makes three calls (flush, rename, flush the folder): stage 1, 2 or 3 of the second one."""

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
    dumps = json.dumps
    def gated(message, **options):
        if isinstance(message, dict) and message.get("event") == "Progressed" and message["step"] == 20:
            open(os.path.join(HERE, f"at-{os.getpid()}"), "w").close()
            while not os.path.exists(os.path.join(HERE, "go")):
                time.sleep(0.01)
        return dumps(message, **options)
    json.dumps = gated
"""
"""Each trainer stands still at step 20, leaving a mark, until there is a file `go`."""

DIVERGENCE = """
if TRAINER:
    import json
    dumps = json.dumps
    def poisoned(message, **options):
        loop = sys.modules.get("model.training.loop")
        if loop is not None and not hasattr(loop, "sound"):
            loop.sound = loop._forward_backward
            def bad(run, seen):
                losses, counts = loop.sound(run, seen)
                return losses * (float("nan") if run.step >= 20 else 1.0), counts
            loop._forward_backward = bad
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
    folder.mkdir()
    for name, text in parts.items():
        fault = fault.replace(name, textwrap.dedent(text).strip().replace("\n", "\n            "))
    (folder / "sitecustomize.py").write_text(PROLOGUE + fault)
    return {"PYTHONPATH": str(folder)}


def struck(folder: Path) -> bool:
    """Whether the fault has happened: a test in which it has not proves nothing."""
    return any(path.name in ("commit", "checkpoint", "fault") for path in folder.iterdir())
