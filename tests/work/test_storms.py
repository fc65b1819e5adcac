"""What an ordinary night throws at a worker: dying trainers, lost folders, full caches, damaged pages.

Real processes, real file systems. An order of things is made certain by a mark or a gate, never by a wait.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from runner.queue.store import Store, open_store
from runner.work import upkeep
from runner.work.process import TrainerProcess
from runner.work.progress import Display
from runner.work.slot import UNHEALTHY
from runner.work.worker import DRAINED, PREEMPTED
from tests.conftest import row, rows
from tests.queue.test_damage import damage
from tests.work.night import Night
from tests.work.supervised import work_on
from tests.work.test_faults import fill

# --- a trainer that dies while it starts ------------------------------------------------------------------


def dying(marks: Path, deaths: int, device: str = "") -> str:
    """For a trainer's start: leaves a mark, and is killed as long as there are few of them."""
    marks.mkdir()
    who = f"device == {device!r} and " if device else ""
    return (
        f"\n    open({str(marks)!r} + f'/{{os.getpid()}}', 'w').close()"
        f"\n    if {who}len(os.listdir({str(marks)!r})) <= {deaths}: os.kill(os.getpid(), signal.SIGKILL)"
    )


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "START_AGAIN_SECONDS", (0.01, 0.01, 0.01))


@pytest.mark.slow
@pytest.mark.usefixtures("soon")
def test_trainer_that_dies_while_it_starts_is_started_again(queued: Store, tmp_path: Path) -> None:
    code, _ = work_on(queued, tmp_path, ("a",), begin=dying(tmp_path / "marks", 3))
    assert code == DRAINED
    assert len(list((tmp_path / "marks").iterdir())) == 4
    assert {(job["status"], job["attempt"]) for job in rows(queued, "jobs")} == {("done", 1)}


