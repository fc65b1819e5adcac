"""Faults at the worst line, in real processes: the promise of docs/reliability.md, row by row.

Signals, hangs and crashes of an ordinary night are in tests/work/test_worker.py; here each fault is injected
where it hurts most, and the results are compared, bit for bit, with those of an undisturbed study.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from runner.design import grids
from runner.design.enqueue import enqueue
from runner.queue import jobs, sqlite
from runner.queue.store import Store, open_store
from tests.conftest import (
    PROJECT,
    TINY_GRID,
    command,
    environment,
    results_bits,
    row,
    rows,
)
from tests.injection import (
    BROKEN_CONNECTION,
    CHECKPOINT,
    COMMIT,
    DIVERGENCE,
    FULL_DISK,
    GATE,
    LOST_ANSWER,
    inject,
    struck,
)

Cli = Callable[..., subprocess.CompletedProcess[str]]
SIZES = ("--set=train.steps=120", "--set=train.eval_every=60", "--seeds", "42")


class Night:
    """A folder with two jobs of 120 steps in its queue, and the commands to work them."""

    def __init__(self, folder: Path, cache_dir: Path, database: str = "") -> None:
        self.folder, self.cache_dir, self.database = folder, cache_dir, database
        (folder / "tiny.toml").write_text(TINY_GRID)
        done = self.run("enqueue", "--grid", "tiny.toml", "--corpus", "bundled", *SIZES)
        assert done.returncode == 0, done.stderr
        self.store = open_store(database or str(folder / "jobs.db"))

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **env)
        out, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(*arguments, cache_dir=self.cache_dir),
            cwd=self.folder,
            env={**environment(self.database), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def work_until_drained(self, *arguments: str, tries: int = 6, **env: str) -> list[int]:
        codes = []
        while 0 not in codes:
            assert len(codes) < tries, codes
            codes.append(self.run("work", "--lease-seconds", "2", *arguments, **env).returncode)
        return codes

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"never happened: {what}"
            time.sleep(0.01)

    def stop_at_gate(self, worker: subprocess.Popen[str]) -> None:
        """Ask a worker to stop while its trainer stands still; it goes on when the worker has heard."""
        gate = self.folder / "gate"
        self.wait_for(lambda: list(gate.glob("at-*")), "step 20")
        worker.send_signal(signal.SIGTERM)
        assert worker.stderr is not None
        while "stopping" not in (line := worker.stderr.readline()):
            assert line, "the worker never said that it stops"
        (gate / "go").touch()

    def assert_undisturbed(self, bits: str) -> None:
        assert {job["status"] for job in rows(self.store, "jobs")} == {"done"}
        assert len(rows(self.store, "results")) == 2
        assert results_bits(self.store) == bits
        if "://" not in self.database:
            with self.store.read() as connection:
                assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


@pytest.fixture
def night(tmp_path: Path, cache_dir: Path, database: str) -> Iterator[Night]:
    made = Night(tmp_path, cache_dir, database)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def bits(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> str:
    """The bits of these two jobs when nothing disturbs them."""
    calm = Night(tmp_path_factory.mktemp("calm"), cache_dir)
    assert calm.run("work").returncode == 0
    found = results_bits(calm.store)
    calm.store.close()
    return found


# --- the finishing COMMIT ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "before", "after", "attempts"),
    [
        ("sqlite", "die()", "pass", 2),
        ("sqlite", "pass", "die()", 1),
        ("sqlite", "pass", LOST_ANSWER, 1),
        ("postgresql", "die()", "pass", 2),
        ("postgresql", BROKEN_CONNECTION, "pass", 1),
        ("postgresql", "pass", BROKEN_CONNECTION, 1),
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
    env = inject(night.folder / "fault", COMMIT, BEFORE=before, AFTER=after)
    night.work_until_drained(**env)
    assert struck(night.folder / "fault")
    assert [a["outcome"] for a in rows(night.store, "attempts", job_id=1)][-1] == "done"
    assert len(rows(night.store, "attempts", job_id=1)) == attempts
    night.assert_undisturbed(bits)


# --- checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2, 3], ids=["flush", "rename", "folder flush"])
def test_killed_while_saving(night: Night, bits: str, stage: int) -> None:
    """The checkpoint before is still there, and is used."""
    env = inject(night.folder / "fault", CHECKPOINT, STAGE=str(stage))
    night.work_until_drained("--checkpoint-seconds", "0", **env)
    assert struck(night.folder / "fault")
    first, second = rows(night.store, "attempts", job_id=1)
    assert (first["cause"], first["exit_code"]) == ("infrastructure", -9)
    assert second["resumed_from_step"] == 2
    night.assert_undisturbed(bits)


def preempt_with_two_checkpoints(night: Night) -> list[Path]:
    """Stop job 1 in its midst; its two checkpoints, newest first."""
    worker = night.start("work", "--checkpoint-seconds", "0", **inject(night.folder / "gate", GATE))
    night.stop_at_gate(worker)
    worker.communicate(timeout=60)
    files = sorted(rows(night.store, "checkpoints"), key=lambda file: -file["step"])
    assert len(files) == 2
    return [night.folder / "runs" / night.store.database_id / file["path"] for file in files]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.remove])
def test_damaged_newest_checkpoint_gives_way_to_the_one_before(
    night: Night, bits: str, damage: Callable[[Path], None]
) -> None:
    newest, before = preempt_with_two_checkpoints(night)
    damage(newest)
    done = night.run("work")
    assert done.returncode == 0
    assert "checkpoint refused" in done.stderr
    resumed = rows(night.store, "attempts", job_id=1)[-1]["resumed_from_step"]
    assert before.name == f"step-{resumed}.safetensors"
    assert newest.name in row(night.store, "events", kind="checkpoint refused")["detail"]
    night.assert_undisturbed(bits)


def test_pickled_checkpoint_is_refused_unread(night: Night, bits: str) -> None:
    newest, before = preempt_with_two_checkpoints(night)
    trap = f"cos\nsystem\n(S'touch {night.folder}/owned'\ntR."
    for path in (newest, before):
        path.write_text(trap)
    assert night.run("work").returncode == 0
    assert rows(night.store, "attempts", job_id=1)[-1]["resumed_from_step"] == 0
    assert not (night.folder / "owned").exists()
    night.assert_undisturbed(bits)


# --- the disk is full -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


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
    shutil.move(night.folder / "jobs.db", small_disk / "jobs.db")
    night.store = open_store(str(small_disk / "jobs.db"))
    worker = night.start("work", "--db", str(small_disk / "jobs.db"))
    night.wait_for(lambda: rows(night.store, "metrics"), "a measurement")
    ballast = fill(small_disk)
    assert worker.stderr is not None
    night.wait_for(lambda: "disk full" in worker.stderr.readline(), "the worker's complaint")  # type: ignore[union-attr]
    ballast.unlink()
    assert worker.wait(timeout=300) == 0
    assert {job["failures"] for job in rows(night.store, "jobs")} == {0}
    night.assert_undisturbed(bits)


def test_full_disk_under_the_checkpoints_costs_a_checkpoint(
    night: Night, bits: str, small_disk: Path
) -> None:
    env = inject(night.folder / "fault", FULL_DISK, DISK=str(small_disk))
    night.work_until_drained(
        "--runs-dir", str(small_disk), "--checkpoint-seconds", "0", "--keep-checkpoints", **env
    )
    assert struck(night.folder / "fault")
    assert {(a["outcome"], a["charged"]) for a in rows(night.store, "attempts")} == {("done", 0)}
    assert rows(night.store, "events", kind="checkpoint not saved")
    survivor = row(night.store, "checkpoints")
    [file] = small_disk.glob(f"*/{survivor['path']}")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == survivor["sha256"]
    night.assert_undisturbed(bits)


# --- locks, readers, copies -------------------------------------------------------------------------------


def test_open_report_and_a_shell_with_a_lock_make_workers_wait_at_most(night: Night, bits: str) -> None:
    reader = sqlite.driver().connect(night.store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM jobs").fetchall()  # a read transaction, open all night
    worker = night.start("work")
    night.wait_for(lambda: rows(night.store, "metrics"), "a measurement")
    shell = sqlite.driver().connect(night.store.path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")  # and for a while a writer that does nothing
    time.sleep(1.0)
    shell.execute("ROLLBACK")
    assert worker.wait(timeout=300) == 0
    assert reader.execute("SELECT COUNT(*) FROM results").fetchone() == (0,)  # its own, unmoved moment
    reader.close()
    shell.close()
    night.assert_undisturbed(bits)


def test_backup_while_working_is_consistent(night: Night, bits: str) -> None:
    worker = night.start("work")
    night.wait_for(lambda: rows(night.store, "metrics"), "a measurement")
    copies = [night.folder / f"copy-{number}.db" for number in range(3)]
    for copy in copies:
        assert night.run("db", "backup", str(copy)).returncode == 0
    assert worker.wait(timeout=300) == 0
    for copy in copies:
        opened = open_store(str(copy))
        with opened.read() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            done = connection.scalar(sa.text("SELECT COUNT(*) FROM jobs WHERE status = 'done'"))
            assert connection.scalar(sa.text("SELECT COUNT(*) FROM results")) == done
        opened.close()
    again = night.run("db", "backup", str(copies[0]))
    assert (again.returncode, "exists" in again.stderr) == (65, True)
    night.assert_undisturbed(bits)


# --- clocks, hosts ----------------------------------------------------------------------------------------

SHIFTED_CLOCK = """
if SUPERVISOR:
    import runner.store as store
    from sqlalchemy.ext.compiler import compiles
    @compiles(store.now, "sqlite")
    def shifted(*_, **__):
        return "((julianday('now') - 2440587.5) * 86400.0 + SECONDS)"
