"""`clean`: checkpoints and logs of finished jobs, by age or size. Results, attempts and events stay for ever.

First everything that would go is listed; nothing is removed without being asked for. Weights that were kept
on purpose (`work --keep-weights`) are not touched, unless their job was deleted. Rows go before their files,
as in runner/queue/records.py.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from runner.queue.schema import attempts, checkpoints, jobs, workers
from runner.queue.selection import study_id
from runner.queue.store import Store, now
from runner.view.console import ROWS, console, table
from runner.view.text import duration, plain, size

OVER = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class File:
    """A file that may go."""

    kind: str
    """checkpoint or log; other, for what else a deleted job left."""
    path: Path
    job_id: int | None
    """None for the log of a worker."""
    status: str
    """The job's; `deleted` where no row has its number any more, `stopped` for a worker."""
    size_bytes: int
    age_seconds: float
    """Since the job was over, or the worker signed off; of a deleted job's file, since it was written."""


def removable(
    store: Store,
    runs: Path,
    older_than_seconds: float = 0.0,
    at_least_bytes: int = 0,
    study: str | None = None,
) -> list[File]:
    """The files of finished jobs that are old and large enough, the oldest first.

    A failed or cancelled job that is retried after its checkpoints are gone starts from the beginning.

    Raises:
        ConfigError: no study of that name.
    """
    folder = runs / store.database_id
    left = [] if study else left_by_deleted(store, runs)
    with store.read() as connection:
        found = [*_of_jobs(connection, folder, study), *([] if study else _of_workers(connection, folder))]
    found += left
    chosen = [
        file for file in found if file.age_seconds >= older_than_seconds and file.size_bytes >= at_least_bytes
    ]
    return sorted(chosen, key=lambda file: (-file.age_seconds, str(file.path)))


def left_by_deleted(store: Store, runs: Path) -> list[File]:
    """Every file in a folder of a job that is not in the database any more."""
    folder = runs / store.database_id
    # Before the rows are read: a job that is queued meanwhile has no folder yet.
    numbers = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal()]
    with store.read() as connection:
        known = set(connection.scalars(sa.select(jobs.c.id)))
    return [file for number in sorted(numbers) if number not in known for file in left_by(folder, number)]


def left_by(folder: Path, job_id: int) -> Iterator[File]:
    """Every file of one deleted job."""
    for path in sorted((folder / str(job_id)).rglob("*")):
        if path.is_file() or path.is_symlink():
            found = path.lstat()
            age_seconds = time.time() - found.st_mtime
            yield File(_kind(path) or "other", path, job_id, "deleted", found.st_size, age_seconds)


def remove(store: Store, runs: Path, files: Sequence[File]) -> int:
    """Remove the files whose jobs are still over; returns the bytes that were freed."""
    folder = runs / store.database_id
    wanted = {str(file.path.relative_to(folder)): file for file in files}
    still_over = store.write(lambda c: _forget(c, list(wanted)))
    freed = 0
    for relative, file in wanted.items():
        if file.job_id is None or file.status == "deleted" or file.job_id in still_over:
            with contextlib.suppress(FileNotFoundError):
                (folder / relative).unlink()
                freed += file.size_bytes
            _drop_empty(file.path.parent, folder)
    return freed


def _forget(connection: sa.Connection, paths: list[str]) -> set[int]:
    """Drop the rows of checkpoints of jobs that are over; returns every job that is."""
    over = sa.select(jobs.c.id).where(jobs.c.status.in_(OVER))
    for start in range(0, len(paths), 500):
        some = checkpoints.c.path.in_(paths[start : start + 500])
        connection.execute(sa.delete(checkpoints).where(some, checkpoints.c.job_id.in_(over)))
    return set(connection.scalars(over))


def _of_jobs(connection: sa.Connection, folder: Path, study: str | None) -> Iterator[File]:
    age = (now() - jobs.c.finished_at).label("age_seconds")
    finished = sa.select(jobs.c.id, jobs.c.status, age).where(jobs.c.status.in_(OVER))
    if study is not None:
        finished = finished.where(jobs.c.study_id == study_id(connection, study))
    for job in connection.execute(finished):
        for path in sorted((folder / str(job.id)).glob("a*/*")):
            kind = _kind(path)
            if kind and path.is_file() and not path.is_symlink():
                size_bytes = path.stat().st_size
                yield File(kind, path, job.id, job.status, size_bytes, job.age_seconds)


def _kind(path: Path) -> str | None:
    if path.name == "trainer.log":
        return "log"
    return "checkpoint" if path.name.startswith("step-") else None


def _of_workers(connection: sa.Connection, folder: Path) -> Iterator[File]:
    """Logs of workers that have signed off, or that were never in the database."""
    signed = {
        row.id: row.age_seconds
        for row in connection.execute(
            sa.select(workers.c.id, (now() - workers.c.stopped_at).label("age_seconds"))
        )
    }
    holding = set(connection.scalars(sa.select(attempts.c.owner).where(attempts.c.outcome.is_(None))))
    for path in sorted(folder.glob("worker-*.log")):
        owner = path.stem.removeprefix("worker-")
        age = signed.get(owner)
        if age is not None and owner not in holding and path.is_file():
            yield File("log", path, None, "stopped", path.stat().st_size, age)


def _drop_empty(folder: Path, top: Path) -> None:
    """Remove folders that have become empty, up to the run folder."""
    while folder != top and folder.is_relative_to(top):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def clean_screen(files: Sequence[File]) -> None:
    """What a clean would remove, the oldest first."""
    out = console()
    if not files:
        out.print("nothing to clean")
        return
    made = table("Would be removed", "job", "status", "age", "size", "file", folds="file")
    for file in files[:ROWS]:
        job = "–" if file.job_id is None else str(file.job_id)
        made.add_row(job, file.status, duration(file.age_seconds), size(file.size_bytes), plain(file.path))
    out.print(made)
    if len(files) > ROWS:
        out.print(f"and {len(files) - ROWS:,} more")
    counts = {"checkpoint": 0, "log": 0, **Counter(file.kind for file in files)}
    kinds = " and ".join(f"{count} {kind}s" for kind, count in counts.items())
    total = size(sum(file.size_bytes for file in files))
    out.print(f"{kinds}, {total}; nothing was removed: add --yes")
