"""What a clean removes, what it never touches, and that it asks first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import sqlalchemy as sa

from model.config import ConfigError
from model.events import Checkpointed
from runner.care import clean
from runner.queue import jobs, records, schema
from runner.queue.jobs import Worker
from runner.queue.store import Store
from tests.conftest import rows

Cli = Callable[..., CompletedProcess[str]]
RESULT = {"val_loss": 1.0, "val_perplexity": 2.7}


@pytest.fixture
def kept(queued: Store, worker: Worker, tmp_path: Path) -> Store:
    """Job 1 done, 2 failed, 3 running, 4 cancelled after an attempt: each with a checkpoint and a log."""
    folder = tmp_path / "runs" / queued.database_id
    claims = []
    for _ in range(4):
        lease = queued.write(lambda c: jobs.claim(c, worker))
        assert lease is not None
        claims.append(lease)
        path = f"{lease.job_id}/a1/step-10.safetensors"
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(b"x" * 1000 * lease.job_id)
        (folder / path).with_name("trainer.log").write_text("said\n")
        event = Checkpointed(10, "", "0" * 64, 10, 0.1)
        queued.write(lambda c, k=lease, e=event, p=path: records.checkpointed(c, k, e, p))
    queued.write(lambda c: jobs.finish(c, claims[0], RESULT))
    queued.write(lambda c: jobs.fail(c, claims[1], "diverged", "no"))
    queued.write(lambda c: jobs.end_cancelled(c, claims[3]))
    (folder / "1" / "weights.safetensors").write_bytes(b"kept on purpose")
    (folder / "worker-worker-1.log").write_text("")
    return queued


def files(store: Store, runs: Path) -> list[str]:
    folder = runs / store.database_id
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def chosen(store: Store, runs: Path, **limits: object) -> list[tuple[int | None, str]]:
    found = clean.removable(store, runs, **limits)  # type: ignore[arg-type]
    return sorted((file.job_id or 0, file.kind) for file in found)


def test_only_finished_jobs_have_files_to_clean(kept: Store, tmp_path: Path) -> None:
    both = [(job, kind) for job in (1, 2, 4) for kind in ("checkpoint", "log")]
    assert chosen(kept, tmp_path / "runs") == both


def test_age_and_size_narrow_it_down(kept: Store, tmp_path: Path) -> None:
    kept.write(lambda c: c.execute(sa.text("UPDATE jobs SET finished_at = finished_at - 86400 WHERE id = 2")))
    runs = tmp_path / "runs"
    assert chosen(kept, runs, older_than_seconds=3600) == [(2, "checkpoint"), (2, "log")]
    assert chosen(kept, runs, at_least_bytes=1500) == [(2, "checkpoint"), (4, "checkpoint")]
    assert chosen(kept, runs, older_than_seconds=3600, at_least_bytes=1500) == [(2, "checkpoint")]
    assert [file.job_id for file in clean.removable(kept, runs)][:2] == [2, 2]  # the oldest first
    assert chosen(kept, runs, study="tiny") == chosen(kept, runs)
    with pytest.raises(ConfigError, match="known: tiny"):
        chosen(kept, runs, study="other")


def test_a_clean_takes_files_and_pointers_and_leaves_every_result(kept: Store, tmp_path: Path) -> None:
    before = {name: rows(kept, name) for name in schema.metadata.tables if name != "checkpoints"}
    runs = tmp_path / "runs"
    assert clean.remove(kept, runs, clean.removable(kept, runs)) == 1000 + 2000 + 4000 + 3 * 5
    assert files(kept, runs) == [
        "1/weights.safetensors",
        "3/a1/step-10.safetensors",
        "3/a1/trainer.log",
        "worker-worker-1.log",
    ]
    assert [file["job_id"] for file in rows(kept, "checkpoints")] == [3]
    assert {name: rows(kept, name) for name in before} == before
    assert not (runs / kept.database_id / "2").exists()  # empty folders go too
    assert clean.removable(kept, runs) == []


def test_a_job_that_was_retried_meanwhile_keeps_everything(kept: Store, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    listed = clean.removable(kept, runs)
    kept.write(lambda c: jobs.retry_all(c, [2]))
    clean.remove(kept, runs, listed)
    assert "2/a1/step-10.safetensors" in files(kept, runs)
    assert "2/a1/trainer.log" in files(kept, runs)
    assert [file["job_id"] for file in rows(kept, "checkpoints")] == [2, 3]


def test_logs_of_workers_go_when_they_have_signed_off(kept: Store, tmp_path: Path) -> None:
    values = {"id": "worker-1", "host": "h", "pid": 1, "device": "cpu", "started_at": 1, "heartbeat_at": 1}
    kept.write(lambda c: c.execute(schema.workers.insert().values(**values)))
    assert (0, "log") not in chosen(kept, tmp_path / "runs")
    kept.write(lambda c: c.execute(sa.text("UPDATE workers SET stopped_at = 2")))
    assert (0, "log") not in chosen(kept, tmp_path / "runs")  # job 3 is still in its hands
    kept.write(
        lambda c: c.execute(
            sa.text("UPDATE attempts SET outcome = 'lost', ended_at = 2 WHERE outcome IS NULL")
        )
    )
    assert (0, "log") in chosen(kept, tmp_path / "runs")
    assert (0, "log") not in chosen(kept, tmp_path / "runs", study="tiny")


def test_a_link_is_not_followed(kept: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "runs" / kept.database_id / "1" / "a1" / "step-99.safetensors").symlink_to(precious)
    runs = tmp_path / "runs"
    clean.remove(kept, runs, clean.removable(kept, runs))
    assert precious.read_text() == "mine"


def test_the_command_lists_first_and_removes_with_yes(cli: Cli, kept: Store, tmp_path: Path) -> None:
    there = files(kept, tmp_path / "runs")
    kept.close()
    listed = cli("clean")
    assert listed.returncode == 0
    assert "3 checkpoints and 3 logs, 7.0 kB; nothing was removed: add --yes" in listed.stdout
    assert files(kept, tmp_path / "runs") == there
    assert cli("clean", "--older-than", "30d").stdout == "nothing to clean\n"
    done = cli("clean", "--larger-than", "2kB", "--yes")
    assert done.stdout == "6.0 kB freed; results are as they were\n"
    assert cli("clean", "--older-than", "soon").returncode == 2
    assert "as in 9m" in cli("clean", "--older-than", "5").stderr
    assert cli("clean", "--larger-than", "10").returncode == 2
