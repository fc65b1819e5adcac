"""`clean`: what finished jobs left, by age or size. Results, attempts, events and the source they ran stay.

First everything that would go is listed; nothing is removed without being asked for. Weights that were kept
on purpose (`work --keep-weights`) go only with `--weights`, or if their job was deleted. Rows go before their
files, as in runner/queue/records.py.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from runner.care import leftovers
from runner.care.again import KEPT
from runner.queue.attempts import of_source
from runner.queue.dialects import highest_id
from runner.queue.schema import OVER, checkpoints, jobs
from runner.queue.store import Store, now
from runner.queue.studies import named
from runner.view.console import ROWS, console, show, table
from runner.view.text import duration, plain, size
from runner.work import source

UNUSED_SECONDS = 86400.0
"""Age from which a copy of the source that no attempt ran may go: a younger one may be about to be used."""


@dataclass(frozen=True)
class File:
    """A file that may be removed."""

    kind: str
    """checkpoint or log; weight, with configuration and tokenizer; source, a copy that no attempt ran; cache,
    half a preparation; other, for what else a deleted job left."""
    path: Path
    job_id: int | None
    """None for what belongs to no job."""
    status: str
    """The job's; `deleted` where no row has its number any more; a worker's: stopped, dead or unknown."""
    size_bytes: int
    age_seconds: float
    """Time since the job ended, the worker signed off or the source was used; else since it was written."""


def removable(
    store: Store,
    runs: Path,
    older_than_seconds: float = 0.0,
    at_least_bytes: int = 0,
    study: str | None = None,
    cache: Path | None = None,
    weights: bool = False,
) -> list[File]:
    """The files of finished jobs, and what kills left, that are old and large enough, the oldest first.

    A failed or cancelled job that is retried after its checkpoints are gone starts from the beginning.
    """
    folder = runs / store.database_id
    left = [] if study else left_by_deleted(store, runs)
    with store.read() as connection:
        found = [
            *_of_jobs(connection, folder, study, weights),
            *([] if study else _of_nobody(connection, folder)),
        ]
    found += left + (list(_halves(cache)) if cache and not study else [])
    chosen = [
        file for file in found if file.age_seconds >= older_than_seconds and file.size_bytes >= at_least_bytes
    ]
    return sorted(chosen, key=lambda file: (-file.age_seconds, str(file.path)))


def left_by_deleted(store: Store, runs: Path) -> list[File]:
    """Every file in a folder of a job that is not in the database any more.

    A number above all that it has given is no deleted job's: a backup shares the run folder of the database
    that went on.
    """
    folder = runs / store.database_id
    # Before the rows are read: a job that is queued meanwhile has no folder yet.
    numbers = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal()]
    with store.read() as connection:
        known, highest = set(connection.scalars(sa.select(jobs.c.id))), highest_id(connection, jobs)
    deleted = [number for number in sorted(numbers) if number not in known and number <= highest]
    return [file for number in deleted for file in left_by(folder, number)]


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
    wanted = {str(file.path).removeprefix(f"{folder}/"): file for file in files}
    still_over = store.write(lambda c: _forget(c, list(wanted)))
    freed = 0
    for relative, file in wanted.items():
        if file.job_id is None or file.status == "deleted" or file.job_id in still_over:
            with contextlib.suppress(FileNotFoundError):
                if file.kind in ("source", "cache"):
                    shutil.rmtree(folder / relative)
                else:
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


def _of_jobs(connection: sa.Connection, folder: Path, study: str | None, weights: bool) -> Iterator[File]:
    age = (now() - jobs.c.finished_at).label("age_seconds")
    finished = sa.select(jobs.c.id, jobs.c.status, jobs.c.attempt, age).where(jobs.c.status.in_(OVER))
    if study is not None:
        finished = finished.where(jobs.c.study_id == named(connection, study).id)
    for job in connection.execute(finished):
        kept = KEPT if weights else ()
        for path in sorted((folder / str(job.id)).glob("a*/**/*")):
            attempt, own = path.relative_to(folder / str(job.id)).parts[:2]
            if not leftovers.is_own(attempt, job.attempt):
                continue
            kind = "weight" if own in kept else _kind(path)
            if kind and path.is_file() and not path.is_symlink():
                size_bytes = path.stat().st_size
                yield File(kind, path, job.id, job.status, size_bytes, job.age_seconds)


def _kind(path: Path) -> str | None:
    if path.name == "trainer.log":
        return "log"
    return "checkpoint" if path.name.startswith("step-") else None


def _of_workers(connection: sa.Connection, folder: Path) -> Iterator[File]:
    """Logs of workers that have signed off, are dead, or were never in the database."""
    for path, was, age in leftovers.worker_logs(connection, folder):
        yield File("log", path, None, was, path.stat().st_size, age)


def _strays(connection: sa.Connection, folder: Path) -> Iterator[File]:
    """Checkpoints of open jobs that no row points to: left by a kill between file and row, or in writing."""
    still_open = set(connection.scalars(sa.select(jobs.c.id).where(jobs.c.status.not_in(OVER))))
    for path in leftovers.checkpoint_files(connection, folder)[0]:
        if path.parts[-3].isdecimal() and int(path.parts[-3]) in still_open:
            found = path.stat()
            yield File("checkpoint", path, None, "stray", found.st_size, time.time() - found.st_mtime)


def _halves(cache: Path) -> Iterator[File]:
    for path in leftovers.halves(cache):
        yield File("cache", path, None, "killed", _held(path), time.time() - path.stat().st_mtime)


def _held(folder: Path) -> int:
    return sum(file.stat().st_size for file in [folder, *folder.rglob("*")] if file.is_file())


def _of_nobody(connection: sa.Connection, folder: Path) -> Iterator[File]:
    yield from _of_workers(connection, folder)
    yield from _strays(connection, folder)
    yield from _of_sources(connection, folder)


def _of_sources(connection: sa.Connection, folder: Path) -> Iterator[File]:
    """Copies of the source that no attempt ran, and parts of copies; an attempt keeps its own for ever."""
    for path in sorted((folder / source.FOLDER).glob("*")):
        ran = sa.select(sa.literal(1)).where(of_source(path.name)).limit(1)
        age = time.time() - path.stat().st_mtime  # set whenever a worker looks at it
        if age >= UNUSED_SECONDS and connection.scalar(ran) is None:
            yield File("source", path, None, "unused", _held(path), age)


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
    show(out, made, len(files))
    counts = {"checkpoint": 0, "log": 0, **Counter(file.kind for file in files)}
    kinds = " and ".join(f"{count} {kind}s" for kind, count in counts.items())
    total = size(sum(file.size_bytes for file in files))
    out.print(f"{kinds}, {total}; nothing was removed: add --yes")
