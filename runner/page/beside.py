"""A command of ours beside a running one: it has its own process, and ends when the other one does.

What it does may take long or fail: no heartbeat waits for it, and no night ends with it. It is told that the
other is over by its standard input, which is a pipe: a process that is killed closes it too.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import typer

from runner.view.arguments import seconds
from runner.work.process import modules_from
from runner.work.provenance import PROJECT

LAST_SECONDS = 120.0
"""For what it still has to do when the other is over: a page, with a report in it."""


class Beside:
    """`python cli.py WORDS` in a session of its own, which no Ctrl-C of the terminal reaches."""

    def __init__(self, words: list[str], db: str) -> None:
        # The database in the environment, not among the words: whoever lists processes would read it.
        environment = os.environ | modules_from(PROJECT) | {"JOBS_DB": db}
        self._process = subprocess.Popen(
            [sys.executable, str(PROJECT / "cli.py"), *words, "--until-closed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    @property
    def returncode(self) -> int | None:
        """None while it is there."""
        return self._process.poll()

    def end(self) -> None:
        """Let it do what it does last, and wait for that; then end it whatever it is doing."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def companions(db: str, page: Path | None, notify: str | None, every: str | None) -> list[Beside]:
    """What `work` starts beside itself: `page` for --page, `digest` for --notify and --notify-every.

    Raises:
        BadParameter: --notify-every without --notify, or no time.
        OSError: the folder cannot be made.
    """
    if every is not None and notify is None:
        raise typer.BadParameter(f"--notify-every {every}: tells nobody; add --notify COMMAND")
    if every is not None:
        seconds(every, "--notify-every")
    found = []
    if page is not None:
        page.mkdir(parents=True, exist_ok=True)
        found.append(Beside(["page", str(page.resolve()), "--every", "60s"], db))
    if notify is not None:
        often = [] if every is None else ["--every", every]
        found.append(Beside(["digest", "--send", notify, *often], db))
    return found


def pause(until_closed: bool) -> Callable[[float], bool]:
    """Wait so many seconds; True when it is over: standard input is closed, where that is meant to tell."""

    def wait(seconds: float) -> bool:
        if not until_closed:
            time.sleep(seconds)
            return False
        if os.nice(0) == 0:
            os.nice(10)  # the trainers go first
        ready, _, _ = select.select([0], [], [], seconds)
        return bool(ready) and not os.read(0, 4096)

    return wait
