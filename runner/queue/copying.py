"""`db copy`: every row of a database to a new one, SQLite or PostgreSQL, and the proof that it is the same.

Ids stay as they are, and so does the database's id: the run folder serves the copy. Both sides are read back
and compared by counts and a hash. Who opens them: runner/queue/store.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import sqlalchemy as sa

from model.config import ConfigError
from runner.queue.dialects import now
from runner.queue.postgresql import set_sequences
from runner.queue.schema import jobs, meta, metadata
from runner.queue.sqlite import File
from runner.queue.store import Store, StoreUnreachable, locate, open_store

ROWS = 2_000
"""Held in memory at a time."""
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
    if isinstance(to, File) and to.path.exists():
        raise ConfigError(f"{to.name}: exists already; name a new file")
    origin = open_store(source)
    try:
        with origin.read() as reading:
            _refuse_running(reading, origin.name)
            # Opened after the source was found to be sound: a mistyped name leaves no empty file behind.
            copy = open_store(target, create=True)
            try:
                _refuse_filled(copy)
                copy.write(lambda writing: _fill(reading, writing))
                expected = content(reading)
                with copy.read() as connection:
                    found = content(connection)
            finally:
                copy.close()
    except BaseException as error:
        if isinstance(to, File):
            to.path.unlink(missing_ok=True)
        # A NUL or half a character: SQLite keeps it, PostgreSQL does not.
        if isinstance(error, sa.exc.DataError | UnicodeError):
            first = str(error).partition("\n")[0]
            raise ConfigError(f"{to.name}: cannot hold a text of {origin.name} ({first})") from error
        raise
    finally:
        origin.close()
    yield from _compared(expected, found, to.name)
    yield f"{origin.name} → {to.name}; work goes on with --db {to.name}"


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


def _fill(reading: sa.Connection, writing: sa.Connection) -> None:
    writing.execute(sa.delete(meta))  # its own id: the source's comes in its place
    for table in metadata.sorted_tables:  # a row comes after those that it refers to
        for rows in _rows(reading, table):
            writing.execute(table.insert(), rows)
    if writing.dialect.name == "postgresql":
        set_sequences(writing, metadata.sorted_tables)


def _refuse_running(connection: sa.Connection, name: str) -> None:
    alive = sa.and_(jobs.c.status == "running", jobs.c.lease_expires_at >= now())
    count = connection.scalar(sa.select(sa.func.count()).where(alive)) or 0
    if count:
        raise ConfigError(
            f"{name}: {count} jobs are running, and what they find would be missing; stop the workers first"
        )


def _refuse_filled(copy: Store) -> None:
    """Only a database without rows may be filled, beside the id that it was given."""
    with copy.read() as connection:
        for table in metadata.sorted_tables:
            if table is not meta and connection.execute(sa.select(table).limit(1)).first() is not None:
                raise ConfigError(f"{copy.name}: holds rows already, in {table.name}; name a new database")


def _compared(expected: Content, found: Content, name: str) -> Iterator[str]:
    for table, (count, digest) in expected.items():
        if found[table] != (count, digest):
            raise StoreUnreachable(
                f"{name}: {table} holds {found[table][0]} rows that are not the {count} of the source; "
                "nobody else may write to it while it is filled. Empty it and copy again"
            )
        yield f"{table:14} {count:>9,} rows  {digest[:16]}"
