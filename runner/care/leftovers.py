"""What a kill leaves: checkpoints that no row points to, logs of dead workers, halves of cache entries.

Found by `doctor`, whose `--fix` removes them, and by `clean`, whose `--yes` does. Removes nothing itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from runner.queue.backlog import is_dead
from runner.queue.dialects import highest_id
from runner.queue.schema import attempts, checkpoints, jobs, workers
from runner.queue.store import now

HALF_SECONDS = 3600.0
"""Age from which a half-prepared corpus counts as left over: whoever prepares one writes more often."""


def checkpoint_files(connection: sa.Connection, folder: Path) -> tuple[list[Path], list[str]]:
    """(files that no row points to and none will, paths of rows whose file is gone), below the run folder.

    An attempt that has not ended may have written a file whose row comes next: its files are not looked at.
    Nor are those of jobs and attempts to come: a backup shares the run folder of the database that went on.
    """
    there = {str(path.relative_to(folder)): path for path in folder.glob("*/a*/step-*")}
    # After the files: what was written since then has its row, or belongs to an open attempt.
    open_ones = {
        f"{row.job_id}/a{row.number}"
        for row in connection.execute(
            sa.select(attempts.c.job_id, attempts.c.number).where(attempts.c.outcome.is_(None))
        )
    }
    busy = {where.partition("/")[0] for where in open_ones}
    pointed = set(connection.scalars(sa.select(checkpoints.c.path)))
    known = {str(row.id): row.attempt for row in connection.execute(sa.select(jobs.c.id, jobs.c.attempt))}
    highest = highest_id(connection, jobs)

    def is_stray(path: str) -> bool:
        job, attempt = Path(path).parts[:2]
        ours = is_own(attempt, known[job]) if job in known else job.isdecimal() and int(job) <= highest
        return ours and f"{job}/{attempt}" not in open_ones

    strays = [there[path] for path in sorted(there.keys() - pointed) if is_stray(path)]
    missing = [path for path in sorted(pointed - there.keys()) if path.partition("/")[0] not in busy]
    return strays, missing


def is_own(folder: str, attempts_so_far: int) -> bool:
    """Whether the folder of an attempt, as in a2, is of one that this database knows."""
    number = folder.removeprefix("a")
    return not number.isdecimal() or int(number) <= attempts_so_far


def worker_logs(connection: sa.Connection, folder: Path) -> Iterator[tuple[Path, str, float]]:
    """(file, stopped or dead or unknown, seconds since) of workers that are gone, or never claimed a job."""
    since = sa.func.coalesce(workers.c.stopped_at, workers.c.heartbeat_at)
    known = {
        row.id: row
        for row in connection.execute(
            sa.select(
                workers.c.id, workers.c.stopped_at, is_dead().label("dead"), (now() - since).label("age")
            )
        )
    }
    holding = set(connection.scalars(sa.select(attempts.c.owner).where(attempts.c.outcome.is_(None))))
    for path in sorted(folder.glob("worker-*.log")):
        owner, row = path.stem.removeprefix("worker-"), known.get(path.stem.removeprefix("worker-"))
        if row is None:
            age = time.time() - path.stat().st_mtime
            if age > HALF_SECONDS:
                yield path, "unknown", age
        elif row.dead or (row.stopped_at is not None and owner not in holding):
            yield path, "dead" if row.dead else "stopped", row.age


def halves(cache: Path) -> list[Path]:
    """Folders where an entry was prepared, fetched, or set aside, and nobody is at it any more."""
    patterns = (
        f".{'[0-9a-f]' * 12}-*",
        "smollm/.????????",
        "tokenizers/.????????",
    )  # as model/text/ names them
    found = [path for pattern in patterns for path in cache.glob(pattern) if path.is_dir()]
    return sorted(path for path in found if time.time() - path.stat().st_mtime > HALF_SECONDS)
