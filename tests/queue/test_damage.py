"""A database whose pages are damaged, or whose files are exchanged while it is in use: said in one line.

Real files, real damage. What a worker does then is in tests/work/test_storms.py.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from model.config import ConfigError
from runner.care import copying, doctor
from runner.queue import jobs, schema
from runner.queue.jobs import Lease
from runner.queue.store import Store, StoreRefused, StoreUnreachable, backup_store, open_store
from tests import warm
from tests.conftest import PROJECT, TEXT, both_engines, environment, on_a_server, row, rows
from tests.injection import inject


def damage(store: Store, *names: str) -> None:
    """Overwrite the first page of tables or indexes; closes the database."""
    with store.read() as connection:
        size = int(connection.exec_driver_sql("PRAGMA page_size").scalar() or 0)
        found = connection.exec_driver_sql("SELECT name, rootpage FROM sqlite_master").all()
        pages = [row.rootpage for row in found if row.name in names]
    assert len(pages) == len(names)
    store.close()
    with store.path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)


# --- a damaged page ---------------------------------------------------------------------------------------

COMMANDS = {
    "enqueue": ["--grid", "tiny.toml", "--corpus", "bundled", "--study", "other"],
    "work": ["--device", "cpu"],
    "report": [],
    "power": ["--difference", "0.5ppl"],
    "compare": ["tiny", "other"],
    "test": ["--study", "tiny"],
    "status": [],
    "watch": [],
    "digest": [],
    "page": ["pages"],
    "generate": ["1", "Once upon"],
    "show": ["1"],
    "logs": ["1"],
    "retry": ["1"],
    "cancel": ["1"],
    "pause": ["1"],
    "resume": ["1"],
    "prioritize": ["1"],
    "export": [],
    "delete": ["1", "--yes"],
    "clean": [],
    "db backup": ["backup.db"],
    "db copy": ["jobs.db", "copy.db"],
}
WITHOUT_JOBS = {"new", "try", "import", "doctor"}
"""`import` adds to what is there without reading it; `doctor` has an answer of its own."""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_damage_in_one_line(
    queued: Store,
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    damage(queued, "jobs", "jobs_claim")
    monkeypatch.chdir(tmp_path)
    cache = ["--cache-dir", str(cache_dir)] if name in ("enqueue", "work") else []
    monkeypatch.setattr(sys, "argv", ["cli.py", *name.split(), *COMMANDS[name], *cache])
    for stream in ("stdout", "stderr"):  # main replaces them: put back afterwards
        monkeypatch.setattr(sys, stream, getattr(sys, stream))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == StoreRefused.exit_code == 78
    *notices, said = capfd.readouterr().err.splitlines()
    assert not notices or name == "enqueue"  # which says what it read of the text
    assert said.startswith("error: jobs.db: damaged (")
    assert "`python cli.py doctor`" in said
    assert "`python cli.py db backup`" in said
    assert {path.name for path in tmp_path.glob("*.db*")} == {"jobs.db"}  # no damaged copy


def test_no_command_is_left_out() -> None:
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}  # type: ignore[union-attr]
    assert names - WITHOUT_JOBS == {name for name in COMMANDS if " " not in name}


def test_backup_of_a_damaged_database_is_none(queued: Store, tmp_path: Path) -> None:
    """SQLite's own copy takes pages as they are: the damage would be found when the copy is needed."""
    damage(queued, "jobs_claim")
    with pytest.raises(StoreRefused, match="damaged"):
        backup_store(str(queued.path), tmp_path / "copy.db")
    assert list(tmp_path.glob("copy*")) == []


@on_a_server
@pytest.mark.parametrize("state", ["XX001", "XX002"])
def test_damage_on_a_server_is_said(store: Store, state: str) -> None:
    """As the server itself reports it: a page cannot be damaged from here."""
    raised = f"DO $$ BEGIN RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = '{state}'; END $$"
    with pytest.raises(StoreRefused, match=r"damaged \(invalid page in block 7\); .*pg_dump"):
        store.write(lambda c: c.exec_driver_sql(raised))


# --- files exchanged under a live connection --------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("replaced", [False, True])
def test_each_file_of_a_database_in_use_is_watched(queued: Store, suffix: str, replaced: bool) -> None:
    queued.check_identity()
    file = Path(f"{queued.path}{suffix}")
    content = file.read_bytes()
    file.rename(f"{file}.old")  # its inode stays in use
    if replaced:
        file.write_bytes(content)
    with pytest.raises(StoreUnreachable, match="moved, deleted or replaced"):
        queued.check_identity()


