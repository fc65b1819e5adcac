"""The first schema. Nothing leads to it: a fresh database is made whole, and the later versions alter it."""

from __future__ import annotations

revision = "0001"
down_revision = None


def upgrade() -> None:
    raise RuntimeError(
        "no database is older than schema 0001: a fresh one is made from runner/queue/schema.py"
    )
