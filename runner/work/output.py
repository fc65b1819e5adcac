"""stdout and stderr of every process here: a write that fails costs a line, and ends nothing but an answer.

Notices (stderr; all that `work` and its trainers print) are lost if they cannot be written: the terminal is
closed, the reader gone or asleep, the disk full. An answer (stdout of the other commands) that cannot be
written ends its command, since exit code 0 would say that it arrived.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import Any

PATIENCE_SECONDS = 2.0
"""How long a notice waits for a reader that has stopped reading; the lines after it do not wait."""
STAND_INS = str.maketrans("▁▂▃▄▅▆▇█━╌→▶►■✗×·‖…–—−±≤²’”", "12345678=.>>>#xx.|~---~<2'\"")
"""For a terminal whose encoding lacks the letter; any other becomes `?`. One letter each: columns stay."""


class AnswerLost(Exception):
    """Standard output cannot be written; the message says why."""

    exit_code = 73


class ReaderLeft(Exception):
    """Whoever read standard output is gone, as in `report | head -1`: nothing is left to be said."""

    exit_code = 141  # what a shell shows for a program that SIGPIPE (13) has ended: 128 + 13


class Descriptor(io.RawIOBase):
    """An open file descriptor; what becomes of a write that fails is decided here, not where one prints."""

    def __init__(self, descriptor: int, answer: bool = False) -> None:
        self.answer = answer
        self._descriptor = descriptor
        self._asleep = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write all of it, or lose what cannot be written.

        Raises:
            AnswerLost, ReaderLeft: it is an answer; once, so that what is still buffered is then dropped.
        """
        left = memoryview(data)
        try:
            while left and self._has_room():
                left = left[os.write(self._descriptor, left[: select.PIPE_BUF]) :]
        except OSError as error:
            if self.answer:
                self.answer = False
                if error.errno == errno.EPIPE:
                    raise ReaderLeft from None
                raise AnswerLost(f"the answer cannot be written to stdout: {error.strerror}") from None
        return len(data)

    def _has_room(self) -> bool:
        """Whether a small write returns at once, or fails; for an answer there is time to wait."""
        milliseconds = None if self.answer else 0 if self._asleep else PATIENCE_SECONDS * 1000
        self._asleep = not self._poll.poll(milliseconds)
        return not self._asleep


def set_up() -> None:
    """Replace sys.stdout, for an answer, and sys.stderr, for notices."""
    for number in (0, 1, 2):  # `2>&-`: no database may be opened under that number and take the notices
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)
    sys.stdout = stream(1, getattr(sys.stdout, "encoding", "utf-8"), answer=True)
    sys.stderr = stream(2, getattr(sys.stderr, "encoding", "utf-8"))


def expendable() -> None:
    """From now on stdout is for notices too: `work` ends for no line of its summary."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, Descriptor):
        raw.answer = False


def stream(number: int, terminal_encoding: str = "utf-8", answer: bool = False) -> io.TextIOWrapper:
    """Text to a descriptor: in UTF-8, or as the terminal takes it. No letter raises a UnicodeError.

    It is flushed after each line, except for an answer into a pipe or file.
    """
    codecs.register_error("stand-in", _stand_in)
    raw = Descriptor(number, answer)
    by_line = raw.isatty() or not answer
    encoding = terminal_encoding if raw.isatty() else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="stand-in", line_buffering=by_line)


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end].translate(STAND_INS)
    return "".join(letter if letter.isascii() else "?" for letter in letters), error.end
