"""Workers started by a real Slurm: an array, a requeue in mid-run, the time limit, a stop.

The cluster is one node on the loopback (tests/slurm_cluster.py). Every result is there once, bit for bit as
undisturbed. Where Slurm is not installed, or this is not root, these tests are skipped and say why.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.care import slurm
from runner.queue.store import Store, StoreRefused
from tests.conftest import rows
from tests.injection import GATE
from tests.slurm_cluster import Cluster, missing
from tests.work.night import Night, wait_for

on_slurm = pytest.mark.skipif(bool(missing()), reason=f"no Slurm here: {', '.join(missing())} missing")
LONG = ("--time", "30")
"""Minutes: no test gets there."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Launched:
    """A night whose workers are started by Slurm, each of them standing still at step 20 of its job."""

    def __init__(self, night: Night, cluster: Cluster) -> None:
        self.night, self.cluster = night, cluster
        self.gate = night.folder / "gate"
        self._environment = {**cluster.environment, **night.inject(GATE, "gate")}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        cache = ("--cache-dir", str(self.night.cache_dir)) if arguments[1] == "slurm" else ()
        return self.night.run(*arguments, *cache, **self._environment)

    def slurm(self, *arguments: str) -> None:
        done = self.run("launch", "slurm", *arguments)
        assert done.returncode == 0, done.stderr

    def wait_until_standing(self, jobs: int) -> None:
        wait_for(lambda: len(list(self.gate.glob("at-*"))) == jobs, f"{jobs} jobs at step 20")

    @property
    def log(self) -> str:
        """What all workers printed."""
        return "".join(path.read_text() for path in self.night.folder.glob("runs/*/slurm/*.out"))

    def wait_until_over(self) -> None:
        wait_for(lambda: not self.cluster.ask("squeue", "--noheader").strip(), "an empty Slurm queue")


@pytest.fixture
def launched(
    request: pytest.FixtureRequest, tmp_path: Path, cache_dir: Path, cluster: Cluster
) -> Iterator[Launched]:
    """With the toy program, or with the model where a test asks for it."""
    made = Launched(Night(tmp_path, cache_dir, toy=not getattr(request, "param", "")), cluster)
    yield made
    made.night.open_gate()
    cluster.ask("scancel", f"--user={os.environ.get('USER', 'root')}")
    made.wait_until_over()
    made.night.end()


@on_slurm
@pytest.mark.parametrize("launched", ["the model"], indirect=True)
def test_array_of_two_works_a_study(launched: Launched, real_bits: str) -> None:
    launched.slurm("--workers", "2", *LONG)
    launched.wait_until_standing(2)  # each worker has a job
    shown = launched.run("launch", "status")
    assert shown.stdout.count("running") == 2, shown.stdout + shown.stderr
    launched.night.open_gate()
    launched.wait_until_over()
    attempts = rows(launched.night.store, "attempts")
    assert len({attempt["owner"] for attempt in attempts}) == 2, launched.log
    assert {json.loads(attempt["provenance"])["threads"] for attempt in attempts} == {1}  # of the node's two
    assert "no workers in Slurm" in launched.run("launch", "status").stdout
    launched.night.assert_undisturbed(real_bits)


@pytest.mark.slow
@on_slurm
def test_requeued_worker_saves_releases_and_goes_on(launched: Launched, bits: str) -> None:
    launched.slurm("--workers", "1", *LONG)
    launched.wait_until_standing(1)
    number = launched.cluster.ask("squeue", "--noheader", "--format=%A").strip()
    launched.cluster.ask("scontrol", "requeue", number)
    launched.night.go_on_when_asked()
    launched.wait_until_over()
    first, second = rows(launched.night.store, "attempts", job_id=1)
    assert (first["outcome"], first["charged"], second["outcome"]) == ("preempted", 0, "done"), launched.log
    assert second["resumed_from_step"] >= 20
    assert second["exact"] == 1
    launched.night.assert_undisturbed(bits)


@pytest.mark.slow
@on_slurm
def test_time_limit_is_a_signal_in_time_and_the_next_worker_goes_on(launched: Launched, bits: str) -> None:
    """Three minutes, less the 90 s for saving, less the minute by which Slurm may be early."""
    launched.slurm("--workers", "1", "--time", "3")
    launched.wait_until_standing(1)
    launched.night.go_on_when_asked()
    launched.wait_until_over()
    first = rows(launched.night.store, "attempts", job_id=1)[0]
    assert (first["outcome"], first["charged"]) == ("preempted", 0), launched.log
    assert launched.night.drain() == 0
    resumed = rows(launched.night.store, "attempts", job_id=1)[1]
    assert resumed["resumed_from_step"] >= 20
    launched.night.assert_undisturbed(bits)


@on_slurm
def test_stop_lets_the_running_save_and_cancels_the_waiting(launched: Launched, bits: str) -> None:
    launched.slurm("--workers", "3", *LONG)  # the node has two CPUs: one waits
    launched.wait_until_standing(2)
    said = launched.run("launch", "stop").stdout
    assert said == "waiting workers cancelled: 1; running ones asked to save and leave: 2\n"
    launched.night.go_on_when_asked(trainers=2)
    launched.wait_until_over()
    assert [a["outcome"] for a in rows(launched.night.store, "attempts")] == ["preempted"] * 2, launched.log
    assert launched.night.drain() == 0
    launched.night.assert_undisturbed(bits)


