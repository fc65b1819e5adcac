"""The night, in real processes with real signals: drain, release, resume, hang, crash, take over.

The trainers run the toy program (tests/toy.py), and stand still at a gate where something is to strike in
mid-run. Faults of the trainer are played by small programs that speak its protocol (supervised.py), so that
they happen exactly when they should. Nights of the model itself are in test_real_night.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from model.events import Phase
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue import jobs
from runner.queue.store import Store, StoreUnreachable
from runner.work import signals
from runner.work.running import RunningJob
from runner.work.slot import UNHEALTHY
from runner.work.worker import DRAINED, PREEMPTED
from tests.conftest import both_engines, row, rows
from tests.injection import LATE, gate_at
from tests.work.night import Night, alive, wait_for
from tests.work.supervised import FIRST, work_on

# --- the plain night --------------------------------------------------------------------------------------


@both_engines
def test_two_workers_share_a_queue(night: Night) -> None:
    """Both have a job when the gate opens."""
    night.enqueue("more", seeds="1..3")
    gate = night.inject(gate_at(20), "gate")
    pair = [night.start("work", **gate) for _ in range(2)]
    night.wait_at_gate(trainers=2)
    night.open_gate()
    assert [worker.wait(timeout=300) for worker in pair] == [DRAINED] * 2
    assert [job["attempt"] for job in rows(night.store, "jobs", status="done")] == [1] * 8
    assert len(rows(night.store, "results")) == 8
    assert len({a["owner"] for a in rows(night.store, "attempts")}) == 2


def test_jobs_limit_stops_after_so_many(night: Night) -> None:
    assert night.run("work", "--jobs", "1").returncode == DRAINED
    assert [job["status"] for job in rows(night.store, "jobs")] == ["done", "queued"]


# --- signals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "number", "code"),
    [
        ("sqlite", signal.SIGTERM, PREEMPTED),
        ("sqlite", signal.SIGINT, DRAINED),
        ("sqlite", signal.SIGHUP, PREEMPTED),
        ("postgresql", signal.SIGTERM, PREEMPTED),
    ],
    indirect=["database"],
)
def test_first_signal_saves_releases_and_the_next_worker_goes_on(
    night: Night, bits: str, number: int, code: int
) -> None:
    worker = night.work_to_gate()
    night.stop_at_gate(worker, number)
    assert worker.wait(timeout=120) == code
    job = row(night.store, "jobs", id=1)
    assert (job["status"], job["failures"]) == ("queued", 0)
    assert row(night.store, "attempts")["outcome"] == "preempted"
    assert len(rows(night.store, "checkpoints")) == 1
    assert night.drain() == DRAINED
    resumed = rows(night.store, "attempts", job_id=1)[1]
    assert resumed["resumed_from_step"] == 22  # the update's end
    assert resumed["exact"] == 1
    night.assert_undisturbed(bits)


def test_second_signal_leaves_at_once_and_loses_nothing(night: Night, bits: str) -> None:
    worker = night.work_to_gate("--lease-seconds", "3")
    trainer = night.trainer()  # it stands, and will never reach its update's end
    worker.send_signal(signal.SIGTERM)
    night.wait_for_word(worker, "stopping")
    worker.send_signal(signal.SIGINT)
    assert worker.wait(timeout=60) == 128 + signal.SIGINT
    wait_for(lambda: not alive(trainer), "the trainer's end")
    assert night.drain() == DRAINED
    night.assert_undisturbed(bits)


def test_nohup_is_respected(night: Night) -> None:
    worker = night.work_to_gate(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    worker.send_signal(signal.SIGHUP)
    night.open_gate()
    assert worker.wait(timeout=120) == DRAINED
    assert [a["outcome"] for a in rows(night.store, "attempts")] == ["done"] * 2


def test_time_limit_drains_before_the_time_is_up(night: Night, bits: str) -> None:
    worker = night.work_to_gate("--time-limit", "1h", fault=LATE)
    (night.folder / "gate" / "late").touch()
    night.go_on_when_asked()
    assert worker.wait(timeout=120) == PREEMPTED
    assert worker.stderr is not None
    assert "stopping: 0 s of the time are left; finishing the update" in worker.stderr.read()
    assert row(night.store, "attempts")["outcome"] == "preempted"
    assert night.run("work", "--time-limit", "1h").returncode == DRAINED
    assert {job["failures"] for job in rows(night.store, "jobs")} == {0}
    night.assert_undisturbed(bits)


def test_time_is_kept_for_two_updates_of_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update of an hour ago keeps nothing, and what has been asked stays asked."""
    now = 0.0
    monkeypatch.setattr(signals, "awake_seconds", lambda: now)
    stop = signals.Stop(3600, lambda: None)
    now, stop.slowest_update_seconds = 3000, 200
    assert not stop.asked
    now, stop.slowest_update_seconds = 3300, 100
    assert not stop.asked
    now, stop.slowest_update_seconds = 3500, 60
    assert stop.asked
    stop.slowest_update_seconds = 0
    assert stop.asked
    assert not signals.Stop(None, lambda: None).asked


