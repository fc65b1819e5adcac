"""The database file: where it is, whether it may be used, and how a transaction is done.

What depends on the engine is in runner/sqlite.py, statements about jobs in runner/jobs.py, tables in
runner/schema.py, the schema's history in runner/migrations/.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from model.config import ConfigError
from runner import sqlite
from runner.schema import HEAD, meta
from runner.sqlite import now

T = TypeVar("T")


class StoreRefused(Exception):
    """The database must not be used as it is: schema, format or location."""

    exit_code = 78


class StoreUnreachable(Exception):
    """There is no database there, or it went away."""

    exit_code = 69


class StoreUnavailable(Exception):
    """Not now: locked by another connection, or no room on the disk. Trying again is right."""

    exit_code = 69


@dataclass
class Store:
    """An open database: `write` for transactions that change it, `read` for those that must not."""

    path: Path
    engine: sa.Engine
    reader: sa.Engine
    database_id: str
    file_id: tuple[int, int]

    def write(self, transaction: Callable[[sa.Connection], T], patience_seconds: float = 60.0) -> T:
        """Run one transaction, waiting for locks; it may run again, so it only touches the database.

        Raises:
            StoreUnavailable: still locked or full after `patience_seconds`.
            Exception: whatever `transaction` raises, after a rollback.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                return self.try_write(transaction)
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise

    def try_write(self, transaction: Callable[[sa.Connection], T]) -> T:
        """One try of `write`: returns or raises within about the busy timeout."""
        try:
            with self.engine.begin() as connection:
                return transaction(connection)
        except sa.exc.OperationalError as error:
            unavailable = _unavailable(error)
            if unavailable is None:
                raise
            raise unavailable from error

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A deferred transaction on a query-only connection; load into memory and leave."""
        try:
            with self.reader.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            unavailable = _unavailable(error)
            if unavailable is None:
                raise
            raise unavailable from error

    def check_identity(self) -> None:
        """Hold the open database against its path: WAL writes go on silently in a file that was moved.

        Raises:
            StoreUnreachable: the file was moved, deleted or replaced.
        """
        try:
            found = os.stat(self.path)
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self.file_id:
            raise StoreUnreachable(
                f"{self.path}: the database was moved, deleted or replaced while in use; "
                "put it back and start the worker again"
            )

    def close(self) -> None:
        """Fold the WAL back (the last connection does) and close."""
        self.reader.dispose()
        self.engine.dispose()


def _unavailable(error: sa.exc.OperationalError) -> StoreUnavailable | None:
    if sqlite.result_code(error) in sqlite.BUSY:
        return StoreUnavailable("the database is locked by another program")
    if sqlite.result_code(error) in sqlite.NO_ROOM:
        return StoreUnavailable("the database could not be written: is the disk full?")
    return None


def open_store(db: str, create: bool = False) -> Store:
    """Open the database at a path (or sqlite:/// URL), checked; made when `create` and nothing is there.

    Raises:
        StoreUnreachable: nothing is there, or it cannot be opened.
        StoreRefused: not a database of this program's schema, or on a network file system.
    """
    path = database_path(db)
    if not path.exists() and not create:
        raise StoreUnreachable(
            f"{path}: no database there; `python cli.py enqueue --grid factorial` makes it"
        )
    refuse_network_file_system(path)
    engine = sqlite.connect(path, begin="BEGIN IMMEDIATE", query_only=False)
    reader = sqlite.connect(path, begin="BEGIN", query_only=True)
    try:
        # Looked at before the writing engine connects: that would change another program's journal mode.
        version = _schema_version(reader)
        if version == "" and create:
            from runner.migrations import upgrade  # Alembic is needed only here: half a second of imports

            upgrade(engine)
        elif version != HEAD:
            _refuse_schema(path, version)
        with reader.begin() as connection:
            database_id = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "database_id"))
    except sa.exc.DatabaseError as error:
        raise _refusal(error, path) from error
    found = os.stat(path)
    return Store(path, engine, reader, str(database_id), (found.st_dev, found.st_ino))


def upgrade_store(db: str) -> tuple[str, str]:
    """Bring the database to this program's schema; returns the version before and after.

    Raises:
        StoreUnreachable: nothing is there.
        StoreRefused: not a database of this program, or newer than it.
    """
    path = database_path(db)
    if not path.exists():
        raise StoreUnreachable(f"{path}: no database there")
    refuse_network_file_system(path)
    reader = sqlite.connect(path, begin="BEGIN", query_only=True)
    engine = sqlite.connect(path, begin="BEGIN IMMEDIATE", query_only=False)
    try:
        before = _schema_version(reader)
        if not before or before > HEAD:
            _refuse_schema(path, before)
        if before != HEAD:
            from runner.migrations import upgrade

            upgrade(engine)
        return str(before), HEAD
    except sa.exc.DatabaseError as error:
        raise _refusal(error, path) from error
    finally:
        reader.dispose()
        engine.dispose()


def backup_store(db: str, target: Path) -> None:
    """Copy the database to a new file, as it stands at one moment, while others go on writing.

    Raises:
        StoreUnreachable: there is none, or the copy cannot be written.
        ConfigError: the target exists; a backup never overwrites.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a new file")
    store = open_store(db)
    beside = target.with_name(target.name + ".part")
    try:
        copy = sqlite.driver().connect(str(beside))
        with store.read() as connection:
            connection.connection.driver_connection.backup(copy)  # type: ignore[union-attr]
        copy.close()
        os.rename(beside, target)
    except (sqlite.driver().Error, OSError) as error:
        beside.unlink(missing_ok=True)
        raise StoreUnreachable(f"{target}: cannot be written ({error}); choose another place") from error
    finally:
        store.close()


def refuse_network_file_system(path: Path) -> None:
    """Raises StoreRefused where SQLite's locks would not hold."""
    found = sqlite.network_file_system(path)
    if found is not None:
        folder, kind = found
        raise StoreRefused(
            f"{path}: on {folder}, a {kind} file system, where SQLite's locks do not hold; "
            "put it on a local disk with --db"
        )


def database_path(db: str) -> Path:
    """The file of a path or a sqlite:/// URL.

    Raises:
        StoreRefused: another engine's URL; its credentials are not repeated.
    """
    if "://" not in db:
        return Path(db)
    url = sa.make_url(db)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise StoreRefused(f"--db: {url.get_backend_name()} is not supported; give a path or sqlite:///PATH")
    return Path(url.database)


def _schema_version(engine: sa.Engine) -> str | None:
    """The version; "" for a file without tables, None for another program's tables."""
    with engine.connect() as connection:
        tables = set(sa.inspect(connection).get_table_names())
        if "alembic_version" in tables and "jobs" in tables:
            return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))
    return None if tables else ""


def _refuse_schema(path: Path, version: str | None) -> None:
    if not version:
        raise StoreRefused(f"{path}: not a Nightshift database; name another file with --db")
    if version < HEAD:
        raise StoreRefused(f"{path}: schema {version}, older than {HEAD}; run `python cli.py db upgrade`")
    raise StoreRefused(f"{path}: schema {version}, newer than this program's {HEAD}; update the program")


def _refusal(error: sa.exc.DatabaseError, path: Path) -> Exception:
    if sqlite.result_code(error) in sqlite.DAMAGED:
        return StoreRefused(f"{path}: damaged, or not a SQLite database; restore a copy or name another --db")
    if sqlite.result_code(error) in sqlite.BUSY:
        return StoreUnreachable(f"{path}: locked by another program; close it and try again")
    return StoreUnreachable(f"{path}: cannot be opened ({error.orig}); check the folder and its permissions")


__all__ = ["Store", "StoreRefused", "StoreUnavailable", "StoreUnreachable", "now", "open_store"]
