"""Each finding of the doctor, made on purpose, with its remedy; and what --fix mends."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import sqlalchemy as sa

from model.events import Checkpointed
from runner.care import doctor
from runner.queue import jobs, records, schema
from runner.queue.dialects import spend_ids
from runner.queue.jobs import Lease
from runner.queue.store import Store
from tests.conftest import PROJECT, row, rows

Cli = Callable[..., CompletedProcess[str]]


def levels(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


def of_database(store: Store, runs: Path) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.database(str(store.path), runs)}


def test_a_sound_machine_is_fit_and_nothing_is_changed(cli: Cli, queued: Store, tmp_path: Path) -> None:
    queued.close()
    before = (tmp_path / "jobs.db").read_bytes()
    done = cli("doctor", "--device", "cpu")
    assert done.returncode == 0, done.stdout
    for name in (
        "packages",
        "sqlite",
        "database",
        "leases",
        "checkpoints",
        "cache",
        "disk",
        "memory",
        "device",
    ):
        assert f" {name}: " in done.stdout
    assert "known answer found" in done.stdout
    assert (tmp_path / "jobs.db").read_bytes() == before


def test_no_database_is_no_illness(tmp_path: Path) -> None:
    (finding,) = doctor.database(str(tmp_path / "none.db"), tmp_path)
    assert (finding.level, "enqueue makes it" in finding.text) == ("ok", True)
    assert not (tmp_path / "none.db").exists()


def test_versions_are_held_against_the_pins(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("# a comment\nsqlalchemy==0.0.1\nno-such-package==1.0\n")
    finding = doctor.packages(pins)
    assert finding.level == "warn"
    assert "pinned 0.0.1" in finding.text
    assert "no-such-package is missing" in finding.text
    assert "pip install -r requirements.txt" in finding.remedy
    pins.write_text("psycopg[binary]==0.0.2\n")
    assert "psycopg" in doctor.packages(pins).text  # extras are no part of the name
    pins.write_text('psycopg==0.0.2; python_version < "3"  # not here\nhere==1; python_version > "3"\n')
    assert doctor.packages(pins).text == "here is missing"  # a marker is no part of the version
    pins.write_text("")
    assert doctor.packages(pins).level == "ok"
    text = doctor.packages(PROJECT / "requirements.txt").text
    assert "triton" not in text  # what the tests run in is what is asked for


def test_an_old_sqlite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.queue.sqlite.FIRST_SAFE_WAL", (99, 0, 0))
    finding = doctor.sqlite_version()
    assert (finding.level, finding.remedy) == ("warn", "pip install pysqlite3")


def test_a_foreign_or_damaged_database_is_bad_and_exits_70(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"no database at all " * 100)
    done = cli("doctor", "--device", "cpu")
    assert done.returncode == 70
    assert "bad  database" in done.stdout
    (tmp_path / "jobs.db").unlink()
    sqlite3.connect(tmp_path / "jobs.db").execute("CREATE TABLE other (x)").connection.close()
    (finding,) = doctor.database(str(tmp_path / "jobs.db"), tmp_path)
    assert (finding.level, finding.remedy) == ("bad", "name another file with --db")


def test_a_damaged_page_is_found(queued: Store, tmp_path: Path) -> None:
    with queued.read() as connection:
        size = connection.exec_driver_sql("PRAGMA page_size").scalar()
        page = connection.exec_driver_sql(
            "SELECT rootpage FROM sqlite_master WHERE name = 'jobs_claim'"
        ).scalar()
    assert isinstance(size, int)
    assert isinstance(page, int)
    queued.close()
    with queued.path.open("r+b") as file:
        file.seek((page - 1) * size + size - 60)
        file.write(b"\xff" * 50)
    found = of_database(queued, tmp_path)["database"]
    assert (found.level, "backup" in found.remedy) == ("bad", True)


def test_leases_of_dead_workers_are_found_and_given_back(queued: Store, lease: Lease, tmp_path: Path) -> None:
    assert of_database(queued, tmp_path)["leases"].level == "ok"  # a good lease is not left over
    queued.write(lambda c: c.execute(sa.text("UPDATE jobs SET lease_expires_at = 1 WHERE id = 1")))
    finding = of_database(queued, tmp_path)["leases"]
    assert (finding.level, finding.text) == ("warn", "1 job of a worker that is gone: 1")
    assert row(queued, "jobs", id=1)["status"] == "running"  # looking changes nothing
    assert finding.mend is not None
    finding.mend()
    assert row(queued, "jobs", id=1)["status"] == "queued"
    assert rows(queued, "attempts")[0]["outcome"] == "lost"


@pytest.fixture
def run_folder(queued: Store, tmp_path: Path) -> Path:
    return tmp_path / "runs" / queued.database_id


def write_checkpoint(store: Store, lease: Lease, folder: Path, step: int, pointed: bool = True) -> Path:
    path = f"{lease.job_id}/a{lease.attempt}/step-{step}.safetensors"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(b"weights")
    if pointed:
        event = Checkpointed(step, "", "0" * 64, 7, 0.1)
        store.write(lambda c: records.checkpointed(c, lease, event, path))
    return folder / path


def test_checkpoints_without_jobs_are_found_and_removed(
    queued: Store, lease: Lease, tmp_path: Path, run_folder: Path
) -> None:
    kept = write_checkpoint(queued, lease, run_folder, 10)
    young = write_checkpoint(queued, lease, run_folder, 20, pointed=False)
    assert of_database(queued, tmp_path / "runs")["checkpoints"].level == "ok"  # the job still runs
    queued.write(lambda c: jobs.release(c, lease, "signal"))
    queued.write(lambda c: spend_ids(c, schema.jobs, [99]))
    (run_folder / "99" / "a1").mkdir(parents=True)
    nobodys = run_folder / "99" / "a1" / "step-4.safetensors.part"
    nobodys.write_bytes(b"half")
    finding = of_database(queued, tmp_path / "runs")["checkpoints"]
    assert (finding.level, finding.text[:30]) == ("warn", "2 that no job points to (11 B)")
    assert finding.mend is not None
    finding.mend()
    assert kept.exists()
    assert not young.exists()
    assert not nobodys.exists()
    assert of_database(queued, tmp_path / "runs")["checkpoints"].level == "ok"


def test_rows_whose_file_is_gone_are_named(
    queued: Store, lease: Lease, tmp_path: Path, run_folder: Path
) -> None:
    write_checkpoint(queued, lease, run_folder, 10).unlink()
    queued.write(lambda c: jobs.release(c, lease, "signal"))
    finding = of_database(queued, tmp_path / "runs")["checkpoints"]
    assert (finding.level, finding.mend) == ("warn", None)
    assert "--runs-dir" in finding.remedy


def test_a_damaged_cache_entry_is_set_aside(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text("{}")
    found = list(doctor.cached(tmp_path, lambda entry: "changed" if entry.name == "bad" else None))
    assert [(finding.level, finding.text) for finding in found] == [("warn", "changed")]
    assert found[0].mend is not None
    said = found[0].mend()
    (aside,) = tmp_path.glob(".bad-damaged-*")
    assert said == f"moved to {aside}"
    assert sorted(path.name for path in tmp_path.glob("*") if not path.name.startswith(".")) == ["good"]
    assert levels(list(doctor.cached(tmp_path, lambda _: None))) == {"cache": "ok"}


def test_a_real_cache_entry_is_verified_by_its_hashes(
    cli: Cli, tiny_grid: Path, tmp_path: Path, cache_dir: Path
) -> None:
    own = tmp_path / "own"
    words = ("--device", "cpu", "--cache-dir", str(own))
    assert cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled").returncode == 0
    entry = next(path.parent for path in cache_dir.glob("*/train.npy"))
    shutil.copytree(entry, own / entry.name)
    assert "1 prepared corpora in" in cli("doctor", *words).stdout
    array = own / entry.name / "train.npy"
    array.write_bytes(array.read_bytes()[:-1] + b"\x77")
    done = cli("doctor", "--fix", *words)
    assert (done.returncode, "mended" in done.stdout) == (0, True)
    assert "0 prepared corpora" in cli("doctor", *words).stdout


def test_disk_and_memory_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, level in ((0.1e9, "bad"), (2e9, "warn"), (50e9, "ok")):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("runner.care.doctor.shutil.disk_usage", lambda _, usage=usage: usage)
        assert doctor.disk(tmp_path / "not" / "made").level == level
    meminfo = tmp_path / "meminfo"
    for kilobytes, level in ((1_000_000, "warn"), (9_000_000, "ok")):
        meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable:  {kilobytes} kB\n")
        found = doctor.memory(meminfo)
        assert (found.level, "`work --slots 1`" in found.remedy) == (level, level == "warn")
    assert doctor.memory(tmp_path / "none").level == "ok"


FAKE = """
import json, os, sys
events = os.fdopen(int(sys.argv[1]), "wb", buffering=0)
def send(**message): events.write(json.dumps(message).encode() + b"\\n")
BEGIN
send(event="ready", device="cuda:0", device_name="A card", driver="580")
for line in sys.stdin:
    send(event="checked", ok=OK, message="a product of whole numbers came out wrong")
"""


@pytest.mark.parametrize(
    ("begin", "answer", "level", "said"),
    [
        ("", "True", "ok", "cuda:0 (A card, driver 580): known answer found"),
        ("", "False", "bad", "came out wrong"),
        (
            "print('no driver here', flush=True); sys.exit(3)",
            "True",
            "bad",
            "the trainer ended: no driver here",
        ),
    ],
)
def test_the_device_is_asked_for_a_known_answer(
    tmp_path: Path, begin: str, answer: str, level: str, said: str
) -> None:
    program = tmp_path / "fake.py"
    program.write_text(FAKE.replace("BEGIN", begin).replace("OK", answer))
    finding = doctor.known_answer("auto", (sys.executable, str(program)))
    assert finding.level == level
    assert said in finding.text
