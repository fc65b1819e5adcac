"""What SQLite and PostgreSQL write differently inside a statement: the clock, JSON, locks, repeated rows.

Connections, errors and places are in runner/queue/sqlite.py and runner/queue/postgresql.py; everything else
in runner/ is written once for both.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from runner.queue.schema import meta


class now(FunctionElement[float]):
    """Seconds since 1970 by the database's clock, so that hosts with wrong clocks agree."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now)
def _now(*_: Any, **__: Any) -> str:
    # Not now(), the transaction's start: the lease would lose however long the transaction has been running.
    return "CAST(extract(epoch from clock_timestamp()) AS DOUBLE PRECISION)"


class document(FunctionElement[Any]):
    """A text column that holds JSON, to be looked into by key."""

    type = sa.JSON()
    inherit_cache = True


@compiles(document, "sqlite")
def _document_sqlite(element: document, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


@compiles(document)
def _document(element: document, compiler: Any, **options: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **options)} AS JSON)"


def storable(value: float) -> dict[str, float | str | None]:
    """A number as the columns `value` and `nonfinite`: SQLite turns NaN into NULL.

    Which of NaN and the infinities it was is kept beside the NULL.
    """
    if math.isfinite(value):
        return {"value": float(value), "nonfinite": None}
    return {"value": None, "nonfinite": "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")}


def one_at_a_time(connection: sa.Connection, what: str, patience_seconds: int | None = None) -> None:
    """Keep other transactions that do `what` out until this one ends.

    On SQLite BEGIN IMMEDIATE has done that already. On PostgreSQL a transaction that waited here sees what
    the one before it committed, since each of its statements (READ COMMITTED) has a snapshot of its own.
    """
    if connection.dialect.name == "postgresql":
        if patience_seconds is not None:  # else the connection's own lock_timeout
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{patience_seconds}s'")
        key = zlib.crc32(f"nightshift {what}".encode())
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def count_anew(connection: sa.Connection, table: sa.Table) -> None:
    """Tell PostgreSQL's planner how large a table has become; SQLite's asks nobody.

    Until its own housekeeping came round, it planned claims for an empty queue: 19 a second instead of 151.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"ANALYZE {table.name}")


def spend_ids(connection: sa.Connection, table: sa.Table, ids: Iterable[int]) -> None:
    """Note that rows with these ids are deleted, so that `new_ids` does not give them to others."""
    row = meta.c.key == f"spent_{table.name}"
    before = connection.scalar(sa.select(meta.c.value).where(row))
    highest = str(max([int(before or 0), *ids]))
    connection.execute(sa.delete(meta).where(row))
    connection.execute(meta.insert().values(key=f"spent_{table.name}", value=highest))


def highest_id(connection: sa.Connection, table: sa.Table) -> int:
    """The highest id that this database has given, deleted rows included; what is above is another's."""
    spent = connection.scalar(sa.select(meta.c.value).where(meta.c.key == f"spent_{table.name}"))
    return max(int(spent or 0), connection.scalar(sa.select(sa.func.max(table.c.id))) or 0)


def new_ids(connection: sa.Connection, table: sa.Table, count: int) -> list[dict[str, int]]:
    """For each of `count` new rows its id, on SQLite, or nothing: PostgreSQL's sequence never goes back.

    SQLite by itself gives the highest id again once its row is deleted; a deleted job's number would then
    name another job, in people's notes and in the run folder.
    """
    if connection.dialect.name == "postgresql":
        return [{}] * count
    first = highest_id(connection, table) + 1
    return [{"id": first + number} for number in range(count)]


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, passing over those whose key is there already."""
    from sqlalchemy.dialects import postgresql, sqlite

    if connection.dialect.name == "postgresql":
        connection.execute(postgresql.insert(table).on_conflict_do_nothing(), rows)
    else:
        connection.execute(sqlite.insert(table).on_conflict_do_nothing(), rows)
