"""`doctor`: is this machine fit for the night? Each finding in a line, with its remedy; `--fix` mends some.

Looks at the packages, SQLite, the database, its leases, the run folder, the cache, disk, memory and device.
The device is asked by a trainer process of its own: nothing here imports torch.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from packaging.requirements import Requirement

from runner.care import clean, leftovers
from runner.design.program import DEFAULT
from runner.queue import jobs as transitions
from runner.queue import sqlite
from runner.queue.backlog import is_dead, sign_off_dead
from runner.queue.postgresql import Server
from runner.queue.schema import JobStatus, checkpoints, jobs, workers
from runner.queue.sqlite import File
from runner.queue.store import (
    Store,
    StoreRefused,
    StoreUnreachable,
    locate,
    now,
    open_store,
)
from runner.queue.where import counted
from runner.view.gpus import gpus
from runner.view.text import plain, size
from runner.work import source
from runner.work.process import TrainerProcess
from runner.work.provenance import PROJECT

FULL_BYTES, SCANT_BYTES = 0.5e9, 5e9
"""Free disk: below the first a checkpoint may not fit, below the second a night may fill it."""
SCANT_MEMORY_BYTES = 2e9
DEVICE_SECONDS = 180.0
"""Longest wait for a trainer to import torch and check the device, on a cold machine."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do."""

    name: str
    level: str
    """ok, warn (a night may go well) or bad (it will not)."""
    text: str
    remedy: str = ""
    mend: Callable[[], str] | None = None
    """Mends it and says what it did; None if nothing safe can be done."""


def examine(
    db: str,
    runs: Path,
    cache: Path,
    device: str,
    damage_of: Callable[[Path], str | None],
) -> Iterator[Finding]:
    """Look at everything, the slow device last; `damage_of` says what is wrong with a cache entry."""
    yield packages(PROJECT / "requirements.txt")
    yield sqlite_version()
    yield from database(db, runs)
    yield from cached(cache, damage_of)
    place = locate(db)
    folders = [runs.resolve()] if isinstance(place, Server) else [place.path.resolve().parent, runs.resolve()]
    for folder in {_existing(folder).stat().st_dev: folder for folder in folders[::-1]}.values():
        yield disk(folder)
    yield memory(Path("/proc/meminfo"))
    yield known_answer(device)


def packages(requirements: Path) -> Finding:
    """Installed versions against the pins."""
    lines = (line.partition("#")[0].strip() for line in requirements.read_text().splitlines())
    asked = [
        each for each in map(Requirement, filter(None, lines)) if not each.marker or each.marker.evaluate()
    ]
    pins = {each.name: next(iter(each.specifier)).version for each in asked if each.specifier}
    wrong = []
    for name, pinned in pins.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if found.partition("+")[0] != pinned:  # 2.13.0+cpu is 2.13.0
            wrong.append(f"{name} {found}, pinned {pinned}")
    if not wrong:
        return Finding("packages", "ok", f"{len(pins)} as in {requirements.name}")
    remedy = f"pip install -r {requirements.name}, in the environment that runs cli.py"
    return Finding("packages", "warn", "; ".join(wrong), remedy)


def sqlite_version() -> Finding:
    """Whether write-ahead logging is safe with the library that is used."""
    version = sqlite.driver().sqlite_version
    if sqlite.journal()[0] == "WAL":
        return Finding("sqlite", "ok", f"{version}, write-ahead log")
    text = f"{version} may corrupt a write-ahead log: the slower rollback journal is used"
    return Finding("sqlite", "warn", text, "pip install pysqlite3")


def database(db: str, runs: Path) -> Iterator[Finding]:
    """Location, schema, integrity; then leases and files, where it can be opened."""
    place = locate(db)
    try:
        place.check(create=True)
        if isinstance(place, File) and not place.path.exists():
            yield Finding("database", "ok", f"none at {place.path} yet: enqueue makes it")
            return
        store = open_store(db)
    except (StoreRefused, StoreUnreachable) as error:
        text, _, remedy = plain(error).rpartition("; ")
        yield Finding("database", "bad", text or remedy, remedy if text else "")
        return
    try:
        found = _answer(store) if isinstance(place, Server) else _integrity(store)
        yield found
        if found.level == "bad":  # what else it would say cannot be relied on
            return
        yield from _results(store, db)
        yield _leases(store, db)
        yield from files(store, runs)
        yield sources(runs / store.database_id)
    finally:
        store.close()