# --- kill -9 ----------------------------------------------------------------------------------------------


@both_engines
def test_killed_supervisor_takes_its_trainer_along(night: Night, bits: str) -> None:
    worker = night.work_to_gate("--lease-seconds", "3")
    trainer = night.trainer()
    assert alive(trainer)
    worker.kill()
    wait_for(lambda: not alive(trainer), "the trainer's end")
    assert night.drain() == DRAINED
    assert rows(night.store, "attempts", job_id=1)[0]["outcome"] == "lost"
    night.assert_undisturbed(bits)


@both_engines
def test_killed_trainer_costs_its_attempt_only(night: Night, bits: str) -> None:
    worker = night.work_to_gate("--checkpoint-seconds", "0")
    wait_for(lambda: night.saved() == [16, 18], "the last two checkpoints")
    os.kill(night.trainer(), signal.SIGKILL)
    night.open_gate()
    assert worker.wait(timeout=300) == DRAINED
    attempt = row(night.store, "attempts", number=1, job_id=1)
    assert (attempt["outcome"], attempt["cause"], attempt["exit_code"]) == ("failed", "infrastructure", -9)
    assert attempt["charged"] == 0  # it had moved the job on
    night.assert_undisturbed(bits)


def test_kills_of_the_worker_change_no_bit(night: Night, bits: str) -> None:
    """Each at another step of either job: a later trainer goes on from what an earlier one saved."""
    finished = None
    for kill, step in enumerate((10, 40, 100, 30, 90)):
        if kill == 3:  # the first job is let go on, and stays as it is
            assert night.run("work", "--jobs", "1").returncode == DRAINED
            finished = row(night.store, "jobs", id=1)
        worker = night.work_to_gate("--checkpoint-seconds", "0", step=step, name=f"gate-{kill}")
        worker.kill()
        worker.wait()
        night.store.write(
            lambda c: c.execute(sa.text("UPDATE jobs SET lease_expires_at = 1 WHERE status = 'running'"))
        )
        night.store.write(jobs.requeue_lost)
        night.store.write(lambda c: c.execute(sa.text("UPDATE jobs SET run_after = NULL")))
    assert night.drain() == DRAINED
    assert row(night.store, "jobs", id=1) == finished
    lost = rows(night.store, "attempts", outcome="lost")
    assert [attempt["job_id"] for attempt in lost] == [1, 1, 1, 2, 2]
    assert [a["resumed_from_step"] for a in rows(night.store, "attempts", job_id=1)] == [0, 8, 38, 98]
    night.assert_undisturbed(bits)


@both_engines
def test_stopped_worker_is_taken_over_and_stays_out(night: Night, bits: str) -> None:
    sleeper = night.work_to_gate("--lease-seconds", "2")
    trainer = night.trainer()
    for pid in (sleeper.pid, trainer):
        os.kill(pid, signal.SIGSTOP)
    assert night.drain() == DRAINED
    night.open_gate()
    for pid in (trainer, sleeper.pid):
        os.kill(pid, signal.SIGCONT)
    night.wait_for_word(sleeper, "no longer holds it")
    assert sleeper.wait(timeout=300) == DRAINED
    assert row(night.store, "results", job_id=1)["attempt"] == 2
    night.assert_undisturbed(bits)


# --- cancel, database gone --------------------------------------------------------------------------------


