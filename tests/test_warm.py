"""What the other tests take for granted: a fork is what Python would have started, and it is a fork."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import TEXT, environment

TOLD = """
import json, os, signal, sys
handled = [signal.getsignal(number) is signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGHUP)]
files = os.listdir("/proc/self/fd")
print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), files, os.getppid(), handled]))
print("reports" in sys.modules, file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.slow
def test_a_fork_is_what_python_would_have_started(tmp_path: Path) -> None:
    words = [sys.executable, "-c", TOLD, "a word"]
    options = {"cwd": tmp_path, "env": environment(), **TEXT}
    forked, started = warm.run(words, **options), subprocess.run(words, check=False, **options)
    assert (forked.stderr, started.stderr) == ("True\n", "False\n")
    assert json.loads(forked.stdout) == json.loads(started.stdout)
    assert (forked.returncode, started.returncode) == (7, 7)


@pytest.mark.slow
def test_a_fork_is_waited_for_and_killed_as_a_child(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import os; print(os.read(0, 9), flush=True); os.read(0, 9)"]
    with warm.Command(words, cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, **TEXT) as process:
        process.stdin.write("told")
        process.stdin.flush()
        assert process.stdout.readline() == "b'told'\n"
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL


@pytest.mark.slow
def test_where_python_would_start_otherwise_it_starts(tmp_path: Path) -> None:
    elsewhere = {**environment(), "A_VARIABLE": "that a module may read"}
    assert warm.run([sys.executable, "-c", TOLD], cwd=tmp_path, env=elsewhere, **TEXT).stderr == "False\n"
