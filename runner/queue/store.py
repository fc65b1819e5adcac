"""The database: where it is, whether it may be used, and how a transaction is done.

What depends on the engine is in runner/queue/sqlite.py, runner/queue/postgresql.py and
runner/queue/dialects.py, statements about jobs in runner/queue/jobs.py, tables in runner/queue/schema.py,
how a database is made and upgraded in runner/queue/migrations/.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from model.config import ConfigError
from runner.queue import postgresql, sqlite
from runner.queue.dialects import now
from runner.queue.errors import StoreReadOnly, StoreRefused, StoreUnavailable, StoreUnreachable
from runner.queue.postgresql import Server
from runner.queue.schema import HEAD, meta
from runner.queue.sqlite import File

T = TypeVar("T")
SILENT_SECONDS = 1.0
"""A command waits no longer without a word."""


@dataclass
class Store:
    """An open database: `write` for transactions that change it, `read` for those that must not."""

    place: File | Server
    engine: sa.Engine
    reader: sa.Engine
    database_id: str
    identity: tuple[object, ...]
    """What `place` was when it was last looked at."""
    told: Callable[[str], None] | None = None
    """Who hears that `write` waits; somebody who waits too, and for whom read-only is an answer."""

    @property
    def name(self) -> str:
        """For people, and for --db: a path, or a URL without password."""
        return self.place.name

    @property
    def path(self) -> Path:
        """The file of a SQLite database; a server's database has none."""
        assert isinstance(self.place, File)
        return self.place.path

    def write(self, transaction: Callable[[sa.Connection], T], patience_seconds: float = 60.0) -> T:
        """Run one transaction, waiting for locks; it may run again, so it only touches the database.

        Raises:
            StoreUnavailable: still locked, full or away after `patience_seconds`.
            StoreReadOnly: at once, where somebody is told.
            StoreRefused: the database is damaged.
            Exception: whatever `transaction` raises, after a rollback.
        """
        began, told = time.monotonic(), self.told
        while True:
            try:
                return self.try_write(transaction)
            except StoreUnavailable as error:
                waited = time.monotonic() - began
                if waited > patience_seconds or (self.told and isinstance(error, StoreReadOnly)):
                    raise
                if told and waited > SILENT_SECONDS:
                    told(f"waiting: {error} (for {patience_seconds - waited:.0f} s at most)")
                    told = None

    def try_write(self, transaction: Callable[[sa.Connection], T]) -> T:
        """One try of `write`: returns or raises within about the busy timeout.

        When the answer to COMMIT is lost with the connection, the transaction may have been done: the next
        try finds out by its fence, and rows that are there already are passed over.
        """
        try:
            with self.engine.begin() as connection:
                return transaction(connection)
        except sa.exc.DBAPIError as error:
            meaning = self.place.meaning(error)
            if meaning is None:
                raise
            if isinstance(meaning, StoreUnavailable):
                time.sleep(self.place.pause_seconds * random.random())
            raise meaning from error

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One unmoving moment of the database, on a connection that cannot write; load and leave."""
        try:
            with self.reader.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            meaning = self.place.meaning(error)
            if meaning is None:
                raise
            raise meaning from error

    def check_identity(self) -> None:
        """Hold the open database against what was opened.

        A server that does not answer now is no other database: the next transaction says that it is away.

        Raises:
            StoreUnreachable: the database, or a file beside it, was moved, deleted or replaced.
            StoreRefused: it is damaged.
        """
        try:
            found = self.place.identity(self.reader)
        except sa.exc.DBAPIError as error:
            meaning = self.place.meaning(error)
            if isinstance(meaning, StoreUnavailable):
                return
            raise meaning or error from error
        # A file that was not there yet may come: SQLite makes -wal and -shm when it first needs them.
        if any(was not in (None, is_) for was, is_ in zip(self.identity, found, strict=True)):
            raise StoreUnreachable(
                f"{self.name}: the database, or its -wal or -shm, was moved, deleted or replaced while in "
                "use; put it back and start the worker again"
            )
        self.identity = found

    def close(self) -> None:
        """Close; on SQLite the last connection folds the WAL back."""
        self.reader.dispose()
        self.engine.dispose()


def open_store(db: str, create: bool = False) -> Store:
    """Open the database at a path or URL, checked; made when `create` and nothing is there.

    Raises:
        StoreUnreachable: nothing is there, or it cannot be opened.
        StoreRefused: not a database of this program's schema, or in a place that is not fit for one.
    """
    place = locate(db)
    place.check(create)
    engine, reader = place.connect()
    try:
        # Looked at before the writing engine connects: that would change another program's journal mode.
        version = _schema_version(place, reader)
        if version == "" and create:
            _upgrade(place, engine)
        elif version != HEAD:
            _refuse_schema(place, version)
        with reader.begin() as connection:
            database_id = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "database_id"))
        return Store(place, engine, reader, str(database_id), place.identity(reader))
    except sa.exc.DBAPIError as error:
        raise place.refusal(error) from error


def upgrade_store(db: str) -> tuple[str, str]:
    """Bring the database to this program's schema; returns the version before and after.

    Raises:
        StoreUnreachable: nothing is there.
        StoreRefused: not a database of this program, or newer than it.
    """
    place = locate(db)
    place.check(create=False)
    engine, reader = place.connect()
    try:
        before = _schema_version(place, reader)
        if not before or before > HEAD:
            _refuse_schema(place, before)
        if before != HEAD:
            _upgrade(place, engine)
        return str(before), HEAD
    except sa.exc.DBAPIError as error:
        raise place.refusal(error) from error
    finally:
        reader.dispose()
        engine.dispose()


def _upgrade(place: File | Server, engine: sa.Engine, patience_seconds: float = 60.0) -> None:
    """Make or alter the tables, waiting for another process that is at it."""
    from runner.queue.migrations import upgrade  # Alembic is needed only here: half a second of imports

    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return upgrade(engine)
        except sa.exc.DBAPIError as error:
            if not isinstance(place.meaning(error), StoreUnavailable) or time.monotonic() > deadline:
                raise


def backup_store(db: str, target: Path) -> None:
    """Copy a SQLite database to a new file, as it stands at one moment, while others go on writing.

    Raises:
        StoreUnreachable: there is none, or the copy cannot be written.
        ConfigError: the target exists (a backup never overwrites), or the database is a server's.
    """
    place = locate(db)
    if isinstance(place, Server):
        raise ConfigError(
            f"{place.name}: PostgreSQL has its own backup: pg_dump --format=custom --file={target} NAME; "
            "or `python cli.py db copy` makes a SQLite file of it"
        )
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a new file")
    store = open_store(db)
    beside = target.with_name(target.name + ".part")
    try:
        copy = sqlite.driver().connect(str(beside))
        with store.read() as connection:
            connection.connection.driver_connection.backup(copy)  # type: ignore[union-attr]
        found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        copy.close()
        if found != "ok":  # page by page, damage and all: better no backup than that one
            beside.unlink()
            raise place.damaged(found)
        os.rename(beside, target)
    except (sqlite.driver().Error, OSError) as error:
        beside.unlink(missing_ok=True)
        raise StoreUnreachable(f"{target}: cannot be written ({error}); choose another place") from error
    finally:
        store.close()


def locate(db: str) -> File | Server:
    """The file or server of a path or URL.

    Raises:
        StoreRefused: a URL of another engine, or one that cannot be read; neither is repeated.
    """
    if "://" not in db:
        return File(Path(db))
    forms = "give a path, sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME"
    try:
        url = sa.make_url(db)
        engine = url.get_backend_name()
    except (sa.exc.ArgumentError, ValueError):  # its text may hold a part of the password
        raise StoreRefused(f"--db: not a URL that can be read; {forms}") from None
    if engine == "postgresql":
        return postgresql.locate(url)
    if engine != "sqlite" or not url.database:
        raise StoreRefused(f"--db: {engine} is not supported; {forms}")
    return File(Path(url.database))


def _schema_version(place: File | Server, engine: sa.Engine) -> str | None:
    """The version; "" for a database without tables, None for another program's tables."""
    with engine.connect() as connection:
        place.refuse_unfit(connection)
        tables = set(sa.inspect(connection).get_table_names())
        if "alembic_version" in tables and "jobs" in tables:
            return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))
    return None if tables else ""


def _refuse_schema(place: File | Server, version: str | None) -> None:
    name = place.name
    if version == "" and isinstance(place, Server):
        raise StoreUnreachable(f"{name}: empty; `python cli.py enqueue --grid factorial` makes the tables")
    if not version:
        another = "file" if isinstance(place, File) else "database"
        raise StoreRefused(f"{name}: not a Nightshift database; name another {another} with --db")
    if version < HEAD:
        raise StoreRefused(f"{name}: schema {version}, older than {HEAD}; run `python cli.py db upgrade`")
    raise StoreRefused(f"{name}: schema {version}, newer than this program's {HEAD}; update the program")


__all__ = ["Store", "StoreRefused", "StoreUnavailable", "StoreUnreachable", "now", "open_store"]