@on_slurm
def test_worker_that_does_not_find_the_shared_folders_says_so(launched: Launched) -> None:
    """The script of a dry run, as it would run on a node that has another disk in their place."""
    printed = launched.run("launch", "slurm", "--workers", "8", "--time", "8:00:00", "--dry-run")
    assert "#SBATCH --array=0-7" in printed.stdout, printed.stderr
    assert "#SBATCH --time=8:00:00" in printed.stdout
    assert "#SBATCH --requeue" in printed.stdout
    assert list(launched.night.folder.glob("runs/*/slurm")) == []
    done = subprocess.run(["bash"], input=printed.stdout, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "all nodes must share" in done.stderr
    assert rows(launched.night.store, "attempts") == []


@on_slurm
def test_refusal_of_slurm_is_one_line(launched: Launched) -> None:
    refused = launched.run("launch", "slurm", "--workers", "1", "--time", "soon")
    assert (refused.returncode, refused.stderr.count("\n")) == (65, 1), refused.stderr
    assert "refused by Slurm: sbatch: error: Invalid --time" in refused.stderr


# --- without Slurm ----------------------------------------------------------------------------------------


def plan(db: str, folder: Path, partition: str | None = None) -> slurm.Plan:
    return slurm.Plan(2, "30", partition, None, db, folder / "runs", folder / "cache")


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's answer on a cluster of two partitions: this machine alone, and this one with another."""
    here = socket.gethostname()
    monkeypatch.setattr(slurm, "require_slurm", lambda: None)
    monkeypatch.setattr(slurm, "_ask", lambda *_: f"{here} alone\n{here} gpu*\nnode7 gpu*\n")


@pytest.mark.usefixtures("two_nodes")
def test_sqlite_is_refused_where_workers_may_run_elsewhere(store: Store, tmp_path: Path) -> None:
    db = str(store.path)
    for partition in ("gpu", None):
        with pytest.raises(StoreRefused, match=r"one machine.*node7.*postgresql"):
            slurm.script(store, plan(db, tmp_path, partition))
    assert f"--db {db}" in slurm.script(store, plan(db, tmp_path, "alone"))


@pytest.mark.usefixtures("two_nodes")
def test_password_gets_into_no_script(store: Store, tmp_path: Path) -> None:
    for where in ("me:hunter2@host/lab", "me@host/lab?password=hunter2"):
        with pytest.raises(slurm.NotLaunched, match="pgpass") as refusal:
            slurm.script(store, plan(f"postgresql+psycopg://{where}", tmp_path))
        assert "hunter2" not in str(refusal.value)
    url = "postgresql+psycopg://me@host/lab"
    assert f"--db {url}" in slurm.script(store, plan(url, tmp_path))


def test_dry_run_prints_what_is_submitted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's commands stand in as programs that keep what they are given."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, does in (
        ("sbatch", f"cat > {tmp_path}/given; echo '7;lab'"),
        ("squeue", ":"),
        ("scancel", ":"),
    ):
        (commands / name).write_text(f"#!/bin/sh\n{does}\n")
    (commands / "sinfo").write_text(f"#!/bin/sh\necho {socket.gethostname()} 'gpu*'\n")
    for program in commands.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm.uuid, "uuid4", lambda: uuid.UUID(int=7))
    asked = slurm.Plan(
        8, "8:00:00", "gpu", "gpu:1", str(store.path), tmp_path / "my runs", tmp_path / "cache"
    )
    printed = slurm.script(store, asked)
    assert not (tmp_path / "my runs").exists()
    assert slurm.submit(store, asked) == "7"
    assert (tmp_path / "given").read_text() == printed
    folder = tmp_path / "my runs" / store.database_id / "slurm"
    assert printed.splitlines()[:10] == [
        "#!/bin/bash",
        f"#SBATCH --job-name=nightshift-{store.database_id[:8]}",
        "#SBATCH --array=0-7",
        "#SBATCH --time=8:00:00",
        "#SBATCH --partition=gpu",
        "#SBATCH --gres=gpu:1",
        f'#SBATCH --output="{folder}/%A_%a.out"',
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@90",
    ]
    assert f"--runs-dir '{tmp_path}/my runs'" in printed.splitlines()[-1]
    assert subprocess.run(["bash", "-n"], input=printed, text=True, check=False).returncode == 0


def test_machine_without_slurm_is_told_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(slurm.NotLaunched, match="sbatch is not here"):
        slurm.status(store)


# --- checkpoints across machines --------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "not there"])
def test_job_taken_over_elsewhere_goes_on_or_starts_over_and_says_why(
    night: Night, bits: str, shared: bool
) -> None:
    """Another machine: the run folder under another path, with or without the first one's files."""
    worker = night.work_to_gate()
    night.stop_at_gate(worker)
    assert worker.wait(timeout=120) == 75
    (night.folder / "runs").rename(night.folder / ("mounted" if shared else "left-behind"))
    done = night.run("work", "--runs-dir", "mounted")
    assert done.returncode == 0, done.stderr
    second = rows(night.store, "attempts", job_id=1, number=2)[0]
    refused = rows(night.store, "events", kind="checkpoint refused")
    if shared:
        assert second["resumed_from_step"] >= 20
        assert refused == []
    else:
        assert second["resumed_from_step"] == 0
        assert "No such file" in refused[0]["detail"]
        assert "checkpoint refused" in done.stderr
    night.assert_undisturbed(bits)
