"""The schema's history (Alembic): one file a version, applied in one transaction under the write lock.

Each version runs on SQLite and on PostgreSQL: its types say what differs.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from runner.queue.dialects import one_at_a_time
from runner.queue.schema import HEAD, meta


def upgrade(engine: sa.Engine, revision: str = HEAD) -> None:
    """Bring the database to `revision`; two processes at once do it once.

    The lock (BEGIN IMMEDIATE; on PostgreSQL an advisory one) holds others off, and Alembic reads the version
    inside it, so that whoever comes second finds nothing to do. A crash in between leaves the old schema,
    whole: both engines change tables within a transaction.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with engine.begin() as connection:
        one_at_a_time(connection, "upgrade", patience_seconds=60)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        known = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "database_id"))
        if known is None:
            connection.execute(meta.insert().values(key="database_id", value=uuid.uuid4().hex))
