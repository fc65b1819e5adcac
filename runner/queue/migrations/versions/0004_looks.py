"""Studies that stop when they know: their design, and a row for each look."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from runner.queue.schema import looks

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.add_column("studies", sa.Column("looks", text))
    looks.create(op.get_bind())
