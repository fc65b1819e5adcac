"""What kills leave is found by doctor and clean, and goes with --fix and --yes; what is in use stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from runner.care import clean, doctor, leftovers
from runner.queue import backlog, jobs, schema
from runner.queue.store import Store
from runner.view.snapshot import snapshot
from tests.conftest import both_engines, row
from tests.nights import claim


def old(path: Path) -> Path:
    """As though nobody had touched it for two hours."""
    long_ago = time.time() - 2 * leftovers.HALF_SECONDS
    os.utime(path, (long_ago, long_ago))
    return path


def silent(store: Store, owner: str) -> None:
    """The worker was killed long ago, and its lease is over."""
    store.write(
        lambda c: c.execute(
            sa.update(schema.workers).where(schema.workers.c.id == owner).values(heartbeat_at=1)
        )
    )
    store.write(lambda c: c.execute(sa.text("UPDATE jobs SET lease_expires_at = 1 WHERE status = 'running'")))


@pytest.fixture
def killed(queued: Store, worker: jobs.Worker, tmp_path: Path) -> tuple[Path, Path]:
    """(run folder, cache) after a kill in the midst of everything; job 1 is taken back since."""
    claim(queued, worker)
    silent(queued, worker.owner)
    queued.write(jobs.requeue_lost)
    folder, cache = tmp_path / "runs" / queued.database_id, tmp_path / "data_cache"
    (folder / "1" / "a1").mkdir(parents=True)
    (folder / "1" / "a1" / "step-20.safetensors.part").write_bytes(b"half")
    (folder / f"worker-{worker.owner}.log").write_text("killed")
    old(folder / f"worker-{worker.owner}.log")
    (folder / "worker-never-seen.log").write_text("died at its start")
    old(folder / "worker-never-seen.log")
    for name in (".0123456789ab-x1y2", "smollm/.abcd1234", "tokenizers/.abcd_234"):
        (cache / name).mkdir(parents=True)
        (cache / name / "half.npy").write_bytes(b"half")
        old(cache / name)
    return folder, cache


KEPT = (".ssh", ".0123456789ab-young", "0123456789ab", "smollm/corpus")
"""In the folder that --cache-dir names: another's, in use, an entry, a corpus."""


def left(folder: Path, cache: Path) -> list[str]:
    places = [*folder.glob("worker-*"), *folder.glob("*/a*/*"), *cache.rglob("half.npy")]
    return sorted(path.name for path in places)


def test_doctor_finds_and_removes_what_a_kill_left(
    queued: Store, killed: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, cache = killed
    for name in KEPT:
        (cache / name).mkdir(parents=True)
        (old if name != KEPT[1] else Path)(cache / name)
    found = [*doctor.database(str(queued.path), tmp_path / "runs"), *doctor.cached(cache, lambda _: None)]
    warned = {finding.name: finding for finding in found if finding.level == "warn"}
    assert set(warned) == {"checkpoints", "workers", "cache"}
    assert warned["workers"].text == "1 were killed and never signed off; 2 of their logs are left"
    assert warned["cache"].text.startswith("3 folders")
    for finding in warned.values():
        assert finding.mend is not None
        finding.mend()
    assert left(folder, cache) == []
    assert row(queued, "workers")["stopped_at"] == 1
    assert all((cache / name).is_dir() for name in KEPT)
    again = [*doctor.database(str(queued.path), tmp_path / "runs"), *doctor.cached(cache, lambda _: None)]
    assert {finding.level for finding in again} == {"ok"}


def test_clean_finds_and_removes_what_a_kill_left(
    queued: Store, killed: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, cache = killed
    found = clean.removable(queued, tmp_path / "runs", cache=cache)
    assert sorted((file.kind, file.status) for file in found) == [
        ("cache", "killed"),
        ("cache", "killed"),
        ("cache", "killed"),
        ("checkpoint", "stray"),
        ("log", "dead"),
        ("log", "unknown"),
    ]
    assert clean.removable(queued, tmp_path / "runs", study="tiny", cache=cache) == []
    assert clean.remove(queued, tmp_path / "runs", found) == sum(file.size_bytes for file in found) > 0
    assert left(folder, cache) == []


@both_engines
def test_worker_with_a_lease_or_a_sign_of_life_is_not_dead(queued: Store, worker: jobs.Worker) -> None:
    def shown() -> int:
        with queued.read() as connection:
            return len(snapshot(connection, None, []).workers)

    lease = claim(queued, worker)
    queued.write(lambda c: c.execute(sa.update(schema.workers).values(heartbeat_at=1)))
    assert shown() == 1  # a lease of a day has few heartbeats
    queued.write(lambda c: jobs.release(c, lease, "signal"))
    assert shown() == 0
    queued.write(lambda c: backlog.beat(c, [worker.owner]))
    assert shown() == 1  # it waits for jobs
    queued.write(backlog.sign_off_dead)
    assert row(queued, "workers")["stopped_at"] is None