"""


@pytest.mark.parametrize("seconds", ["3600.0", "-3600.0"])
def test_clock_that_jumps_an_hour_delays_at_most(night: Night, bits: str, seconds: str) -> None:
    first = night.start("work", "--checkpoint-seconds", "0")
    night.wait_for(lambda: rows(night.store, "checkpoints"), "a checkpoint")
    shifted = inject(night.folder / "fault", SHIFTED_CLOCK, SECONDS=seconds)
    second = night.start("work", PYTHONPATH=f"{shifted['PYTHONPATH']}{os.pathsep}{PROJECT}")
    codes = [worker.wait(timeout=300) for worker in (first, second)]
    assert codes == [0, 0]
    assert night.run("work").returncode == 0
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
def test_two_processes_and_ten_thousand_empty_jobs(store: Store, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY_GRID)
    grid = grids.adjust(grids.load_grid(str(tmp_path / "tiny.toml")), seeds="1..5000")
    assert store.write(lambda c: enqueue(c, "tiny", grid)) == 10_000
    code = f"""
import sys
from runner.queue import jobs
from runner.queue.store import open_store
store = open_store({str(store.path)!r})
me = jobs.Worker(sys.argv[1], "here", 1, "cpu")
while (claimed := store.write(lambda c: jobs.claim(c, me))) is not None:
    store.write(lambda c: jobs.finish(c, claimed, {{"val_loss": 1.0, "val_perplexity": 2.7}}))
