"""What may be wrong with a database: three kinds, each with its exit code and what is right to do.

Raised by runner/queue/sqlite.py, runner/queue/postgresql.py and runner/queue/store.py; a command prints them
in one line.
"""

from __future__ import annotations


class StoreRefused(Exception):
    """The database must not be used as it is: schema, format or location."""

    exit_code = 78


class StoreUnreachable(Exception):
    """There is no database there, or it went away."""

    exit_code = 69


class StoreUnavailable(Exception):
    """Not now: locked, out of room, or its server is away. Trying again is right."""

    exit_code = 69


class StoreReadOnly(StoreUnavailable):
    """A file that cannot be written: a worker waits for that to change, a command says so at once.

    Not a server's answer: one that fails over is read-only for a moment.
    """
