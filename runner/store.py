"""The database file: where it is, whether it may be used, and how a transaction is done.

Everything that depends on the engine stands here, once. Statements about jobs are in runner/jobs.py,
tables in runner/schema.py, the schema's history in runner/migrations/.

Why the settings are what they are: docs/decisions/0001-sqlite.md.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from model.config import ConfigError
from runner.schema import HEAD, meta

T = TypeVar("T")

BUSY_TIMEOUT_MS = 250
"""Short, so that waiting is a loop in Python which still serves signals."""
_BUSY, _NO_ROOM, _DAMAGED = (5, 6), (10, 13), (11, 26)
"""SQLite's primary result codes: BUSY and LOCKED, IOERR and FULL, CORRUPT and NOTADB."""
_FIRST_SAFE_WAL = (3, 51, 3)
"""Earlier versions can corrupt a WAL database that two connections write (the WAL-reset bug)."""
_NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "fuse.sshfs",
    "lustre",
    "beegfs",
    "afs",
}


class StoreRefused(Exception):
    """The database must not be used as it is: schema, format or location."""

    exit_code = 78


class StoreUnreachable(Exception):
    """There is no database there, or it went away."""

    exit_code = 69


class StoreUnavailable(Exception):
    """Not now: locked by another connection, or no room on the disk. Trying again is right."""

    exit_code = 69


class now(FunctionElement[float]):
    """Seconds since 1970 by the database's clock, so that hosts with wrong clocks agree."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now)
def _now(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())"


def sqlite_driver() -> ModuleType:
    """pysqlite3, which carries a recent SQLite, or the standard library's where that is missing."""
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        return importlib.import_module("sqlite3.dbapi2")


def journal() -> tuple[str, str]:
    """(journal_mode, synchronous): WAL and FULL where the library's WAL is safe, else DELETE and EXTRA."""
    safe = sqlite_driver().sqlite_version_info >= _FIRST_SAFE_WAL
    return ("WAL", "FULL") if safe else ("DELETE", "EXTRA")


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
        with self.reader.begin() as connection:
            yield connection

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
    if _code(error) in _BUSY:
        return StoreUnavailable("the database is locked by another program")
    if _code(error) in _NO_ROOM:
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
    engine = _engine(path, begin="BEGIN IMMEDIATE", query_only=False)
    reader = _engine(path, begin="BEGIN", query_only=True)
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
    reader = _engine(path, begin="BEGIN", query_only=True)
    engine = _engine(path, begin="BEGIN IMMEDIATE", query_only=False)
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
        copy = sqlite_driver().connect(str(beside))
        with store.read() as connection:
            connection.connection.driver_connection.backup(copy)  # type: ignore[union-attr]
        copy.close()
        os.rename(beside, target)
    except (sqlite_driver().Error, OSError) as error:
        beside.unlink(missing_ok=True)
        raise StoreUnreachable(f"{target}: cannot be written ({error}); choose another place") from error
    finally:
        store.close()


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


def refuse_network_file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> None:
    """SQLite's locks are not kept by network file systems.

    Raises:
        StoreRefused: the path is on one.
    """
    if not mounts.exists():
        return
    target = path.resolve()
    best, kind = Path("/"), ""
    for line in mounts.read_text().splitlines():
        _, where, file_system, *_ = line.split()
        mount = Path(where.replace("\\040", " "))
        if target.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, file_system
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StoreRefused(
            f"{path}: on {best}, a {kind} file system, where SQLite's locks do not hold; "
            "put it on a local disk with --db"
        )


def _engine(path: Path, begin: str, query_only: bool) -> sa.Engine:
    # One connection an engine: a worker is one thread, and a second would only contend with the first.
    engine = sa.create_engine(
        f"sqlite:///{path}", module=sqlite_driver(), poolclass=sa.pool.QueuePool, pool_size=1, max_overflow=0
    )

    @sa.event.listens_for(engine, "connect")
    def _connected(dbapi_connection: Any, _: Any) -> None:
        # The driver's own transaction handling is off: the begin event below is the only BEGIN.
        dbapi_connection.isolation_level = None
        mode, synchronous = journal()
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA foreign_keys = ON")
        if query_only:
            cursor.execute("PRAGMA query_only = ON")
        else:
            cursor.execute(f"PRAGMA synchronous = {synchronous}")
            if cursor.execute("PRAGMA journal_mode").fetchone()[0].upper() != mode:
                # Changing the mode needs the file alone, and SQLite does not wait for that by itself.
                _patiently(cursor.execute, f"PRAGMA journal_mode = {mode}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)
        if query_only:
            # Take the read lock here, where waiting is safe: a last writer may be folding the log back.
            _patiently(connection.exec_driver_sql, "SELECT 1 FROM sqlite_master LIMIT 1")

    return engine


def _patiently(execute: Callable[[str], Any], statement: str) -> None:
    """Execute what SQLite answers with "locked" although nothing is wrong, for at most 30 s."""
    deadline = time.monotonic() + 30
    while True:
        try:
            execute(statement).fetchall()
            return
        except (sqlite_driver().OperationalError, sa.exc.OperationalError) as error:
            if _code(error) not in _BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


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


def _code(error: Exception) -> int:
    """SQLite's primary result code of an error, SQLAlchemy's or the driver's; 0 where it has none."""
    return (getattr(getattr(error, "orig", error), "sqlite_errorcode", None) or 0) & 0xFF


def _refusal(error: sa.exc.DatabaseError, path: Path) -> Exception:
    if _code(error) in _DAMAGED:
        return StoreRefused(f"{path}: damaged, or not a SQLite database; restore a copy or name another --db")
    if _code(error) in _BUSY:
        return StoreUnreachable(f"{path}: locked by another program; close it and try again")
    return StoreUnreachable(f"{path}: cannot be opened ({error.orig}); check the folder and its permissions")
