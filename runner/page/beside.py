"""A second command of ours beside a running one: it has its own process, and ends when the first one does.

It may be slow or fail: no heartbeat waits for it, and the night goes on without it. Its standard input is a
pipe from the first command, and closes when that one ends, even if it is killed.
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
"""Longest wait for its last work, a page with a report in it, after the first command has ended."""


class Beside:
    """`python cli.py WORDS` in a session of its own, which no Ctrl-C of the terminal reaches."""

    def __init__(self, words: list[str], db: str) -> None:
        # The database goes into the environment: anybody who lists processes can read the words.
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
        """None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """Let it finish its last work, for up to LAST_SECONDS; then kill it."""
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
        BadParameter: --notify-every without --notify, or with something that is not a time.
        OSError: the folder cannot be made.
    """
    if every is not None and notify is None:
        raise typer.BadParameter(f"--notify-every {every}: there is nobody to tell; add --notify COMMAND")
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
    """A function that waits for some seconds; with `until_closed` it returns True once stdin is closed."""

    def wait(seconds: float) -> bool:
        if not until_closed:
            time.sleep(seconds)
            return False
        if os.nice(0) == 0:
            os.nice(10)  # the trainers go first
        ready, _, _ = select.select([0], [], [], seconds)
        return bool(ready) and not os.read(0, 4096)

    return wait