def _integrity(store: Store) -> Finding:
    count, answer = 0, ""
    try:
        with store.read() as connection:
            answer = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
            count = connection.scalar(sa.select(sa.func.count()).select_from(jobs)) or 0
    except StoreRefused as error:
        answer = str(getattr(error.__cause__, "orig", error))
    if answer == "ok":
        held = f"{counted(count, 'job')}, {size(store.path.stat().st_size)}"
        return Finding("database", "ok", f"{store.path}: {held}")
    remedy = "stop every worker and put a backup in its place (python cli.py db backup makes one)"
    return Finding("database", "bad", f"{store.path}: damaged: {plain(answer)}", remedy)


def _answer(store: Store) -> Finding:
    with store.read() as connection:
        version = connection.exec_driver_sql("SHOW server_version").scalar()
        bytes_ = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar() or 0
        count = connection.scalar(sa.select(sa.func.count()).select_from(jobs)) or 0
    held = f"{counted(count, 'job')}, {size(bytes_)}"
    return Finding("database", "ok", f"{store.name}: {held}, PostgreSQL {version}")


def _results(store: Store, db: str) -> Iterator[Finding]:
    with store.read() as connection:
        found = transitions.unsettled(connection)
    if found:
        text = f"{counted(len(found), 'job')} with a result and not done, for example job {found[0]}"
        remedy = "a file of the database was exchanged while it was in use; --fix marks them as done"
        yield Finding(
            "results", "warn", text, remedy, partial(_write, db, transitions.settle, "these jobs are done")
        )


def _leases(store: Store, db: str) -> Finding:
    expired = sa.and_(jobs.c.status == JobStatus.RUNNING, jobs.c.lease_expires_at < now())
    with store.read() as connection:
        lost = connection.scalars(sa.select(jobs.c.id).where(expired).order_by(jobs.c.id)).all()
    if not lost:
        return Finding("leases", "ok", "none is left over")
    some = ", ".join(map(str, lost[:5])) + (", …" if len(lost) > 5 else "")
    text = f"{counted(len(lost), 'job')} of a worker that is gone: {some}"
    remedy = "python cli.py work takes them back by itself; --fix does it now"
    return Finding(
        "leases",
        "warn",
        text,
        remedy,
        partial(_write, db, transitions.requeue_lost, "these jobs are queued again"),
    )


def _write(db: str, transaction: Callable[[sa.Connection], object], said: str) -> str:
    store = open_store(db)
    try:
        store.write(transaction)
    finally:
        store.close()
    return said


def files(store: Store, runs: Path) -> Iterator[Finding]:
    """Checkpoints that no row points to, rows whose file is gone, and what dead workers left."""
    folder = runs / store.database_id
    with store.read() as connection:
        strays, missing = leftovers.checkpoint_files(connection, folder)
        pointed = connection.scalar(sa.select(sa.func.count()).select_from(checkpoints)) or 0
        logs = [path for path, was, _ in leftovers.worker_logs(connection, folder) if was != "stopped"]
        dead = connection.scalar(sa.select(sa.func.count()).select_from(workers).where(is_dead())) or 0
    if strays:
        total = size(sum(path.stat().st_size for path in strays if path.exists()))
        text = f"{len(strays)} that no job points to ({total}), for example {strays[0].relative_to(folder)}"
        remedy = "left by a crash between file and row; --fix removes them"
        yield Finding("checkpoints", "warn", text, remedy, partial(_remove, strays))
    if missing:
        text = f"{counted(len(missing), 'file')} not under {runs}, for example {missing[0]}"
        remedy = "--runs-dir names the folder that work wrote to; without them the jobs start anew"
        yield Finding("checkpoints", "warn", text, remedy)
    if not strays and not missing:
        yield Finding("checkpoints", "ok", f"{pointed}, each with its job")
    if dead or logs:
        text = f"{dead} were killed and never signed off; {len(logs)} of their logs are left"
        remedy = "--fix signs off for them and removes those logs"
        yield Finding("workers", "warn", text, remedy, partial(_bury, store.name, logs))
    left = [file for file in clean.left_by_deleted(store, runs) if file.kind != "checkpoint"]
    if left:
        text = f"{len(left)} more files of deleted jobs ({size(sum(file.size_bytes for file in left))})"
        remedy = "left by a `delete` that was interrupted; --fix removes them"
        yield Finding("run folder", "warn", text, remedy, partial(_clean, store, runs, left))


