"""Steps of a night for the tests of daily commands: claim, finish, look, print to a string."""

from __future__ import annotations

import io
from collections.abc import Callable

import sqlalchemy as sa

from runner.queue import jobs, schema
from runner.queue.store import Store
from runner.view import console
from runner.view.status import studies_overview

RESULT = {"val_loss": 1.0, "val_perplexity": 2.718, "training_seconds": 20.0}


def claim(store: Store, worker: jobs.Worker) -> jobs.Lease:
    def registered(connection: sa.Connection) -> jobs.Lease | None:
        known = sa.select(schema.workers.c.id).where(schema.workers.c.id == worker.owner)
        if connection.scalar(known) is None:
            values = {"id": worker.owner, "host": worker.host, "pid": worker.pid, "device": worker.device}
            connection.execute(schema.workers.insert().values(started_at=1, heartbeat_at=1, **values))
        return jobs.claim(connection, worker)

    found = store.write(registered)
    assert found is not None
    return found


def finish(store: Store, worker: jobs.Worker, seconds: float = 20.0, **values: float) -> jobs.Lease:
    """A job that took so long."""
    lease = claim(store, worker)
    store.write(lambda c: jobs.finish(c, lease, {**RESULT, **values}))
    took(store, lease, seconds)
    return lease


def took(store: Store, lease: jobs.Lease, seconds: float) -> None:
    """Let the lease's attempt, which is over, have begun so long before its end."""
    own = schema.attempts.c.job_id == lease.job_id, schema.attempts.c.number == lease.attempt
    began = schema.attempts.c.ended_at - seconds
    store.write(lambda c: c.execute(sa.update(schema.attempts).where(*own).values(started_at=began)))


def overview(store: Store, name: str = "tiny") -> dict[str, object]:
    with store.read() as connection:
        return next(study for study in studies_overview(connection) if study["name"] == name)


def printed(show: Callable[..., None], *content: object, width: int = 80) -> list[str]:
    out = console.Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    show(*content, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]
