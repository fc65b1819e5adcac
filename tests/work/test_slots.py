"""Two trainers under one supervisor: the same bits as one, and what befalls one slot leaves the other alone.

On the CPU, which is a device like any other. Where an order of things matters it is made certain: a trainer
stands still in mid-run until the test lets it go on, or is a small program of the test's own.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from model.config import RunConfig, canonical_json
from runner.design.program import load
from runner.queue.store import Store
from runner.work import options
from runner.work.options import DevicesUnknown, own_cores, shared_out, slots
from runner.work.progress import Display
from runner.work.slot import UNHEALTHY
from runner.work.worker import DRAINED, PREEMPTED
from tests.conftest import row, rows
from tests.work.night import Night, alive, wait_for
from tests.work.supervised import work_on

TWO = ("--devices", "cpu,cpu", "--checkpoint-seconds", "0")


@pytest.fixture
def gated(night: Night) -> subprocess.Popen[str]:
    """A worker whose two trainers each have a job, have left checkpoints, and stand still."""
    return night.work_to_gate(*TWO, trainers=2)


def test_two_slots_are_two_workers_to_the_database(
    night: Night, gated: subprocess.Popen[str], bits: str
) -> None:
    """Of the model itself: test_real_night.py."""
    night.open_gate()
    assert gated.wait(timeout=120) == DRAINED
    night.assert_undisturbed(bits)
    attempts = rows(night.store, "attempts")
    assert len({attempt["pid"] for attempt in attempts}) == 2
    assert len({attempt["owner"] for attempt in attempts}) == 2
    assert all(worker["exit_code"] == 0 for worker in rows(night.store, "workers"))


def test_first_signal_releases_both_jobs(night: Night, gated: subprocess.Popen[str], bits: str) -> None:
    night.stop_at_gate(gated)
    assert gated.wait(timeout=120) == PREEMPTED
    assert {(job["status"], job["failures"]) for job in rows(night.store, "jobs")} == {("queued", 0)}
    assert [attempt["outcome"] for attempt in rows(night.store, "attempts")] == ["preempted"] * 2
    assert night.drain() == DRAINED
    assert all(attempt["resumed_from_step"] for attempt in rows(night.store, "attempts", number=2))
    night.assert_undisturbed(bits)


def test_killed_supervisor_leaves_no_process(night: Night, gated: subprocess.Popen[str]) -> None:
    started = [night.trainer(1), night.trainer(2)]
    assert all(alive(pid) for pid in started)
    gated.kill()
    wait_for(lambda: not any(alive(pid) for pid in started), "the trainers' end")


def test_killed_trainer_leaves_the_other_slot_alone(
    night: Night, gated: subprocess.Popen[str], bits: str
) -> None:
    os.kill(night.trainer(1), signal.SIGKILL)
    wait_for(lambda: row(night.store, "attempts", job_id=1, number=1)["outcome"], "the end of the attempt")
    night.open_gate()
    assert gated.wait(timeout=120) == DRAINED
    killed = row(night.store, "attempts", job_id=1, number=1)
    assert (killed["outcome"], killed["cause"], killed["charged"]) == ("failed", "infrastructure", 0)
    assert row(night.store, "attempts", job_id=2)["outcome"] == "done"
    night.assert_undisturbed(bits)


# --- trainers of the test's own ---------------------------------------------------------------------------


@pytest.mark.slow
def test_failing_device_is_taken_out_and_the_other_finishes(queued: Store, tmp_path: Path) -> None:
    """The sound one starts when the other has failed its check, so that it cannot have taken the jobs."""
    mark = str(tmp_path / "checked")
    code, worker = work_on(
        queued,
        tmp_path,
        ("broken", "sound"),
        begin=f"\n    while device == 'sound' and not os.path.exists({mark!r}): time.sleep(0.01)",
        job="os._exit(1) if device == 'broken' else finish()",
        check=f"device == 'sound' or open({mark!r}, 'w') is None",
    )
    assert code == DRAINED
    assert [slot.out for slot in worker.slots] == [True, False]
    assert {(job["status"], job["failures"]) for job in rows(queued, "jobs")} == {("done", 0)}
    broken = rows(queued, "attempts", device="broken")
    assert [(attempt["cause"], attempt["charged"]) for attempt in broken] == [("device", 0)] * 3
    signed = {slot["device"]: slot["exit_code"] for slot in rows(queued, "workers")}
    assert signed == {"broken": UNHEALTHY, "sound": DRAINED}


@pytest.mark.slow
def test_last_device_that_fails_stops_the_worker(queued: Store, tmp_path: Path) -> None:
    code, _ = work_on(queued, tmp_path, ("a", "b"), job="os._exit(1)", check="False")
    assert code == UNHEALTHY
    assert {(job["status"], job["failures"]) for job in rows(queued, "jobs")} == {("queued", 0)}


class Watched(Display):
    """Leaves a mark when the worker has seen an empty queue."""

    mark: Path

    def queue(self, left: int, eta_seconds: float | None) -> None:
        if left == 0:
            self.mark.touch()


@pytest.mark.slow
def test_empty_queue_is_not_drained_while_a_slot_may_give_its_jobs_back(
    queued: Store, tmp_path: Path
) -> None:
    """Three jobs have failed for good and the fourth is done, but the device of the three is being tested."""
    with queued.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET max_failures = 1")
    testing, seen = str(tmp_path / "testing"), tmp_path / "seen"
    test = f"""
    def wait(path):
        while not os.path.exists(path): time.sleep(0.01)
    def test():
        open({testing!r}, "w").close()
        wait({str(seen)!r})
        return False
    """
    display = Watched()
    display.mark = seen
    code, _ = work_on(
        queued,
        tmp_path,
        ("broken", "sound"),
        display=display,
        begin=test,
        job=f"wait({testing!r}) if device == 'sound' else os._exit(1); finish()",
        check="device == 'sound' or test()",
    )
    assert code == DRAINED
    assert {(job["status"], job["failures"]) for job in rows(queued, "jobs")} == {("done", 0)}


@pytest.mark.slow
def test_trainer_that_takes_long_to_start_keeps_nobody_waiting(queued: Store, tmp_path: Path) -> None:
    code, _ = work_on(
        queued, tmp_path, ("slow", "quick"), begin="\n    if device == 'slow': time.sleep(3600)"
    )
    assert code == DRAINED
    assert {attempt["device"] for attempt in rows(queued, "attempts")} == {"quick"}


def test_jobs_limit_counts_the_jobs_of_all_slots(queued: Store, tmp_path: Path) -> None:
    code, worker = work_on(queued, tmp_path, ("a", "b"), jobs=3)
    assert (code, worker.jobs_done) == (DRAINED, 3)
    assert sorted(job["status"] for job in rows(queued, "jobs")) == ["done", "done", "done", "queued"]


# --- which devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "cards", "expected"),
    [
        ("auto", 0, ("auto",)),
        ("cuda:0,cuda:2", 0, ("cuda:0", "cuda:2")),
        ("all", 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("all", 0, ("cpu",)),
    ],
)
def test_devices_by_name(devices: str, cards: int, expected: tuple[str, ...]) -> None:
    assert slots(devices, f"print({cards})") == expected


@pytest.mark.parametrize("devices", ["auto", "all", "cpu,auto"])
def test_card_that_torch_cannot_use_stops_the_worker_unless_the_cpu_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: str
) -> None:
    monkeypatch.setattr(options, "CARD", (tmp_path / "none", tmp_path))
    with pytest.raises(DevicesUnknown, match=r"NVIDIA card that torch cannot use.*--device cpu$") as raised:
        slots(devices, count="print(0)")
    assert raised.value.exit_code == UNHEALTHY
    assert "\n" not in str(raised.value)
    assert slots("cpu", count="print(0)") == ("cpu",)
    assert slots("auto", "print(1)") == ("cuda:0",)


@pytest.mark.slow
def test_device_is_chosen_once_and_a_new_trainer_gets_it_by_name(queued: Store, tmp_path: Path) -> None:
    # The first trainer finds a card; were the second one asked for `auto`, it might find none.
    begin = "open('asked', 'a').write(device + ' '); device = 'cuda:0' if device == 'auto' else device"
    begin = begin.replace("'asked'", repr(str(tmp_path / "asked")))
    job = "send(event='failed', cause='bug', message='x', traceback='') or sys.exit(1)"
    work_on(queued, tmp_path, job=job, begin=begin)
    first, *others = (tmp_path / "asked").read_text().split()
    assert first == "auto"
    assert others
    assert set(others) == {"cuda:0"}


@pytest.mark.parametrize(("granted", "cores"), [("1", 1), ("", 4), ("4(x2)", 4), ("64", 4)])
def test_slurm_may_grant_fewer_cores_and_says_so_in_words_of_its_own(
    monkeypatch: pytest.MonkeyPatch, granted: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", granted)
    assert own_cores() == cores


def test_a_system_that_binds_no_cores_has_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert own_cores() == 6


@pytest.mark.parametrize(
    ("devices", "each", "threads", "slots_due", "threads_due"),
    [
        ("cpu", None, None, 4, 1),  # one thread each: the bits do not depend on the cores
        ("cpu", None, 2, 2, 2),
        ("cpu", None, 8, 1, 8),
        ("cpu", 1, None, 1, 1),
        ("cpu", 3, 2, 3, 2),
        ("cpu,cpu", None, None, 2, 1),
        ("cuda:0", None, None, 1, 4),
        ("cuda:0", 2, None, 2, 2),
        ("cuda:0,cuda:1", None, None, 2, 2),
        ("cuda:0", None, 3, 1, 3),
    ],
)
def test_trainers_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    devices: str,
    each: int | None,
    threads: int | None,
    slots_due: int,
    threads_due: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    names, found, said = shared_out(devices, each, threads, [])
    assert (len(names), found, said) == (slots_due, threads_due, "")


def test_auto_is_a_cpu_only_where_no_card_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(options, "CARD", (tmp_path / "none",))
    monkeypatch.setattr(options, "AMD", tmp_path / "none")
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    assert shared_out("auto", None, None, []) == (("auto", "auto"), 1, "")
    monkeypatch.setattr(options, "AMD", tmp_path)
    assert shared_out("auto", None, None, []) == (("auto",), 2, "")


def test_no_more_trainers_than_memory_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the largest of the jobs that wait; the container's limit counts where it is below what is free."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    monkeypatch.setattr(options, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(options, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable:   30000000 kB\n")
    small, full = RunConfig().with_values({"d_model": 16, "d_ff": 16, "batch_size": 1}), RunConfig()
    known = load().record()
    waiting = [(known, canonical_json(config.to_dict())) for config in (small, full, small)]
    names, threads, said = shared_out("cpu", None, None, waiting)
    assert (len(names), threads) == (int(30.72e9 / full.estimated_cpu_bytes), 1)
    assert said.startswith("2 of 8 trainers: a run takes about 14.6 GB by estimate, and 30.7 are free;")
    assert len(shared_out("cpu", 8, None, waiting)[0]) == 8  # who names a number has decided
    (tmp_path / "memory.max").write_text("20000000000\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    assert len(shared_out("cpu", None, None, waiting)[0]) == 1
    assert len(shared_out("cpu", None, None, [waiting[0], (known, '{"model": {"no": 1}}')])[0]) == 8
    assert len(shared_out("cpu", None, None, [({**known, "hash": "of its own"}, waiting[1][1])])[0]) == 8


def test_torch_that_does_not_start_is_said_in_one_line() -> None:
    with pytest.raises(DevicesUnknown, match=r"no driver.*requirements\.txt"):
        slots("all", count="raise RuntimeError('no driver')")
