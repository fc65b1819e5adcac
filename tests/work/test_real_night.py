"""A night of the model itself, undisturbed and disturbed: the same bits, whatever befell it.

Everything else about the queue is tested with the toy program (tests/toy.py), in test_worker.py and
test_faults.py. What is compared bit for bit runs on one thread.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from runner.work.worker import DRAINED, PREEMPTED
from tests.conftest import row, rows
from tests.injection import CHECKPOINT, DIVERGENCE, FULL_DISK, OUT_OF_MEMORY, struck
from tests.work.night import SIZES, Night, wait_for

pytestmark = pytest.mark.numerical


def test_work_drains_the_queue_and_says_so(real_night: Night, real_bits: str) -> None:
    night, folder = real_night, real_night.folder
    done = night.run("work", PYTHONPATH="")  # with the summary, which other nights do without
    assert done.returncode == DRAINED, done.stderr
    assert "all 2 runs are done" in done.stdout
    assert "job 2" in done.stderr
    night.assert_undisturbed(real_bits)
    attempts = rows(night.store, "attempts")
    assert [a["outcome"] for a in attempts] == ["done"] * 2
    assert len({a["pid"] for a in attempts}) == 1  # one trainer served them all
    for job in (1, 2):
        measured = {each["name"]: each["value"] for each in rows(night.store, "measures", job_id=job)}
        assert measured["tokens_seen"] == 120 * 2 * 32
        assert {"val_bits_per_byte", "expert_usage_cv", "aux_loss_last_100"} <= measured.keys()
        assert None not in measured.values()
    splits = {
        (m["split"], m["step"]) for m in rows(night.store, "metrics", job_id=1) if m["split"] != "train"
    }
    assert splits == {("val", 60), ("val", 120), ("test", 120)}
    counts = rows(night.store, "expert_counts", job_id=1, split="val", step=120)
    assert sum(c["tokens"] for c in counts) == 2 * 15 * 32  # top-2 of the whole windows under 512 tokens
    assert '"threads": 1' in attempts[0]["provenance"]
    assert '"torch"' in attempts[0]["provenance"]
    night.store.close()
    assert sorted(path.name for path in folder.glob("jobs.db*")) == ["jobs.db"]
    assert list(folder.rglob("*.safetensors")) == []  # a finished job keeps no checkpoints

    before = (folder / "jobs.db").read_bytes()
    again = night.run("work")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing to do" in again.stderr
    assert "waiting" not in again.stderr
    assert [night.run(*words).returncode for words in (("status",), ("report",), ("show", "1"))] == [0] * 3
    assert (folder / "jobs.db").read_bytes() == before  # reading changes nothing


def test_bits_do_not_depend_on_the_process_being_fresh(real_night: Night, real_bits: str) -> None:
    for _ in range(2):
        assert real_night.run("work", "--jobs", "1").returncode == DRAINED  # each in a process of its own
    assert len({a["pid"] for a in rows(real_night.store, "attempts")}) == 2
    real_night.assert_undisturbed(real_bits)


def test_two_trainers_side_by_side_give_the_bits_of_one(real_night: Night, real_bits: str) -> None:
    worker = real_night.work_to_gate("--devices", "cpu,cpu", trainers=2)
    real_night.open_gate()
    assert worker.wait(timeout=300) == DRAINED
    assert len({a["pid"] for a in rows(real_night.store, "attempts")}) == 2
    real_night.assert_undisturbed(real_bits)


def test_first_signal_saves_and_the_next_worker_goes_on(real_night: Night, real_bits: str) -> None:
    worker = real_night.work_to_gate()
    real_night.stop_at_gate(worker)
    assert worker.wait(timeout=120) == PREEMPTED
    assert real_night.run("work").returncode == DRAINED
    resumed = rows(real_night.store, "attempts", job_id=1)[1]
    assert resumed["resumed_from_step"] >= 20
    assert resumed["exact"] == 1
    real_night.assert_undisturbed(real_bits)


def test_killed_trainer_costs_its_attempt_only(real_night: Night, real_bits: str) -> None:
    worker = real_night.work_to_gate("--checkpoint-seconds", "0")
    wait_for(lambda: real_night.saved() == [16, 18], "the last two checkpoints")
    os.kill(real_night.trainer(), signal.SIGKILL)
    real_night.open_gate()
    assert worker.wait(timeout=300) == DRAINED
    first, second = rows(real_night.store, "attempts", job_id=1)
    assert (first["outcome"], first["cause"], first["exit_code"]) == ("failed", "infrastructure", -9)
    assert first["charged"] == 0  # it had moved the job on
    assert second["resumed_from_step"] == 18
    real_night.assert_undisturbed(real_bits)


def test_killed_while_saving(real_night: Night, real_bits: str) -> None:
    """Before the flush, before the rename, before the folder's flush: the checkpoint before is used."""
    env = real_night.inject(CHECKPOINT)
    real_night.work_until_drained("--checkpoint-seconds", "0", **env)
    assert struck(real_night.folder / "fault")
    attempts = rows(real_night.store, "attempts")
    assert sorted(each["exit_code"] or 0 for each in attempts) == [-9, -9, -9, 0, 0]
    resumed = [[each["resumed_from_step"] for each in attempts if each["job_id"] == job] for job in (1, 2)]
    assert resumed == [[0, 2, 4], [0, 2]]  # after a failure the other job has its turn
    real_night.assert_undisturbed(real_bits)