@pytest.mark.slow
def test_machine_without_room_for_a_process_is_waited_for(
    queued: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fork is refused twice, as at a limit on processes (which root does not have); no descriptor stays."""
    spawn, tries = subprocess.Popen, []

    def refused(*arguments: Any, **options: Any) -> Any:
        if "pass_fds" not in options:
            return spawn(*arguments, **options)
        tries.append(len(os.listdir("/proc/self/fd")))
        if len(tries) <= 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return spawn(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", refused)
    code, _ = work_on(queued, tmp_path, ("a",))
    assert code == DRAINED
    assert len(tries) == 3
    assert len(set(tries)) == 1
    assert {(job["status"], job["attempt"]) for job in rows(queued, "jobs")} == {("done", 1)}


@pytest.mark.slow
@pytest.mark.usefixtures("soon")
def test_device_whose_trainers_all_die_is_unhealthy(queued: Store, tmp_path: Path) -> None:
    code, _ = work_on(queued, tmp_path, ("a",), begin=dying(tmp_path / "marks", 99))
    assert code == UNHEALTHY
    assert len(list((tmp_path / "marks").iterdir())) == 4
    assert rows(queued, "attempts") == []


@pytest.mark.slow
@pytest.mark.usefixtures("soon")
def test_trainer_that_dies_at_the_known_answer_check_is_started_again(queued: Store, tmp_path: Path) -> None:
    """Three jobs fail at once; the first trainer that is to be checked is killed, the second is sound."""
    mark = str(tmp_path / "checked")
    check = f"os.path.exists({mark!r}) or open({mark!r}, 'w').close() or os.kill(os.getpid(), signal.SIGKILL)"
    code, _ = work_on(queued, tmp_path, ("a",), job="os._exit(1)", check=check)
    assert code == DRAINED
    assert {(job["status"], job["failures"]) for job in rows(queued, "jobs")} == {("failed", 3)}


@pytest.mark.slow
def test_waiting_to_start_again_keeps_no_other_slot_waiting(
    queued: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other slot starts when the first has died, so that it cannot have taken the jobs before."""
    monkeypatch.setattr(upkeep, "START_AGAIN_SECONDS", (3600.0,))
    marks = tmp_path / "marks"
    begin = dying(marks, 99, "dying") + f"\n    while not os.listdir({str(marks)!r}): time.sleep(0.01)"
    code, worker = work_on(queued, tmp_path, ("dying", "sound"), begin=begin)
    assert code == DRAINED
    assert not any(each.out for each in worker.slots)
    assert {attempt["device"] for attempt in rows(queued, "attempts")} == {"sound"}
    assert {job["status"] for job in rows(queued, "jobs")} == {"done"}


class Interrupted(Display):
    """Sends the worker a SIGTERM when it says that it starts another trainer later."""

    def note(self, text: str) -> None:
        super().note(text)
        if "starting another" in text:
            os.kill(os.getpid(), signal.SIGTERM)


def test_waiting_to_start_again_serves_a_signal(
    queued: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "START_AGAIN_SECONDS", (3600.0,))
    begin = dying(tmp_path / "marks", 99)
    code, _ = work_on(queued, tmp_path, ("a",), display=Interrupted(), begin=begin)
    assert code == PREEMPTED
    assert rows(queued, "attempts") == []


def test_descriptor_is_closed_once(tmp_path: Path) -> None:
    """A second kill must not close the pipe of the trainer that has got its number since."""
    speaks = (
        sys.executable,
        "-c",
        "import os, sys, time; os.write(int(sys.argv[1]), b'{}\\n'); time.sleep(60)",
    )
    first = TrainerProcess("cpu", 1, tmp_path / "first.log", speaks)
    first.kill()
    second = TrainerProcess("cpu", 1, tmp_path / "second.log", speaks)
    assert second.events_fd == first.events_fd  # the lowest free number: the test would prove nothing else
    first.kill()
    assert second.receive(60.0) == [{}]
    second.kill()


def test_worker_without_a_job_gives_a_sign_of_life(queued: Store, tmp_path: Path) -> None:
    code, worker = work_on(queued, tmp_path, ("a",))
    assert code == DRAINED
    queued.write(lambda c: c.execute(sa.text("UPDATE workers SET heartbeat_at = 1, stopped_at = NULL")))
    worker._beat_if_due()
    assert row(queued, "workers")["heartbeat_at"] == 1  # not at each look
    worker._beat_at = 0.0
    worker._beat_if_due()
    assert row(queued, "workers")["heartbeat_at"] > 1


# --- the database is damaged, or exchanged ----------------------------------------------------------------


def test_damaged_page_stops_the_worker_and_charges_no_job(night: Night) -> None:
    """Where measurements go: each job would be trained to its end, and then could not be recorded."""
    damage(night.store, "metrics")
    done = night.run("work")
    assert done.returncode == 78
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: jobs.db: damaged (")
    assert "doctor" in said
    assert "db backup" in said
    night.store = open_store(str(night.store.path))
    assert {(job["status"], job["failures"]) for job in rows(night.store, "jobs")} == {("queued", 0)}
    assert [(a["outcome"], a["charged"]) for a in rows(night.store, "attempts")] == [("preempted", 0)]


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_exchanged_log_stops_the_worker_and_loses_no_job(night: Night, suffix: str) -> None:
    """The file is gone while the trainer stands still; nothing of the job may be written after that."""
    worker = night.work_to_gate("--checkpoint-seconds", "0", "--lease-seconds", "2")
    night.store.close()  # else the log would be folded back by whoever closes last: this process
    Path(f"{night.store.path}{suffix}").unlink()
    night.open_gate()
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 69
    assert "moved, deleted or replaced" in errors
    assert "Traceback" not in errors
    night.work_until_drained()
    night.store = open_store(str(night.store.path))
    assert {(job["status"], job["failures"]) for job in rows(night.store, "jobs")} <= {
        ("done", 0),
        ("done", 1),
    }
    assert len(rows(night.store, "results")) == 2


# --- the prepared data ------------------------------------------------------------------------------------


def test_full_cache_disk_is_waited_for(real_night: Night, small_disk: Path, real_bits: str) -> None:
    real_night.cache_dir = small_disk
    ballast = fill(small_disk)
    worker = real_night.start("work")
    real_night.wait_for_word(worker, "waiting: [Errno 28] No space left on device")
    ballast.unlink()
    _, errors = worker.communicate(timeout=300)
    assert worker.returncode == DRAINED, errors
    assert {(a["number"], a["outcome"]) for a in rows(real_night.store, "attempts")} == {(1, "done")}
    assert len(rows(real_night.store, "events", kind="waiting", job_id=1)) == 1
    real_night.assert_undisturbed(real_bits)


def test_signal_ends_the_waiting_for_a_read_only_cache(real_night: Night, small_disk: Path) -> None:
    real_night.cache_dir = small_disk
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    worker = real_night.start("work")
    real_night.wait_for_word(worker, "waiting: [Errno 30] Read-only file system")
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=120)
    assert worker.returncode == PREEMPTED
    assert {(job["status"], job["failures"]) for job in rows(real_night.store, "jobs")} == {("queued", 0)}


def test_result_of_altered_data_is_not_recorded(real_night: Night, cache_dir: Path, real_bits: str) -> None:
    """A few tokens change under the run; what was trained on them goes, checkpoints too."""
    real_night.cache_dir = real_night.folder / "cache"
    shutil.copytree(cache_dir, real_night.cache_dir)
    worker = real_night.work_to_gate("--checkpoint-seconds", "0")
    for tokens in real_night.cache_dir.glob("*/train.npy"):  # other tests' too, which may be small
        with tokens.open("r+b") as file:
            file.seek(max(tokens.stat().st_size - 2000, 0))
            file.write(bytes(100))
    real_night.open_gate()
    _, errors = worker.communicate(timeout=300)
    assert worker.returncode == DRAINED, errors
    first, second = rows(real_night.store, "attempts", job_id=1)
    assert (first["outcome"], first["cause"]) == ("failed", "infrastructure")
    assert "prepared train tokens were changed" in first["message"]
    assert (second["outcome"], second["resumed_from_step"]) == ("done", 18)
    real_night.assert_undisturbed(real_bits)


# --- the run folder ---------------------------------------------------------------------------------------

SAVES = """
import hashlib, shutil, subprocess
def save(step):
    path = os.path.join(message["workdir"], f"step-{step}.safetensors")
    try:
        os.makedirs(message["workdir"], exist_ok=True)
        open(path, "wb").close()
    except OSError as error:
        return send(event="NotSaved", step=step, reason=str(error))
    send(event="Checkpointed", step=step, path=path, sha256="0" * 64, size_bytes=0, seconds=0.0)
def seen():
    while not os.path.exists(MARK): time.sleep(0.01)
save(10); save(20)
if not os.path.exists(MARK):
    open(MARK, "w").close()
    LOSE
    save(30)
    os._exit(1)
finish()
"""
"""Job 1 loses the folder between two checkpoints and dies; another trainer takes it, and the rest."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        # The same folder once more, read-only: nobody has a file open by this way.
        (
            "for way in ('--bind', '-oremount,bind,ro'): subprocess.check_call(['mount', way, RUNS, RUNS])",
            "Read-only",
        ),
        (
            "for path in os.listdir(RUNS): shutil.rmtree(f'{RUNS}/{path}')\n"
            "send(event='NotSaved', step=25, reason='for a look soon')\n"
            "while not os.path.isdir(message['workdir']): time.sleep(0.01)",
            "was deleted, and is made again",
        ),
        (
            "try:\n    for i in range(999): open(f'{RUNS}/{i}', 'w').close()\nexcept OSError: pass",
            "No space left on device",
        ),
    ],
    ids=["read-only", "deleted", "no inodes"],
)
def test_lost_run_folder_costs_checkpoints_and_no_job(
    queued: Store, tmp_path: Path, lose: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "nr_inodes=400", "tmpfs", str(runs)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    job = SAVES.replace("LOSE", textwrap.indent(lose, " " * 4).strip())
    job = f"RUNS, MARK = {str(runs)!r}, {str(tmp_path / 'mark')!r}\n{job}"
    try:
        code, _ = work_on(queued, tmp_path, ("a",), job=job)
    finally:
        while (
            subprocess.run(["umount", "--lazy", str(runs)], capture_output=True, check=False).returncode == 0
        ):
            pass
    assert code == DRAINED
    assert {(job["status"], job["failures"]) for job in rows(queued, "jobs")} == {("done", 0)}
    assert any(reason in event["detail"] for event in rows(queued, "events", kind="run folder"))
    assert "run folder: " in capfd.readouterr().err
