"""Faults at the worst line, in real processes: the promise of docs/reliability.md, row by row.

Signals, hangs and crashes of an ordinary night are in test_worker.py; here each fault is injected where it
hurts most, and what was recorded is compared, bit for bit, with an undisturbed night.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue import jobs, sqlite
from runner.queue.store import Store, open_store
from runner.work.worker import DRAINED
from tests.conftest import PROJECT, TINY_GRID, row, rows
from tests.injection import (
    BROKEN_CONNECTION,
    COMMIT,
    FROZEN,
    LOST_ANSWER,
    SHIFTED_CLOCK,
    gate_at,
    struck,
)
from tests.work.night import Night, wait_for

# --- the finishing commit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "before", "after", "attempts"),
    [
        ("sqlite", "die()", "", 2),
        ("sqlite", "", "die()", 1),
        ("sqlite", "", LOST_ANSWER, 1),
        ("postgresql", "die()", "", 2),
        ("postgresql", BROKEN_CONNECTION, "", 1),
        ("postgresql", "", BROKEN_CONNECTION, 1),
    ],
    ids=[
        "killed before",
        "killed after",
        "answer lost",
        "server: killed",
        "server: not done",
        "server: done",
    ],
    indirect=["database"],
)
def test_finishing_commit(night: Night, bits: str, before: str, after: str, attempts: int) -> None:
    """Before it: the job runs again. After it: it does not. Answer lost: asked again, and recorded once."""
    env = night.inject(COMMIT, BEFORE=before or "pass", AFTER=after or "pass")
    night.work_until_drained(**env)
    assert struck(night.folder / "fault")
    assert [a["outcome"] for a in rows(night.store, "attempts", job_id=1)][-1] == "done"
    assert len(rows(night.store, "attempts", job_id=1)) == attempts
    night.assert_undisturbed(bits)


# --- the disk is full -------------------------------------------------------------------------------------


def fill(folder: Path) -> Path:
    """Leave no room at all; returns the file to delete."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 9, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


def test_full_disk_under_the_database_is_waited_out(night: Night, bits: str, small_disk: Path) -> None:
    night.store.close()
    (night.folder / "jobs.db").unlink()
    night.database = str(small_disk / "jobs.db")
    night.store = open_store(night.database, create=True)
    night.enqueue()
    worker = night.work_to_gate("--db", night.database, "--runs-dir", "runs")
    ballast = fill(small_disk)
    night.open_gate()
    night.wait_for_word(worker, "disk full")
    ballast.unlink()
    assert worker.wait(timeout=300) == DRAINED
    assert {job["failures"] for job in rows(night.store, "jobs")} == {0}
    night.assert_undisturbed(bits)


# --- locks, readers, copies -------------------------------------------------------------------------------


def test_open_report_and_a_shell_with_a_lock_make_workers_wait_at_most(night: Night, bits: str) -> None:
    reader, shell = (sqlite.driver().connect(night.store.path, isolation_level=None) for _ in range(2))
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM jobs").fetchall()  # a read transaction, open all night
    worker = night.work_to_gate()
    shell.execute("BEGIN IMMEDIATE")  # and for a while a writer that does nothing
    night.open_gate()
    night.wait_for_word(worker, "waiting")  # it has met the lock
    shell.execute("ROLLBACK")
    assert worker.wait(timeout=300) == DRAINED
    assert reader.execute("SELECT COUNT(*) FROM results").fetchone() == (0,)  # its own, unmoved moment
    reader.close()
    shell.close()
    night.assert_undisturbed(bits)


def test_backup_while_working_is_consistent(night: Night, bits: str) -> None:
    """One copy in mid-run, with heartbeats all the while, and one between the two jobs."""
    worker = night.work_to_gate("--lease-seconds", "3")
    copies = [night.folder / f"copy-{number}.db" for number in range(2)]
    assert night.run("db", "backup", str(copies[0])).returncode == 0
    night.open_gate()
    wait_for(lambda: rows(night.store, "results"), "a result")
    assert night.run("db", "backup", str(copies[1])).returncode == 0
    assert worker.wait(timeout=300) == DRAINED
    for copy, running in zip(copies, ((1,), (0, 1)), strict=True):
        opened = open_store(str(copy))
        with opened.read() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            done = connection.scalar(sa.text("SELECT COUNT(*) FROM jobs WHERE status = 'done'"))
            assert connection.scalar(sa.text("SELECT COUNT(*) FROM results")) == done
        assert len(rows(opened, "jobs", status="running")) in running
        opened.close()
    again = night.run("db", "backup", str(copies[0]))
    assert (again.returncode, "exists" in again.stderr) == (65, True)
    night.assert_undisturbed(bits)