def test_damaged_newest_checkpoint_gives_way_to_the_one_before(real_night: Night, real_bits: str) -> None:
    """Every kind of damage is refused in tests/training/test_checkpoint.py; here, all the way."""
    night = real_night
    worker = night.work_to_gate("--checkpoint-seconds", "0")
    night.stop_at_gate(worker)
    assert worker.wait(timeout=120) == PREEMPTED
    before, newest = sorted(rows(night.store, "checkpoints"), key=lambda file: file["step"])
    path = night.folder / "runs" / night.store.database_id / newest["path"]
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    done = night.run("work")
    assert done.returncode == DRAINED
    assert "checkpoint refused" in done.stderr
    assert rows(night.store, "attempts", job_id=1)[-1]["resumed_from_step"] == before["step"]
    assert path.name in row(night.store, "events", kind="checkpoint refused")["detail"]
    night.assert_undisturbed(real_bits)


def test_full_disk_under_the_checkpoints_costs_a_checkpoint(
    real_night: Night, real_bits: str, small_disk: Path
) -> None:
    night = real_night
    env = night.inject(FULL_DISK, DISK=str(small_disk))
    options = ("--runs-dir", str(small_disk), "--checkpoint-seconds", "0", "--keep-checkpoints")
    assert night.run("work", *options, **env).returncode == DRAINED
    assert struck(night.folder / "fault")
    assert {(a["outcome"], a["charged"]) for a in rows(night.store, "attempts")} == {("done", 0)}
    assert rows(night.store, "events", kind="checkpoint not saved")
    survivor = row(night.store, "checkpoints")
    [file] = small_disk.glob(f"*/{survivor['path']}")
    assert file.stat().st_size == survivor["size_bytes"]
    night.assert_undisturbed(real_bits)


def test_diverged_run_is_final_and_its_series_is_shown(real_night: Night) -> None:
    assert real_night.run("work", **real_night.inject(DIVERGENCE)).returncode == DRAINED
    assert {(job["status"], job["attempt"]) for job in rows(real_night.store, "jobs")} == {("failed", 1)}
    attempt = row(real_night.store, "attempts", job_id=1)
    assert attempt["cause"] == "diverged"
    assert "loss is nan; lower train.muon_lr" in attempt["message"]
    assert rows(real_night.store, "metrics", job_id=1, name="loss")
    assert "diverged" in real_night.run("show", "1").stdout
    assert "diverged" in real_night.run("report").stdout


def test_out_of_memory_is_retried_once_and_says_what_to_do(real_night: Night) -> None:
    night = real_night
    assert night.run("cancel", "1").returncode == night.run("cancel", "2").returncode == 0
    large = ("--study=large", "--set=train.batch_size=64", "--set=model.d_model=64", "--set=model.d_ff=65536")
    night.run("enqueue", "--grid", "tiny.toml", "--corpus", "bundled", *SIZES, *large)
    night.run("cancel", "4")
    assert night.run("work", **night.inject(OUT_OF_MEMORY)).returncode == DRAINED
    attempts = rows(night.store, "attempts", job_id=3)
    assert [a["cause"] for a in attempts] == ["oom", "oom"]
    assert "train.batch_size" in attempts[-1]["message"]
    assert "peak" in attempts[-1]["message"]
    assert row(night.store, "jobs", id=3)["status"] == "failed"