def test_log_that_comes_later_is_no_exchange(queued: Store) -> None:
    """A restored copy may be in the rollback mode; the first write makes the -wal."""
    with queued.engine.connect() as connection:
        queued.reader.dispose()
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
    queued.close()
    opened = open_store(str(queued.path))
    assert not Path(f"{queued.path}-wal").exists()
    opened.write(lambda c: jobs.hold(c, [1]))
    assert Path(f"{queued.path}-wal").exists()
    opened.check_identity()
    opened.close()


@both_engines
def test_job_with_a_result_never_fails(queued: Store, lease: Lease) -> None:
    """A result without its ending, as an exchanged -wal may leave it: the attempt fails, the job is done."""
    half = schema.results.insert().values(job_id=1, attempt=1, recorded_at=1)
    queued.write(lambda c: c.execute(half))
    assert queued.write(lambda c: jobs.fail(c, lease, "bad_config", "no such key")) == "done"
    assert (row(queued, "jobs", id=1)["status"], row(queued, "jobs", id=1)["failures"]) == ("done", 0)


def test_doctor_ends_jobs_that_hold_a_result(queued: Store, tmp_path: Path) -> None:
    half = schema.results.insert().values(job_id=2, attempt=1, recorded_at=1)
    queued.write(lambda c: c.execute(half))
    [found] = [each for each in doctor.database(str(queued.path), tmp_path) if each.name == "results"]
    assert "1 job with a result and not done, for example job 2" in found.text
    assert found.mend is not None
    found.mend()
    assert row(queued, "jobs", id=2)["status"] == "done"
    assert row(queued, "events", kind="settled")["job_id"] == 2
    assert "results" not in [each.name for each in doctor.database(str(queued.path), tmp_path)]


# --- a copy that is killed --------------------------------------------------------------------------------

KILLED = """
if "copy" in sys.orig_argv:
    from runner.care import copying
    def killed(name):
        usual = getattr(copying, name)
        def replaced(*arguments):
            usual(*arguments) if name != "_name" else None
            die()
        setattr(copying, name, replaced)
    killed("STAGE")
"""
"""Once all rows are written and compared, before COMMIT; or once they are committed, without a name yet."""


def copy(source: str, target: str, **env: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(PROJECT / "cli.py"), "db", "copy", source, target]
    return warm.run(words, 120, cwd=PROJECT, env={**environment(), **env}, **TEXT)


def tables(database: str) -> dict[str, list[dict[str, object]]]:
    opened = open_store(database)
    found = {name: rows(opened, name) for name in schema.metadata.tables if name != "meta"}
    opened.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source_kind", "target_kind", "stage"),
    [
        ("file", "file", "_fill"),
        ("file", "file", "_name"),
        ("file", "server", "_fill"),
        ("server", "file", "_name"),
    ],
)
def test_killed_copy_leaves_nothing_under_the_name_and_may_be_repeated(
    request: pytest.FixtureRequest,
    queued: Store,
    tmp_path: Path,
    source_kind: str,
    target_kind: str,
    stage: str,
) -> None:
    source, target = str(queued.path), str(tmp_path / "copy.db")
    if "server" in (source_kind, target_kind):
        server = request.getfixturevalue("cluster").database()
        if source_kind == "server":
            assert copy(source, server).returncode == 0
            source = server
        else:
            target = server
    fault = inject(tmp_path / "fault", KILLED.replace("STAGE", stage))
    fault["PYTHONPATH"] += f":{PROJECT}"
    assert copy(source, target, **fault).returncode == -signal.SIGKILL
    if target_kind == "file":
        assert not Path(target).exists()
    else:
        assert not any(tables(target).values())
    again = copy(source, target)
    assert again.returncode == 0, again.stderr
    assert tables(target) == tables(source)
    assert list(tmp_path.glob("*.part*")) == []


def test_two_copies_to_one_name_do_not_mix(queued: Store, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    with copying._beside(target), pytest.raises(ConfigError, match="another db copy is writing it"):
        list(copying.copy_store(str(queued.path), str(target)))
    list(copying.copy_store(str(queued.path), str(target)))  # the first one is over
    assert tables(str(target)) == tables(str(queued.path))
