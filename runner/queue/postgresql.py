"""Everything that depends on PostgreSQL: its URL without secrets, its connection, its errors.

The counterpart of runner/queue/sqlite.py. Why the settings are what they are:
docs/decisions/0004-postgresql.md. Who uses it: runner/queue/store.py. psycopg is imported with the first
connection, never for a SQLite database.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from runner.queue.errors import StoreRefused, StoreUnavailable, StoreUnreachable
from runner.queue.schema import meta

SETTINGS = {
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "120s",
}
"""Waiting is a loop in Python, as on SQLite; a worker that was stopped in mid-transaction frees its rows."""
CONNECTING = {
    "application_name": "nightshift",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""A server that lost its power is noticed after 25 s of silence: before two thirds of a lease of 60 s."""
PUBLIC = ("host", "port", "dbname", "user", "service", "sslmode")
"""Parameters of a URL that may be shown; every other one may carry a secret, or a path to one."""
DAMAGED = ("XX001", "XX002")
"""SQLSTATEs: a page, or an index, is not what the server wrote."""
LOST = ("08", "57P")
"""SQLSTATE classes: connection exceptions; a server that is shut down or starting."""
BUSY = ("40001", "40P01", "55P03", "53300", "57014")
"""SQLSTATEs: serialization, deadlock, lock timeout, too many connections, cancelled."""
READ_ONLY = "25006"
"""SQLSTATE of a server that was the main one until a failover."""
NO_ROOM = ("53100", "53200", "58030")
"""SQLSTATEs: disk full, out of memory, an error of the disk."""


@dataclass(frozen=True)
class Server:
    """A database on a PostgreSQL server; sqlite.File is the other place where one may be."""

    url: sa.URL = field(repr=False)

    pause_seconds = 0.5
    """Longest pause before the next try: a refused connection answers at once, to every worker of a lab."""

    @property
    def name(self) -> str:
        """The URL as it may be shown: without password."""
        query = {key: value for key, value in self.url.query.items() if key in PUBLIC}
        return self.url._replace(password=None).set(query=query).render_as_string()

    @property
    def folder(self) -> Path:
        """The folder that `runs` is in by default: the current one."""
        return Path()

    def check(self, create: bool) -> None:
        """Nothing can be said before connecting."""

    def connect(self) -> tuple[sa.Engine, sa.Engine]:
        """Two engines over one connection: for writing, and for reading (one snapshot, read-only).

        Raises:
            StoreUnreachable: psycopg is not installed.
        """
        options = {key: value for key, value in CONNECTING.items() if key not in self.url.query}
        try:
            # One connection a worker: a server has a hundred by default. More only while reads are nested.
            engine = sa.create_engine(
                self.url,
                isolation_level="READ COMMITTED",
                pool_size=1,
                max_overflow=2,
                pool_pre_ping=True,
                connect_args=options,
            )
        except ImportError as error:
            raise StoreUnreachable(
                "psycopg is missing; pip install -r requirements.txt, in the environment that runs cli.py"
            ) from error
        sa.event.listen(engine, "connect", _connected)
        reading = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        return engine, engine.execution_options(**reading)

    def refuse_unfit(self, connection: sa.Connection) -> None:
        """Raises StoreRefused if text would not be kept as it is."""
        raw: Any = connection.connection.driver_connection
        encoding = raw.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreRefused(
                f"{self.name}: its encoding is {encoding}, not UTF8; make another with "
                "`createdb --encoding UTF8 --template template0 NAME`"
            )

    def meaning(self, error: sa.exc.DBAPIError) -> StoreUnavailable | StoreRefused | None:
        """The error as "not now" or "damaged"; None where it is a bug."""
        state = sqlstate(error)
        if state in DAMAGED:
            how = str(error.orig).partition("\n")[0]
            return StoreRefused(f"{self.name}: damaged ({how}); stop every worker, restore the last pg_dump")
        if state in NO_ROOM:
            return StoreUnavailable("the database could not be written: is the server's disk full?")
        if state == READ_ONLY:
            return StoreUnavailable("the database is read-only now")
        if state in BUSY:
            return StoreUnavailable("the database is locked or busy")
        if error.connection_invalidated or state.startswith(LOST) or _never_connected(error):
            return StoreUnavailable("the connection to the database is lost; trying again")
        return None

    def refusal(self, error: sa.exc.DBAPIError) -> Exception:
        """What a first connection's error means to a person; the password is in no part of it."""
        if sqlstate(error) in BUSY:
            return StoreUnreachable(f"{self.name}: locked or busy; try again")
        said = " ".join(str(error.orig).split())
        if self.url.password:
            said = said.replace(str(self.url.password), "***")
        return StoreUnreachable(
            f"{self.name}: cannot be used ({said}); check server, name and role, and give the password "
            "in PGPASSWORD or ~/.pgpass"
        )

    def identity(self, reader: sa.Engine) -> tuple[object, ...]:
        """The database's id as its `meta` says it now; None where it, or the whole database, is gone."""
        try:
            with reader.connect() as connection:
                return (connection.scalar(sa.text("SELECT value FROM meta WHERE key = 'database_id'")),)
        except sa.exc.ProgrammingError:  # no such table
            return (None,)
        except sa.exc.OperationalError as error:
            if _never_connected(error) and f'"{self.url.database}" does not exist' in str(error.orig):
                return (None,)
            raise


def locate(url: sa.URL) -> Server:
    """The server's database of a URL; a password among its parameters is put where it is known as one."""
    query = dict(url.query)
    password = query.pop("password", None) or url.password
    return Server(url.set(drivername="postgresql+psycopg", query=query, password=str(password or "") or None))


def sqlstate(error: sa.exc.DBAPIError) -> str:
    """The server's five-letter code; "" if it did not answer."""
    return getattr(error.orig, "sqlstate", None) or ""


def set_sequences(connection: sa.Connection, tables: list[sa.Table]) -> None:
    """Let the next id of each table follow its highest one: rows that came with their ids did not."""
    for table in tables:
        column = table.autoincrement_column
        if column is not None:
            sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
            spent = sa.select(sa.cast(meta.c.value, sa.BigInteger))  # of deleted rows: never given again
            spent = spent.where(meta.c.key == f"spent_{table.name}")
            highest = sa.func.greatest(sa.func.max(column), spent.scalar_subquery())
            connection.execute(
                sa.select(sa.func.setval(sequence, sa.func.coalesce(highest, 1), highest.is_not(None)))
            )


def _never_connected(error: sa.exc.DBAPIError) -> bool:
    return isinstance(error, sa.exc.OperationalError) and not sqlstate(error)


def _connected(raw: Any, _: Any) -> None:
    from psycopg.adapt import Loader

    class Exact(Loader):
        """A sum of whole numbers comes as NUMERIC: an int, as on SQLite, and not a Decimal."""

        def load(self, data: Any) -> int | float:
            text = bytes(data).decode()
            return int(text) if text.lstrip("-").isdigit() else float(text)

    raw.adapters.register_loader("numeric", Exact)
    raw.autocommit = True  # else SET would open a transaction, and the pool's reset would take it back
    for setting, value in SETTINGS.items():
        raw.execute(f"SET {setting} = '{value}'")
    raw.autocommit = False