def sources(folder: Path) -> Finding:
    """The copies of the source that attempts ran, by their hashes."""
    found = source.copies(folder)
    held = sum(file.stat().st_size for copy in found for file in copy.rglob("*") if file.is_file())
    if wrong := [copy.name[:12] for copy in found if not source.is_whole(copy)]:
        text = f"not what an attempt ran, or not all of it: {', '.join(wrong)} in {folder / source.FOLDER}"
        return Finding(
            "source", "warn", text, "its commit has it; work mends it before it runs that code again"
        )
    return Finding("source", "ok", f"{len(found)} copies of what ran, {size(held)}")


def _bury(db: str, logs: list[Path]) -> str:
    return f"{_write(db, sign_off_dead, 'signed off')}; {_remove(logs)}"


def _clean(store: Store, runs: Path, left: list[clean.File]) -> str:
    return f"{size(clean.remove(store, runs, left))} freed"


def _remove(paths: list[Path]) -> str:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return f"{len(paths)} removed"


def cached(cache: Path, damage_of: Callable[[Path], str | None]) -> Iterator[Finding]:
    """Every prepared corpus, by its hashes."""
    found = sorted(path.parent for path in cache.glob("*/meta.json"))
    entries = [entry for entry in found if not entry.name.startswith(".")]  # those were set aside
    damaged = {entry: text for entry in entries if (text := damage_of(entry))}
    for entry, text in damaged.items():
        remedy = "it is rebuilt when a run needs it; --fix moves it out of the way"
        yield Finding("cache", "warn", plain(text), remedy, partial(_set_aside, entry))
    if left := leftovers.halves(cache):
        text = f"{len(left)} folders of a preparation that was killed, or set aside, for example {left[0]}"
        yield Finding("cache", "warn", text, "--fix removes them", partial(_remove, left))
    if not damaged:
        yield Finding("cache", "ok", f"{len(entries)} prepared corpora in {cache}")


def _set_aside(entry: Path) -> str:
    aside = entry.with_name(f".{entry.name[:12]}-damaged-{time.time_ns()}")
    entry.rename(aside)
    return f"moved to {aside}"


def disk(folder: Path) -> Finding:
    """Room for checkpoints and the database."""
    free = shutil.disk_usage(_existing(folder)).free
    level = "bad" if free < FULL_BYTES else "warn" if free < SCANT_BYTES else "ok"
    remedy = "" if level == "ok" else "python cli.py clean lists what finished jobs left"
    return Finding("disk", level, f"{size(free)} free at {folder}", remedy)


def memory(meminfo: Path) -> Finding:
    """What the kernel calls available."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text() if meminfo.exists() else "", re.M)
    if not found:
        return Finding("memory", "ok", "not known on this system")
    free = int(found[1]) * 1024
    scant = free < SCANT_MEMORY_BYTES
    remedy = "end other programs, or let fewer trainers work: `work --slots 1`" if scant else ""
    return Finding("memory", "warn" if scant else "ok", f"{size(free)} available", remedy)


def known_answer(device: str, command: tuple[str, ...] | None = None) -> Finding:
    """One step with a known answer on the device that `work` would take."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "trainer.log"
        trainer = TrainerProcess(device, 1, log, command, warm=str(DEFAULT))
        try:
            ready = _await(trainer, "ready")
            trainer.send(command="check")
            answer = _await(trainer, "checked")
        except TimeoutError as error:
            remedy = "reinstall requirements.txt, or choose another --device"
            return Finding("device", "bad", f"{error}: {plain(trainer.last_words())}", remedy)
        finally:
            trainer.kill()
    name = f"{ready['device']} ({ready.get('device_name')}, driver {ready.get('driver') or 'none'})"
    if not answer["ok"]:
        return Finding("device", "bad", f"{name}: {plain(answer['message'])}", "do not work on it")
    cards = gpus() if device == "auto" and ready["device"] == "cpu" else []
    if cards:
        text = f"{name}, though there is {plain(cards[0].name)}, driver {plain(cards[0].driver)}"
        return Finding("device", "warn", text, "install a torch that was built for CUDA")
    return Finding("device", "ok", f"{name}: known answer found")


def _await(trainer: TrainerProcess, event: str) -> dict[str, Any]:
    deadline = time.monotonic() + DEVICE_SECONDS
    while time.monotonic() < deadline and not trainer.ended:
        for message in trainer.receive(0.2):
            if message["event"] == event:
                return message
    raise TimeoutError("the trainer ended" if trainer.ended else f"not {event} in {DEVICE_SECONDS:.0f} s")


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