"""
    pair = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    assert [worker.communicate(timeout=600)[1] for worker in pair] == ["", ""]
    with store.read() as connection:
        assert connection.scalar(sa.text("SELECT COUNT(*) FROM results")) == 10_000
        assert connection.scalar(sa.text("SELECT COUNT(*) FROM attempts")) == 10_000
        assert connection.scalar(sa.text("SELECT COUNT(DISTINCT owner) FROM attempts")) == 2


# --- jobs that end badly ----------------------------------------------------------------------------------


def test_diverged_run_is_final_and_its_series_is_shown(tmp_path: Path, cache_dir: Path) -> None:
    folder = Night(tmp_path, cache_dir)
    env = inject(tmp_path / "fault", DIVERGENCE)
    assert folder.run("work", **env).returncode == 0
    assert {(job["status"], job["attempt"]) for job in rows(folder.store, "jobs")} == {("failed", 1)}
    attempt = row(folder.store, "attempts", job_id=1)
    assert attempt["cause"] == "diverged"
    assert "loss is nan; lower train.muon_lr" in attempt["message"]
    assert rows(folder.store, "metrics", job_id=1, name="loss")
    assert "diverged" in folder.run("show", "1").stdout
    assert "diverged" in folder.run("report").stdout


OUT_OF_MEMORY = """
if TRAINER:
    import resource
    class Hungry:
        def find_spec(self, name, path=None, target=None):
            if name == "model.training.loop":  # torch is in: from here on, 600 MB more than it holds
                held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (held + (600 << 20),) * 2)
            return None
    sys.meta_path.insert(0, Hungry())