# --- clocks, hosts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "outcomes"), [("3600.0", ["lost", "done"]), ("-3600.0", ["done"])])
def test_clock_that_jumps_an_hour_delays_at_most(
    night: Night, bits: str, seconds: str, outcomes: list[str]
) -> None:
    """A second worker comes, an hour ahead or behind, while the first one's trainer stands still."""
    first = night.work_to_gate("--checkpoint-seconds", "0")
    env = night.inject(gate_at(100) + SHIFTED_CLOCK, SECONDS=seconds)
    second = night.start("work", **env)
    night.wait_at_gate("fault", step=100)  # it has job 1, ahead, or job 2
    assert struck(night.folder / "fault")
    night.open_gate("fault")
    night.open_gate()
    assert [worker.wait(timeout=300) for worker in (first, second)] == [DRAINED] * 2
    assert night.drain() == DRAINED
    assert [attempt["outcome"] for attempt in rows(night.store, "attempts", job_id=1)] == outcomes
    night.assert_undisturbed(bits)


def test_same_host_pid_and_boot_after_a_restart_is_another_owner(queued: Store) -> None:
    """A container may come back with the same host name and pid: the old attempt is still lost."""
    same = {"host": "box", "pid": 7, "device": "cpu"}
    before = queued.write(lambda c: jobs.claim(c, jobs.Worker("start-1", lease_seconds=60, **same)))
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET lease_expires_at = 1 WHERE id = 1")))
    queued.write(jobs.requeue_lost)
    after = queued.write(lambda c: jobs.claim(c, jobs.Worker("start-2", lease_seconds=60, **same)))
    assert before is not None
    assert after is not None
    assert row(queued, "attempts", job_id=1)["outcome"] == "lost"
    with pytest.raises(jobs.LeaseLost):
        queued.write(lambda c: jobs.heartbeat(c, before, 60, 1))


# --- many -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_and_a_thousand_empty_jobs(store: Store, tmp_path: Path) -> None:
    """Both have one in hand before either takes a second."""
    (tmp_path / "tiny.toml").write_text(TINY_GRID)
    grid = scales.adjust(grid_file.load_grid(str(tmp_path / "tiny.toml")), seeds="1..500")
    assert store.write(lambda c: enqueue(c, "tiny", grid)) == 1_000
    code = f"""
import os, sys, time
from runner.queue import jobs
from runner.queue.store import open_store
store = open_store({str(store.path)!r})
me = jobs.Worker(sys.argv[1], "here", 1, "cpu")
while (lease := store.write(lambda c: jobs.claim(c, me))) is not None:
    open(sys.argv[1], "w").close()
    while not os.path.exists("b" if sys.argv[1] == "a" else "a"):
        time.sleep(0.01)
    store.write(lambda c: jobs.finish(c, lease, {{"val_loss": 1.0, "val_perplexity": 2.7}}))
"""
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", code, name],
            cwd=tmp_path,
            env={"PYTHONPATH": str(PROJECT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    assert [worker.communicate(timeout=600)[1] for worker in pair] == ["", ""]
    with store.read() as connection:
        assert connection.scalar(sa.text("SELECT COUNT(*) FROM results")) == 1_000
        assert connection.scalar(sa.text("SELECT COUNT(*) FROM attempts")) == 1_000
        assert connection.scalar(sa.text("SELECT COUNT(DISTINCT owner) FROM attempts")) == 2


# --- nothing left over ------------------------------------------------------------------------------------


def test_no_secret_is_recorded(night: Night) -> None:
    secret = "hunter2-never-shown"
    env = {"WANDB_API_KEY": secret, "HF_TOKEN": secret, "JOBS_DB_PASSWORD": secret}
    worked = night.run("work", "--jobs", "1", **env)
    assert worked.returncode == DRAINED
    shown = [night.run(*words, **env).stdout for words in (("report",), ("show", "1"), ("status", "--json"))]
    files = [path.read_bytes() for path in night.folder.rglob("*") if path.is_file()]
    assert not any(secret.encode() in content for content in files)
    assert secret not in worked.stdout + worked.stderr + "".join(shown)
    refused = night.run("status", "--db", f"mysql://me:{secret}@host/db?password={secret}")
    assert refused.returncode == 78
    assert secret not in refused.stdout + refused.stderr


def test_native_call_that_holds_the_interpreter_is_not_taken_over(night: Night) -> None:
    """The heartbeat is another process's: a trainer frozen for three leases keeps its job."""
    frozen = night.start("work", "--lease-seconds", "2", **night.inject(FROZEN))
    wait_for(lambda: struck(night.folder / "fault"), "the native call")
    until = row(night.store, "jobs", id=1)["lease_expires_at"] + 3 * 2
    other = night.start("work", "--lease-seconds", "2", "--jobs", "1")
    assert other.wait(timeout=300) == DRAINED
    wait_for(lambda: row(night.store, "jobs", id=1)["lease_expires_at"] > until, "three leases more")
    night.open_gate("fault")
    assert frozen.wait(timeout=300) == DRAINED
    assert {(a["outcome"], a["number"]) for a in rows(night.store, "attempts")} == {("done", 1)}
