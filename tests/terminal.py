"""A real pseudo-terminal with a program in it, and what a person would see on its screen.

The emulator knows what rich and typer send: moves, erasing, the screen of its own, colours.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[=>78]|\x1b\][^\x07]*\x07")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")
"""A change to a foreground or background colour; bold and dim are none."""


class Screen:
    """Rows and columns of letters, moved by what a program sends."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.alternate = False
        self._cells = self._blank()
        self._kept = self._blank()
        self._row = self._column = 0
        self._pen = ""  # the colour sequences since the last reset

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            found = _SEQUENCE.match(text, position)
            if found:
                self._command(found[1] or "", found[2] or "")
                position = found.end()
            else:
                self._letter(text[position])
                position += 1

    @property
    def lines(self) -> list[str]:
        return ["".join(letter for letter, _ in row).rstrip() for row in self._cells]

    @property
    def coloured(self) -> str:
        """The screen with its colours, as a program would print it."""
        return "\n".join("".join(f"{pen}{letter}\x1b[0m" for letter, pen in row) for row in self._cells)

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()

    def _blank(self) -> list[list[tuple[str, str]]]:
        return [[(" ", "")] * self.columns for _ in range(self.rows)]

    def _letter(self, letter: str) -> None:
        if letter == "\n":
            self._line_feed()
        elif letter == "\r":
            self._column = 0
        elif letter == "\b":
            self._column = max(0, self._column - 1)
        elif letter.isprintable():
            wide = 2 if unicodedata.east_asian_width(letter) in "WF" else 1
            if self._column + wide > self.columns:  # a line that is too long wraps, and is seen to
                self._column = 0
                self._line_feed()
            self._cells[self._row][self._column] = (letter, self._pen)
            if wide == 2:
                self._cells[self._row][self._column + 1] = ("", "")
            self._column += wide

    def _line_feed(self) -> None:
        if self._row + 1 == self.rows:
            self._cells = [*self._cells[1:], [(" ", "")] * self.columns]
        else:
            self._row += 1

    def _command(self, parameters: str, final: str) -> None:
        numbers = [int(part) for part in re.findall(r"\d+", parameters)]
        count = numbers[0] if numbers else 1
        if final == "m":
            self._pen = "" if parameters in ("", "0") else f"{self._pen}\x1b[{parameters}m"
        elif final == "A":
            self._row = max(0, self._row - count)
        elif final == "B":
            self._row = min(self.rows - 1, self._row + count)
        elif final == "C":
            self._column = min(self.columns - 1, self._column + count)
        elif final == "D":
            self._column = max(0, self._column - count)
        elif final == "G":
            self._column = count - 1
        elif final == "H":
            self._row, self._column = (numbers[0] - 1, numbers[1] - 1) if len(numbers) > 1 else (0, 0)
        elif final == "K":
            start = 0 if numbers == [2] else self._column
            self._cells[self._row][start:] = [(" ", "")] * (self.columns - start)
        elif final == "J":
            if numbers in ([2], [3]):
                self._cells = self._blank()
            else:
                self._cells[self._row + 1 :] = self._blank()[self._row + 1 :]
                self._command("", "K")
        elif final in "hl" and parameters == "?1049":
            self.alternate = final == "h"
            self._cells, self._kept = self._kept, self._cells
            if self.alternate:
                self._cells = self._blank()


class Terminal:
    """A program whose stdin, stdout and stderr are one terminal; use it as a context."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        rows: int = 24,
        columns: int = 80,
        encoding: str = "utf-8",
    ) -> None:
        self.screen, self.raw = Screen(rows, columns), ""
        self._main, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        unset = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
        inherited = {name: value for name, value in environment.items() if name not in unset}
        given = {name: value for name, value in environment.items() if name == "NO_COLOR"}
        # The terminal is the program's own, so that Ctrl-C becomes a signal.
        self.process = subprocess.Popen(
            [*arguments],
            cwd=cwd,
            env={**inherited, "TERM": "xterm-256color", **given},
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(child)
        self._decode = codecs.getincrementaldecoder(encoding)("replace").decode

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.close()

    def close(self) -> None:
        """Close the window: the kernel sends SIGHUP, and every later write of the program fails with EIO."""
        if self._main >= 0:
            os.close(self._main)
        self._main = -1

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def until(self, condition: Callable[[Screen], object], seconds: float = 90) -> Screen:
        """Read on until the screen is as expected; the time is only how long a failing test takes."""
        deadline = time.monotonic() + seconds
        while not condition(self.screen):
            assert time.monotonic() < deadline, f"never seen; the screen is:\n{self.screen.text}"
            assert self._read(0.1) or condition(self.screen), f"ended with:\n{self.screen.text}"
        return self.screen

    def end(self, seconds: float = 120, keys: str = "") -> int:
        """Read until the program has ended, typing `keys` each second; returns its exit code."""
        deadline, typed_at = time.monotonic() + seconds, 0.0
        while self._read(0.1):
            assert time.monotonic() < deadline, f"still running:\n{self.screen.text}"
            if keys and time.monotonic() - typed_at > 1.0:
                typed_at = time.monotonic()
                self.type(keys)
        return self.process.wait()

    def _read(self, seconds: float) -> bool:
        """Take what has come; False at the end."""
        ready, _, _ = select.select([self._main], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._main, 1 << 16)
        except OSError:  # Linux: the last program on the other side is gone
            return False
        text = self._decode(data)
        self.raw += text
        self.screen.feed(text)
        return bool(data)