@both_engines
def test_cancelled_running_job_saves_keeps_what_it_measured_and_can_go_on(night: Night, bits: str) -> None:
    worker = night.work_to_gate("--lease-seconds", "6")
    wait_for(lambda: rows(night.store, "metrics", job_id=1), "a measurement")
    assert night.run("cancel", "1").returncode == 0
    night.go_on_when_asked()
    assert worker.wait(timeout=300) == DRAINED
    assert [job["status"] for job in rows(night.store, "jobs")] == ["cancelled", "done"]
    assert rows(night.store, "metrics", job_id=1)
    assert rows(night.store, "results", job_id=1) == []
    assert night.saved() == [22]
    assert night.run("retry", "1").returncode == 0
    # From another folder: the checkpoint is beside the database, on a server's in the folder of the first.
    elsewhere = night.folder / "elsewhere"
    elsewhere.mkdir()
    place = ("--db", str(night.store.path)) if not night.database else ()
    folder, night.folder = night.folder, night.folder if night.database else elsewhere
    assert night.run("work", *place).returncode == DRAINED
    night.folder = folder
    assert row(night.store, "attempts", job_id=1, number=2)["resumed_from_step"] == 22
    night.assert_undisturbed(bits)
    assert not (elsewhere / "runs").exists()


@pytest.mark.parametrize("remove", [lambda path: path.rename(path.with_name("elsewhere.db")), Path.unlink])
def test_database_that_goes_away_stops_the_worker_loudly(
    night: Night, remove: Callable[[Path], object]
) -> None:
    worker = night.work_to_gate("--lease-seconds", "6")
    night.store.close()
    remove(night.folder / "jobs.db")
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 69
    assert "moved, deleted or replaced" in errors
    assert "Traceback" not in errors
    assert not (night.folder / "jobs.db").exists()


# --- trainers that misbehave ------------------------------------------------------------------------------


@pytest.fixture
def two_jobs(store: Store, tiny_grid: Path) -> Store:
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="1")
    store.write(lambda c: enqueue(c, "tiny", grid))
    return store


@pytest.mark.slow
def test_error_that_sticks_to_the_process_does_not_reach_the_next_job(
    two_jobs: Store, tmp_path: Path
) -> None:
    """A CUDA context stays broken after an error: the process is replaced, whatever it says of itself."""
    fail = "send(event='failed', cause='device', message='CUDA error: illegal address', traceback='')"
    job = f"broken = {FIRST} or globals().get('broken'); {fail} if broken else finish()"
    code, _ = work_on(two_jobs, tmp_path, job=job)
    assert code == DRAINED
    assert [j["status"] for j in rows(two_jobs, "jobs")] == ["failed", "done"]
    assert {a["cause"] for a in rows(two_jobs, "attempts", job_id=1)} == {"device"}
    broken = [a["pid"] for a in rows(two_jobs, "attempts", job_id=1)]
    assert len(set(broken)) == 3
    assert row(two_jobs, "attempts", job_id=2)["pid"] != broken[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "phase", "message"),
    [
        ("pass", Phase.START, "phase start"),
        (
            "send(event='Progressed', phase='step', step=3, value=None, tokens_per_second=None)",
            Phase.STEP,
            "phase step after step 3",
        ),
        (
            "send(event='Progressed', phase='evaluate', step=20, value=None, tokens_per_second=None)",
            Phase.EVALUATE,
            "phase evaluate after step 20",
        ),
    ],
)
def test_hung_trainer_is_stalled_ended_and_retried(
    two_jobs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, phase: Phase, message: str
) -> None:
    watch = RunningJob.watch

    def impatient(self: RunningJob) -> None:
        if self.lease.job_id == 1:  # of the hanging job, and of this phase alone
            limits = {**self.options.phase_limits, phase: 0.3}
            self.options = replace(self.options, phase_limits=limits)
        watch(self)

    monkeypatch.setattr(RunningJob, "watch", impatient)
    code, _ = work_on(two_jobs, tmp_path, job=f"if {FIRST}:\n    {said}\n    time.sleep(600)\nfinish()")
    assert code == DRAINED
    hung = rows(two_jobs, "attempts", job_id=1)
    assert [a["cause"] for a in hung] == ["stalled"] * 3
    assert all(message in a["message"] for a in hung)
    assert not any(alive(a["pid"]) for a in hung)
    assert [job["status"] for job in rows(two_jobs, "jobs")] == ["failed", "done"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("death", "exit_code"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os._exit(3)", 3),
    ],
)
def test_job_that_kills_its_process_each_time_fails_alone(
    two_jobs: Store, tmp_path: Path, death: str, exit_code: int
) -> None:
    code, _ = work_on(two_jobs, tmp_path, job=f"{death} if {FIRST} else finish()")
    assert code == DRAINED
    assert [job["status"] for job in rows(two_jobs, "jobs")] == ["failed", "done"]
    attempts = rows(two_jobs, "attempts", job_id=1)
    assert [(a["cause"], a["exit_code"]) for a in attempts] == [("infrastructure", exit_code)] * 3