"""


def test_out_of_memory_is_retried_once_and_says_what_to_do(tmp_path: Path, cache_dir: Path) -> None:
    folder = Night(tmp_path, cache_dir)
    folder.run("cancel", "1")
    folder.run("cancel", "2")
    large = (
        "--study",
        "large",
        "--set=train.batch_size=64",
        "--set=model.d_model=64",
        "--set=model.d_ff=65536",
    )
    folder.run("enqueue", "--grid", "tiny.toml", "--corpus", "bundled", *SIZES, *large)
    folder.run("cancel", "4")
    env = inject(tmp_path / "fault", OUT_OF_MEMORY)
    assert folder.run("work", **env).returncode == 0
    attempts = rows(folder.store, "attempts", job_id=3)
    assert [a["cause"] for a in attempts] == ["oom", "oom"]
    assert "train.batch_size" in attempts[-1]["message"]
    assert "peak" in attempts[-1]["message"]
    assert row(folder.store, "jobs", id=3)["status"] == "failed"


# --- nothing left over ------------------------------------------------------------------------------------


def test_no_secret_is_recorded(night: Night) -> None:
    secret = "hunter2-never-shown"
    env = {"WANDB_API_KEY": secret, "HF_TOKEN": secret, "JOBS_DB_PASSWORD": secret}
    worked = night.run("work", "--jobs", "1", **env)
    shown = [night.run(*words, **env).stdout for words in (("report",), ("show", "1"), ("status", "--json"))]
    files = [path.read_bytes() for path in night.folder.rglob("*") if path.is_file()]
    assert not any(secret.encode() in content for content in files)
    assert secret not in worked.stdout + worked.stderr + "".join(shown)
    refused = night.run("status", "--db", f"mysql://me:{secret}@host/db?password={secret}")
    assert refused.returncode == 78
    assert secret not in refused.stdout + refused.stderr


def test_native_call_that_holds_the_interpreter_is_not_taken_over(night: Night) -> None:
    """The heartbeat is another process's: a trainer frozen for three leases keeps its job."""
    fault = """
if TRAINER and once("fault"):
    import ctypes, threading, time
    def freeze():
        time.sleep(2.5)
        ctypes.PyDLL(None).usleep(ctypes.c_uint(6_000_000))  # PyDLL keeps the interpreter's lock
    threading.Thread(target=freeze, daemon=True).start()
"""
    env = inject(night.folder / "fault", fault)
    frozen = night.start("work", "--lease-seconds", "2", **env)
    night.wait_for(lambda: rows(night.store, "attempts"), "a claim")
    other = night.start("work", "--lease-seconds", "2", "--jobs", "1")
    assert frozen.wait(timeout=300) == 0
    assert other.wait(timeout=300) == 0
    assert struck(night.folder / "fault")
    assert {(a["outcome"], a["number"]) for a in rows(night.store, "attempts")} == {("done", 1)}
