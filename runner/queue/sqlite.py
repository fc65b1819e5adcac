"""Everything that depends on SQLite: its file, its driver, its settings, its result codes.

Why the settings are what they are: docs/decisions/0001-sqlite.md. Who uses it: runner/queue/store.py. The
counterpart for a server: runner/queue/postgresql.py.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from runner.queue.errors import StoreReadOnly, StoreRefused, StoreUnavailable, StoreUnreachable

BUSY_TIMEOUT_MS = 250
"""How long SQLite waits for a lock. Short: waiting longer is a loop in Python, which serves signals."""
BUSY, NO_ROOM, READ_ONLY, DAMAGED, NOT_A_DATABASE = (5, 6), (10, 13), (8,), (11, 26), 26
"""SQLite's primary result codes: BUSY and LOCKED, IOERR and FULL, READONLY, CORRUPT and NOTADB."""
BESIDE = ("", "-wal", "-shm")
"""The files of a database that is in use: what was committed last is in the -wal alone."""
FIRST_SAFE_WAL = (3, 51, 3)
"""Earlier versions can corrupt a WAL database that two connections write (the WAL-reset bug)."""
NETWORK_FILE_SYSTEMS = {
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


@dataclass(frozen=True)
class File:
    """A database in one file; postgresql.Server is the other place where one may be."""

    path: Path

    pause_seconds = 0.0
    """Pause before the next try: none, since SQLite has waited for the lock already."""

    @property
    def name(self) -> str:
        """As it may be shown, and given to --db."""
        return str(self.path)

    @property
    def folder(self) -> Path:
        """The folder that `runs` is in by default: the file's own."""
        return self.path.resolve().parent

    def check(self, create: bool) -> None:
        """Look before opening, which would make a file.

        Raises:
            StoreUnreachable: nothing is there, and `create` is not asked for.
            StoreRefused: it lies on a network file system, where SQLite's locks would not hold.
        """
        if not self.path.exists() and not create:
            raise StoreUnreachable(
                f"{self.path}: no database there; `python cli.py enqueue --grid factorial` makes it"
            )
        found = network_file_system(self.path)
        if found is not None:
            folder, kind = found
            raise StoreRefused(
                f"{self.path}: on {folder}, a {kind} file system, where SQLite's locks do not hold; "
                "put it on a local disk, or on a PostgreSQL server, with --db"
            )

    def connect(self) -> tuple[sa.Engine, sa.Engine]:
        """One engine for writing, one for reading, of a connection each."""
        immutable = self.path.exists() and not os.access(self.folder, os.W_OK) and not self._log_bytes()
        return (
            connect(self.path, begin="BEGIN IMMEDIATE", query_only=False, immutable=immutable),
            connect(self.path, begin="BEGIN", query_only=True, immutable=immutable),
        )

    def _log_bytes(self) -> int:
        """Size of the write-ahead log: what it holds is not in the file yet."""
        log = self.folder / f"{self.path.resolve().name}-wal"
        return log.stat().st_size if log.exists() else 0

    def refuse_unfit(self, connection: sa.Connection) -> None:
        """Every file is fit that could be opened."""

    def meaning(self, error: sa.exc.DBAPIError) -> StoreUnavailable | StoreRefused | None:
        """The error as "not now" or "damaged"; None where it is a bug."""
        code = result_code(error)
        if code in BUSY:
            return StoreUnavailable("the database is locked by another program")
        if code in NO_ROOM:
            return StoreUnavailable("the database could not be written: is the disk full?")
        if code in READ_ONLY:
            return StoreReadOnly(f"{self.path}: read-only now; look at its permissions and its disk")
        if code in DAMAGED:
            return self.damaged(str(error.orig))
        return None

    def damaged(self, how: str) -> StoreRefused:
        """What to do about a file that is not what SQLite wrote."""
        return StoreRefused(
            f"{self.path}: damaged ({' '.join(how.split())}); stop every worker, look with "
            "`python cli.py doctor`, and put the last `python cli.py db backup` in its place, or what "
            f"`sqlite3 {self.path} .recover` saves"
        )

    def refusal(self, error: sa.exc.DBAPIError) -> Exception:
        """What an error while opening means to a person."""
        code, path = result_code(error), self.path
        if code == NOT_A_DATABASE:
            return StoreRefused(
                f"{path}: damaged, or not a SQLite database; restore a copy or name another --db"
            )
        if code in DAMAGED:
            return self.damaged(str(error.orig))
        if code in BUSY:
            return StoreUnreachable(f"{path}: locked by another program; close it and try again")
        remedy = "check the folder and its permissions"
        if not os.access(self.folder, os.W_OK) and self._log_bytes():
            remedy = "its -wal can only be read where SQLite may write: copy both files to such a folder"
        return StoreUnreachable(f"{path}: cannot be opened ({error.orig}); {remedy}")

    def identity(self, _: sa.Engine) -> tuple[object, ...]:
        """Device and inode of each file, None where it is gone: a writer goes on silently in a moved one."""
        return tuple(_device_and_inode(Path(f"{self.path}{suffix}")) for suffix in BESIDE)


def _device_and_inode(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def driver() -> ModuleType:
    """pysqlite3, which carries a recent SQLite; the standard library's module if that is missing."""
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        return importlib.import_module("sqlite3.dbapi2")


def journal() -> tuple[str, str]:
    """(journal_mode, synchronous): WAL and FULL if the library's WAL is safe, else DELETE and EXTRA."""
    safe = driver().sqlite_version_info >= FIRST_SAFE_WAL
    return ("WAL", "FULL") if safe else ("DELETE", "EXTRA")


def network_file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> tuple[Path, str] | None:
    """Where a path lies on a network file system: SQLite's locks are not kept there.

    Returns the folder and kind of the file system when it is one, else None.
    """
    if not mounts.exists():
        return None
    target = path.resolve()
    best, kind = Path("/"), ""
    for line in mounts.read_text().splitlines():
        _, where, file_system, *_ = line.split()
        mount = Path(where.replace("\\040", " "))
        if target.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, file_system
    return (best, kind) if kind in NETWORK_FILE_SYSTEMS else None


def connect(path: Path, begin: str, query_only: bool, immutable: bool = False) -> sa.Engine:
    """An engine of one connection whose transactions all start with `begin`.

    With `immutable` SQLite takes no locks and makes no files beside it: for a file that nobody can change.
    """
    url = sa.URL.create("sqlite", database=str(path))  # a name may hold ? or %
    if immutable:
        query = {"immutable": "1", "uri": "true"}
        url = url.set(database=f"file:{quote(str(path.resolve()))}", query=query)
    # One connection an engine: a worker is one thread, and a second would only contend with the first.
    engine = sa.create_engine(url, module=driver(), poolclass=sa.pool.QueuePool, pool_size=1, max_overflow=0)

    @sa.event.listens_for(engine, "connect")
    def _connected(dbapi_connection: Any, _: Any) -> None:
        if immutable and not query_only:
            raise StoreUnreachable(f"{path}: on a read-only medium; copy it to a disk that can be written")
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
        except (driver().OperationalError, sa.exc.OperationalError) as error:
            if result_code(error) not in BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def result_code(error: Exception) -> int:
    """SQLite's primary result code of an error, SQLAlchemy's or the driver's; 0 where it has none."""
    return (getattr(getattr(error, "orig", error), "sqlite_errorcode", None) or 0) & 0xFF
