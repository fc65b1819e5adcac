"""When a running job last gave a sign of progress: a heartbeat says only that its worker lives."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NUMBER: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("progress_at", NUMBER))
