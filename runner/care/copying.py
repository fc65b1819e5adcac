"""`db copy`: every row of a database to a new one, SQLite or PostgreSQL, and the proof that it is the same.

Ids stay as they are, and so does the database's id: the run folder serves the copy. Rows are written, read
back and compared by counts and a hash in one transaction, and a file gets its name after that: a copy that is
killed leaves an empty database on a server, or a `.part` beside, and both may be copied to again. Who opens
them: runner/queue/store.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from model.config import ConfigError
from runner.queue.dialects import now
from runner.queue.postgresql import set_sequences
from runner.queue.schema import JobStatus, jobs, meta, metadata
from runner.queue.sqlite import BESIDE, File
from runner.queue.store import Store, StoreUnreachable, locate, open_store
from runner.queue.where import counted

ROWS = 2_000
"""Rows that are held in memory at a time."""
Content = dict[str, tuple[int, str]]
"""Table → (rows, SHA-256 of all of them in the order of their keys)."""


def copy_store(source: str, target: str) -> Iterator[str]:
    """Copy a database; yields a line a table, then what to do next.

    Raises:
        ConfigError: the target holds something, or jobs are running in the source.
        StoreUnreachable: what was read back is not what was written, or one of them is not there.
        StoreRefused: one of them is no database of this program's schema.
    """
    to = locate(target)
    if isinstance(to, File):
        with _beside(to.path) as part:
            compared = _copy(source, str(part), to.name)
            _name(part, to.path)
    else:
        compared = _copy(source, target, to.name)
    yield from (f"{table:14} {count:>9,} rows  {digest[:16]}" for table, (count, digest) in compared.items())
    yield f"{locate(source).name} → {to.name}; work goes on with --db {to.name}"


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """The path beside the target where the copy grows; what a killed copy left there is removed."""
    if path.exists():
        raise ConfigError(f"{path}: exists already; name a new file")
    part = path.with_name(f"{path.name}.part")
    lock = part.open("ab")  # closed last: closing it would drop SQLite's own locks on the file
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() or not part.exists():  # another copy has ended since we looked
            raise BlockingIOError
        for suffix in BESIDE[1:]:
            Path(f"{part}{suffix}").unlink(missing_ok=True)
        lock.truncate(0)
        yield part
    except BlockingIOError:
        raise ConfigError(f"{path}: another db copy is writing it") from None
    except BaseException:
        for suffix in BESIDE:
            Path(f"{part}{suffix}").unlink(missing_ok=True)
        raise
    finally:
        lock.close()


def _name(part: Path, path: Path) -> None:
    """Give the finished file its name; unlike a rename, a link never replaces what has come meanwhile."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already; name a new file") from None
    except OSError:  # a file system without links
        os.rename(part, path)
    part.unlink(missing_ok=True)


def _copy(source: str, target: str, name: str) -> Content:
    """Fill the target and compare it in one transaction; nothing is there before both are done."""
    origin = open_store(source)
    try:
        with origin.read() as reading:
            _refuse_running(reading, origin.name)
            expected = content(reading)
            # Opened after the source was found to be sound: a mistyped name leaves no tables behind.
            copy = open_store(target, create=True)
            try:
                _refuse_filled(copy, name)
                copy.write(lambda writing: _fill(reading, writing, expected, name))
            finally:
                copy.close()
    # A NUL or half a character: SQLite keeps it, PostgreSQL does not.
    except (sa.exc.DataError, UnicodeError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(f"{name}: cannot hold a text of {origin.name} ({first})") from error
    finally:
        origin.close()
    return expected


def content(connection: sa.Connection) -> Content:
    """How much each table holds, and its hash: equal on both engines where the rows are."""
    found = {}
    for table in metadata.sorted_tables:
        digest, count = hashlib.sha256(), 0
        for rows in _rows(connection, table):
            for row in rows:
                digest.update(json.dumps(list(row.values())).encode() + b"\n")
            count += len(rows)
        found[table.name] = (count, digest.hexdigest())
    return found


def _rows(connection: sa.Connection, table: sa.Table) -> Iterator[list[dict[str, object]]]:
    """The table in parts, in the order of its key; text by its bytes on both engines (queue/schema.py)."""
    statement = sa.select(table).order_by(*table.primary_key.columns).execution_options(yield_per=ROWS)
    for part in connection.execute(statement).partitions():
        yield [dict(row._mapping) for row in part]


def _fill(reading: sa.Connection, writing: sa.Connection, expected: Content, name: str) -> None:
    writing.execute(sa.delete(meta))  # its own id: the source's comes in its place
    for table in metadata.sorted_tables:  # a row comes after those that it refers to
        for rows in _rows(reading, table):
            writing.execute(table.insert(), rows)
    if writing.dialect.name == "postgresql":
        set_sequences(writing, metadata.sorted_tables)
    for table_name, found in content(writing).items():
        if found != expected[table_name]:
            raise StoreUnreachable(
                f"{name}: {table_name} holds {found[0]} rows that are not the {expected[table_name][0]} of "
                "the source; nobody else may write to it meanwhile. Nothing was copied; try again"
            )


def _refuse_running(connection: sa.Connection, name: str) -> None:
    alive = sa.and_(jobs.c.status == JobStatus.RUNNING, jobs.c.lease_expires_at >= now())
    count = connection.scalar(sa.select(sa.func.count()).where(alive)) or 0
    if count:
        raise ConfigError(
            f"{name}: {counted(count, 'job')} running, whose results would be missing; stop the workers first"
        )


def _refuse_filled(copy: Store, name: str) -> None:
    """Only a database without rows may be filled, beside the id that it was given."""
    with copy.read() as connection:
        for table in metadata.sorted_tables:
            if table is not meta and connection.execute(sa.select(table).limit(1)).first() is not None:
                raise ConfigError(f"{name}: holds rows already, in {table.name}; name a new database")
