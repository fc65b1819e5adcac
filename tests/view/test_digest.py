"""ETAs from measured speeds, the digest, --on-finish, and what `work` leaves behind."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from model.events import Checkpointed, Resumed
from reports.reading import frames
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue import jobs, records, schema, speed, studies
from runner.queue.store import Store, open_store
from runner.view import digest
from tests.conftest import row, rows
from tests.nights import RESULT, claim, finish, overview

Cli = Callable[..., subprocess.CompletedProcess[str]]


# --- how fast, and until when -----------------------------------------------------------------------------


def test_eta_is_the_steps_left_over_the_measured_speed(queued: Store, worker: jobs.Worker) -> None:
    assert overview(queued)["eta_seconds"] is None  # nothing was timed yet
    finish(queued, worker)
    # 40 steps took 20 s; three jobs of 40 steps are left, and nobody is at work.
    study = overview(queued)
    assert study["eta_seconds"] == pytest.approx(60)
    assert study["eta_assumed"] is True
    lease = claim(queued, worker)
    queued.write(lambda c: jobs.heartbeat(c, lease, 60, 30))
    study = overview(queued)
    assert (study["eta_seconds"], study["eta_assumed"]) == (pytest.approx(45), False)


def test_eta_adds_up_the_workers_each_at_its_own_speed(queued: Store, worker: jobs.Worker) -> None:
    fast = replace(worker, owner="worker-2", device="cuda:0")
    finish(queued, worker, seconds=40.0)  # 1 step a second
    finish(queued, fast, seconds=10.0)  # 4 steps a second
    claim(queued, worker)
    claim(queued, fast)
    with queued.read() as connection:
        measured = speed.speeds(connection, 1)
        assert measured == {("here", "cpu"): pytest.approx(1.0), ("here", "cuda:0"): pytest.approx(4.0)}
    assert overview(queued)["eta_seconds"] == pytest.approx(80 / 5)


def test_studies_wait_for_those_before_them(queued: Store, tiny_grid: Path, worker: jobs.Worker) -> None:
    grid = grid_file.load_grid(str(tiny_grid))
    queued.write(lambda c: enqueue(c, "later", grid))
    finish(queued, worker)
    assert overview(queued, "later")["eta_seconds"] is None  # it was never timed
    with queued.read() as connection:
        lefts = [speed.Left(1, 120, (0, 2)), speed.Left(2, 160, (0, 5))]
        found = speed.etas(connection, lefts)
    assert found[1].seconds == pytest.approx(60)
    assert found[2].seconds is None
    queued.write(lambda c: studies.hold(c, "tiny", True))
    assert overview(queued)["eta_seconds"] is None  # paused: it has no end


def test_a_study_without_results_is_timed_by_its_running_jobs(queued: Store, worker: jobs.Worker) -> None:
    lease = claim(queued, worker)
    queued.write(lambda c: records.rewind(c, lease, Resumed(10)))
    queued.write(lambda c: jobs.heartbeat(c, lease, 60, 20))
    began = row(queued, "attempts")["started_at"]
    queued.write(lambda c: c.execute(sa.update(schema.jobs).values(heartbeat_at=began + 5)))
    with queued.read() as connection:  # 10 steps in 5 s: what came before the resume is not its work
        assert speed.speeds(connection, 1) == {("here", "cpu"): pytest.approx(2.0, rel=1e-3)}


# --- the night, and the morning after ---------------------------------------------------------------------


@pytest.fixture
def night(queued: Store, worker: jobs.Worker) -> Store:
    """Job 1 done at the second try, job 2 failed, job 3 done, job 4 left; every attempt took 100 s."""
    lost = claim(queued, worker)
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET lease_expires_at = 1 WHERE id = 1")))
    queued.write(jobs.requeue_lost)
    failed = claim(queued, worker)
    queued.write(lambda c: jobs.fail(c, failed, "diverged", "diverged at step 7"))
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET run_after = NULL")))
    assert lost.job_id == finish(queued, worker, val_loss=3.0).job_id
    finish(queued, worker, val_loss=2.0)
    queued.write(
        lambda c: c.execute(sa.text("UPDATE attempts SET started_at = ended_at - 100 WHERE ended_at > 0"))
    )
    return queued


def test_a_finished_study_is_told_beside_an_open_one(night: Store, worker: jobs.Worker) -> None:
    content = {"name": "later", "factors": {"top_k": [1]}, "seeds": [1]}
    night.write(lambda c: enqueue(c, "later", grid_file.parse_grid(content), priority=9))
    finish(night, worker, val_loss=1.5)
    night.write(lambda c: enqueue(c, "open", grid_file.parse_grid(content)))
    with night.read() as connection:
        lines = [line for line in digest.digest(connection).splitlines() if "/" in line]
        old = digest.digest(connection, 1e-9)
    assert [line.split(",")[0] for line in lines] == ["open: 0/1 done", "later: 1/1 done", "tiny: 2/4 done"]
    assert "nothing left" in lines[1]
    assert "later" not in old  # nothing of it moved in so short a time
    assert "tiny" in old  # still open


def test_a_study_that_was_never_timed_is_said_to_be(queued: Store) -> None:
    with queued.read() as connection:
        lines = digest.digest(connection).splitlines()
    assert "tiny: 0/4 done, 4 left, not timed yet, nobody is at work" in lines


def test_digest_tells_the_night_in_twenty_lines(night: Store) -> None:
    with night.read() as connection:
        lines = digest.digest(connection).splitlines()
    assert lines[1:5] == [
        "2 done, 1 failed, 0 cancelled, 0 running",
        "  1 × diverged: diverged at step 7 (job 2)",
        "recovered: 1 (1 after lost)",
        "Device time: 6m used, 3m of it wasted (50%)",
    ]
    assert lines[6].startswith("tiny: 2/4 done, 1 left, 1m to go once a worker is started")
    assert lines[7] == "  best so far: noise_std=0.0, val_loss 2.5000 (n=2)"
    assert len(lines) <= 20


def test_digest_looks_only_so_far_back(night: Store) -> None:
    night.write(lambda c: c.execute(sa.text("UPDATE jobs SET finished_at = finished_at - 7200")))
    night.write(
        lambda c: c.execute(
            sa.text("UPDATE attempts SET ended_at = ended_at - 7200, started_at = started_at - 7200")
        )
    )
    with night.read() as connection:
        assert "0 done, 0 failed" in digest.digest(connection, hours=1)
        assert "2 done, 1 failed" in digest.digest(connection, hours=3)


def test_time_that_a_later_attempt_went_on_from_is_not_wasted(queued: Store, worker: jobs.Worker) -> None:
    first = claim(queued, worker)
    queued.write(lambda c: jobs.fail(c, first, "stalled", "silent"))
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET run_after = NULL")))
    second = claim(queued, worker)
    queued.write(lambda c: records.rewind(c, second, Resumed(20)))
    queued.write(lambda c: jobs.finish(c, second, RESULT))
    queued.write(lambda c: c.execute(sa.text("UPDATE attempts SET started_at = ended_at - 60")))
    with queued.read() as connection:
        assert "Device time: 2m used, 0s of it wasted (0%)" in digest.digest(connection)


def test_time_before_the_last_hours_is_not_theirs(queued: Store, worker: jobs.Worker) -> None:
    lease = claim(queued, worker)
    queued.write(lambda c: jobs.finish(c, lease, RESULT))
    queued.write(lambda c: c.execute(sa.text("UPDATE attempts SET started_at = ended_at - 36000")))
    with queued.read() as connection:
        assert "Device time: 10h00m used" in digest.digest(connection)
        assert "Device time: 1h00m used" in digest.digest(connection, hours=1.001)


def _wasted(connection: sa.Connection) -> list[bool]:
    study, _ = frames.choose_study(connection)
    return list(frames.load(connection, study).attempts["wasted"].astype(bool))


def test_lost_attempt_took_until_its_last_heartbeat(queued: Store, worker: jobs.Worker) -> None:
    """Its worker died after 130 s, ten hours ago; nobody worked since, and the checkpoint is still there."""
    first = claim(queued, worker)
    queued.write(
        lambda c: records.checkpointed(c, first, Checkpointed(20, "", "0" * 64, 1, 0.1), "1/a1/step-20")
    )
    heard = row(queued, "jobs", id=1)["heartbeat_at"] - 36_000
    silent = {"heartbeat_at": heard, "lease_expires_at": heard + 60}
    queued.write(lambda c: c.execute(sa.update(schema.jobs).where(schema.jobs.c.id == 1).values(silent)))
    queued.write(lambda c: c.execute(sa.update(schema.attempts).values(started_at=heard - 130)))
    said = "Device time: 2m used, 0s of it wasted (0%)"
    with queued.read() as connection:
        assert said in digest.digest(connection)  # still called running
    queued.write(jobs.requeue_lost)
    attempt = row(queued, "attempts")
    assert (attempt["outcome"], attempt["ended_at"]) == ("lost", heard)
    with queued.read() as connection:
        assert said in digest.digest(connection)
        assert _wasted(connection) == [False]
    queued.write(lambda c: jobs.cancel_all(c, [1]))
    with queued.read() as connection:  # nobody goes on from it any more
        assert "Device time: 2m used, 2m of it wasted (100%)" in digest.digest(connection)
        assert _wasted(connection) == [True]


@pytest.mark.slow
def test_digest_of_many_failures_stays_short(store: Store, tiny_grid: Path, worker: jobs.Worker) -> None:
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="1..30")
    for name in "abcdefgh":
        store.write(lambda c, name=name: enqueue(c, name, grid))
    for number in range(60):
        lease = claim(store, worker)
        message = f"reason {number % 30} " + "long " * 60
        store.write(lambda c, k=lease, m=message: jobs.fail(c, k, "bad_config", m))
    with store.read() as connection:
        lines = digest.digest(connection).splitlines()
    assert len(lines) <= digest.LINES
    assert max(map(len, lines)) <= digest.WIDTH
    assert "  and 25 other reasons" in lines


def test_a_command_gets_the_digest_and_its_failure_harms_nothing(night: Store, tmp_path: Path) -> None:
    out = tmp_path / "mail.txt"
    assert digest.send(night, f"cat > {out}") is None
    assert out.read_text().startswith("Nightshift, ")
    assert digest.send(night, "echo no route >&2; exit 3") == "exit code 3: no route"
    assert digest.send(night, "exit 4") == "exit code 4: it said nothing"
    assert "exit code" in str(digest.send(night, "no-such-command-at-all"))


def test_a_command_that_hangs_is_ended(night: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "ON_FINISH_SECONDS", 0.2)
    assert "timed out" in str(digest.send(night, "sleep 600"))


def test_work_leaves_a_log_a_digest_and_on_request_its_checkpoints(
    cli: Cli, tiny_grid: Path, tmp_path: Path
) -> None:
    cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled")
    words = ["--checkpoint-seconds", "0", "--keep-checkpoints", "--on-finish", "cat > mail.txt; exit 9"]
    done = cli("work", "--jobs", "1", *words)
    assert done.returncode == 0, done.stderr
    assert "--on-finish: exit code 9" in done.stderr
    assert "1 done, 0 failed" in (tmp_path / "mail.txt").read_text()
    store = open_store(str(tmp_path / "jobs.db"))
    kept = rows(store, "checkpoints")
    assert len(kept) == 2
    folder = tmp_path / "runs" / store.database_id
    assert all((folder / each["path"]).exists() for each in kept)
    log = cli("logs", "noise_std=0.0,seed=42").stdout
    assert "from step 0" in log
    assert re.search(r"step 40 val: loss \d", log)
    assert "test" not in log  # sealed
    assert log.rstrip().endswith("step 40 finished")
    assert cli("logs", "1", "-f").stdout == log
    for words, said in ((["2"], "never started"), (["1", "--attempt", "3"], "there are 1")):
        refused = cli("logs", *words)
        assert (refused.returncode, said in refused.stderr) == (65, True), refused.stderr
    assert "ran on" in cli("logs", "1", "--runs-dir", "elsewhere").stderr


# --- out of the database ----------------------------------------------------------------------------------


def test_the_view_is_read_by_pandas_in_one_line(night: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(night.path.parent)
    frame = pd.read_sql("select * from v_runs", "sqlite:///jobs.db")
    assert list(frame["status"]) == ["done", "failed", "done", "queued"]
    assert frame["val_loss"].dropna().tolist() == [3.0, 2.0]