def test_reported_failure_keeps_cause_message_and_traceback(two_jobs: Store, tmp_path: Path) -> None:
    fail = "send(event='failed', cause='diverged', message='at step 7', traceback='Traceback: all of it')"
    code, _ = work_on(two_jobs, tmp_path, job=f"{fail} if {FIRST} else finish()")
    assert code == DRAINED
    attempt = row(two_jobs, "attempts", job_id=1)
    assert (attempt["cause"], attempt["message"]) == ("diverged", "at step 7")
    assert attempt["traceback"] == "Traceback: all of it"


@pytest.mark.slow
def test_broken_device_stops_the_worker_and_charges_no_job(queued: Store, tmp_path: Path) -> None:
    code, worker = work_on(queued, tmp_path, job="os._exit(1)", check="False")
    assert code == UNHEALTHY
    assert worker.jobs_done == 3
    assert {(j["status"], j["failures"]) for j in rows(queued, "jobs")} == {("queued", 0)}
    assert {(a["cause"], a["charged"]) for a in rows(queued, "attempts")} == {("device", 0)}


@pytest.mark.slow
def test_sound_device_is_not_blamed_for_bad_jobs(queued: Store, tmp_path: Path) -> None:
    code, _ = work_on(queued, tmp_path, job="os._exit(1)")
    assert code == DRAINED
    assert {(j["status"], j["failures"]) for j in rows(queued, "jobs")} == {("failed", 3)}


@pytest.mark.slow
def test_result_that_cannot_be_recorded_is_a_bug_of_its_job(two_jobs: Store, tmp_path: Path) -> None:
    wrong = "send(event='Finished', step=40, results={'val_perplexity': 1.0})"
    code, _ = work_on(two_jobs, tmp_path, job=f"{wrong} if {FIRST} else finish()")
    assert code == DRAINED
    assert [j["status"] for j in rows(two_jobs, "jobs")] == ["failed", "done"]
    assert {a["cause"] for a in rows(two_jobs, "attempts", job_id=1)} == {"bug"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        "send(event='Measured', step=1, split='val', values={}, expert_counts=[[3, -1]]); time.sleep(600)",
        "send(event='Measured', step=1, split='val', valeus={}); time.sleep(600)",
    ],
)
def test_event_that_cannot_be_recorded_is_a_bug_of_its_job(
    two_jobs: Store, tmp_path: Path, wrong: str
) -> None:
    code, _ = work_on(two_jobs, tmp_path, job=f"if {FIRST}:\n    {wrong}\nfinish()")
    assert code == DRAINED
    assert [j["status"] for j in rows(two_jobs, "jobs")] == ["failed", "done"]
    assert {(a["cause"], a["outcome"]) for a in rows(two_jobs, "attempts", job_id=1)} == {("bug", "failed")}
    assert rows(two_jobs, "expert_counts") == []


@pytest.mark.slow
def test_replaced_database_is_never_written(two_jobs: Store, tmp_path: Path) -> None:
    swap = tmp_path / "swap.db"
    swap.write_bytes(b"")
    job = f"os.replace({str(swap)!r}, {str(two_jobs.path)!r}); time.sleep(600)"
    with pytest.raises(StoreUnreachable, match="replaced"):
        work_on(two_jobs, tmp_path, job=job)
    assert two_jobs.path.read_bytes() == b""
