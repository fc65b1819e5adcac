"""A fresh database is made from runner/queue/schema.py; Alembic alters an older one, a file a version.

Each version runs on SQLite and on PostgreSQL: its types say what differs.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from runner.queue.dialects import one_at_a_time
from runner.queue.schema import HEAD, drop_views, make_views, meta, metadata


def upgrade(engine: sa.Engine) -> None:
    """Bring the database to `HEAD`; two processes at once do it once.

    The lock (BEGIN IMMEDIATE; on PostgreSQL an advisory one) holds others off, and the version is read
    inside it, so that whoever comes second finds nothing to do. A crash in between leaves the database as it
    was: both engines make and alter tables within a transaction.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with engine.begin() as connection:
        one_at_a_time(connection, "upgrade", patience_seconds=60)
        config.attributes["connection"] = connection
        if sa.inspect(connection).has_table("alembic_version"):
            drop_views(connection)  # they are made again as the new schema has them
            command.upgrade(config, HEAD)
            make_views(connection)
            return
        metadata.create_all(connection)
        connection.execute(meta.insert().values(key="database_id", value=uuid.uuid4().hex))
        command.stamp(config, HEAD)
