"""Everything that depends on SQLite: its driver, its settings, its result codes, its clock.

Why the settings are what they are: docs/decisions/0001-sqlite.md. Who uses it: runner/store.py.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

BUSY_TIMEOUT_MS = 250
"""Short, so that waiting is a loop in Python which still serves signals."""
BUSY, NO_ROOM, DAMAGED = (5, 6), (10, 13), (11, 26)
"""SQLite's primary result codes: BUSY and LOCKED, IOERR and FULL, CORRUPT and NOTADB."""
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


def driver() -> ModuleType:
    """pysqlite3, which carries a recent SQLite, or the standard library's where that is missing."""
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        return importlib.import_module("sqlite3.dbapi2")


def journal() -> tuple[str, str]:
    """(journal_mode, synchronous): WAL and FULL where the library's WAL is safe, else DELETE and EXTRA."""
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


def connect(path: Path, begin: str, query_only: bool) -> sa.Engine:
    """An engine of one connection whose transactions all start with `begin`."""
    # One connection an engine: a worker is one thread, and a second would only contend with the first.
    engine = sa.create_engine(
        f"sqlite:///{path}", module=driver(), poolclass=sa.pool.QueuePool, pool_size=1, max_overflow=0
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
        except (driver().OperationalError, sa.exc.OperationalError) as error:
            if result_code(error) not in BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def result_code(error: Exception) -> int:
    """SQLite's primary result code of an error, SQLAlchemy's or the driver's; 0 where it has none."""
    return (getattr(getattr(error, "orig", error), "sqlite_errorcode", None) or 0) & 0xFF
