"""The database file: its settings, its refusals, its waiting, and that no reader changes it."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from runner.queue import jobs, schema, sqlite
from runner.queue import store as store_module
from runner.queue.errors import StoreReadOnly
from runner.queue.migrations import upgrade
from runner.queue.store import (
    Store,
    StoreRefused,
    StoreUnavailable,
    StoreUnreachable,
    now,
    open_store,
    upgrade_store,
)
from tests import warm
from tests.conftest import (
    PROJECT,
    TEXT,
    both_engines,
    described,
    environment,
    four_at_once,
    row,
    wide,
)

DATA = Path(__file__).resolve().parents[1] / "data"


def test_settings_are_those_that_survive_a_power_cut(store: Store) -> None:
    mode, _ = sqlite.journal()
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == mode.lower()
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == {"WAL": 2, "DELETE": 3}[mode]
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_old_library_falls_back_to_a_rollback_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite.driver(), "sqlite_version_info", (3, 40, 1))
    assert sqlite.journal() == ("DELETE", "EXTRA")


def test_tables_hold_only_the_types_that_they_declare(store: Store) -> None:
    with store.read() as connection:
        made = connection.exec_driver_sql(
            "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table'"
        )
        ours = {name: strict for name, strict in made if name in schema.metadata.tables}
    assert ours == dict.fromkeys(schema.metadata.tables, 1)


@both_engines
def test_reader_cannot_write(store: Store) -> None:
    # A server's answer may also mean that it is read-only for a while, after a failover.
    refused = (sa.exc.OperationalError, StoreUnavailable)
    with pytest.raises(refused, match=r"readonly|read-only"), store.read() as connection:
        connection.execute(sa.delete(schema.meta))


@both_engines
def test_write_rolls_back_whole_on_an_error(store: Store) -> None:
    def half(connection: sa.Connection) -> None:
        connection.execute(schema.meta.insert().values(key="half", value="done"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.write(half)
    with store.read() as connection:
        assert connection.scalar(sa.select(schema.meta.c.value).where(schema.meta.c.key == "half")) is None


def test_write_waits_for_a_lock_and_goes_on(store: Store) -> None:
    # The same library: POSIX locks belong to the process, and two libraries in one would not see each other.
    holder = sqlite.driver().connect(store.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        store.try_write(lambda c: None)
    with pytest.raises(StoreUnavailable):
        store.write(lambda c: None, patience_seconds=0.1)
    holder.execute("ROLLBACK")
    store.write(lambda c: c.execute(schema.meta.insert().values(key="after", value="lock")))
    holder.close()


@both_engines
def test_reader_sees_one_moment(store: Store) -> None:
    count = sa.select(sa.func.count()).select_from(schema.meta)
    with store.read() as connection:
        before = connection.scalar(count)
        store.write(lambda c: c.execute(schema.meta.insert().values(key="meanwhile", value="")))
        assert connection.scalar(count) == before
    with store.read() as connection:
        assert connection.scalar(count) == before + 1


@both_engines
def test_time_is_the_databases(store: Store) -> None:
    with store.read() as connection:
        first, second = (connection.scalar(sa.select(now())) for _ in range(2))
    assert first is not None
    assert second is not None
    assert abs(first - time.time()) < 60
    assert second >= first


def _recipes(path: Path) -> None:
    other = sqlite.driver().connect(path)
    other.execute("CREATE TABLE recipes (id)")
    other.close()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: path.write_bytes(b"not a database at all" * 100), "not a SQLite database"),
        (
            lambda path: sqlite.driver().connect(path).execute("CREATE TABLE recipes (id)"),
            "not a Nightshift database",
        ),
    ],
)
def test_another_programs_file_is_refused(tmp_path: Path, prepare: object, message: str) -> None:
    path = tmp_path / "other.db"
    prepare(path)  # type: ignore[operator]
    before = path.read_bytes()
    for create in (False, True):
        with pytest.raises(StoreRefused, match=message):
            open_store(str(path), create=create)
    assert path.read_bytes() == before


@both_engines
@pytest.mark.parametrize(
    ("version", "message"), [("0000", "older than .*db upgrade"), ("9999", "newer than this program")]
)
def test_another_schema_is_refused_before_anything(
    store: Store, database: str, version: str, message: str
) -> None:
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :v"), {"v": version})
    with pytest.raises(StoreRefused, match=message):
        open_store(database)


def test_missing_database_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable, match="enqueue"):
        open_store(str(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("version", ["0001", "0002"])
def test_stored_database_of_every_earlier_schema_is_upgraded_whole(
    store: Store, tmp_path: Path, version: str
) -> None:
    """A study in mid-life: two jobs done, one queued, one cancelled. It is refused, upgraded, and goes on.

    Its tables and views are then those of a fresh database.
    """
    path = tmp_path / "earlier.db"
    path.write_bytes(gzip.decompress((DATA / f"schema-{version}.db.gz").read_bytes()))
    older = sqlite.driver().connect(path)
    older.execute("UPDATE results SET best_val_loss = 9e999, max_grad_norm = NULL WHERE job_id = 1")
    older.commit()
    older.close()

    def content() -> dict[str, list[sa.RowMapping]]:
        with sqlite.connect(path, begin="BEGIN", query_only=True).begin() as connection:
            return {
                name: list(connection.execute(sa.text(f"SELECT * FROM {name} ORDER BY 1, 2, 3")).mappings())
                for name in ("studies", "jobs", "attempts", "results", "metrics", "expert_counts", "events")
            }

    before = content()
    with pytest.raises(StoreRefused, match="db upgrade"):
        open_store(str(path))
    assert upgrade_store(str(path)) == (version, schema.HEAD)
    upgraded = open_store(str(path))
    [study] = before.pop("studies")
    facts = json.loads(row(upgraded, "studies")["facts"])
    program = json.loads(row(upgraded, "studies")["program"])
    named = {each["name"] for each in program["measures"]}
    assert named == before["results"][0].keys() - {"job_id", "attempt", "recorded_at", "exact"}
    assert facts == {name: study[name] for name in ("protocol", "corpus", "corpus_id")}
    assert wide(upgraded) == [dict(row) for row in before.pop("results")]
    after = content()
    for name, rows in before.items():
        assert [dict(row) for row in rows] == [
            {column: row[column] for column in was} for was, row in zip(rows, after[name], strict=True)
        ]
    assert described(upgraded.engine) == described(store.engine)
    lease = upgraded.write(lambda c: jobs.claim(c, jobs.Worker("worker-1", "here", 1, "cpu")))
    assert lease is not None
    assert lease.job_id == next(job["id"] for job in before["jobs"] if job["status"] == "queued")
    upgraded.close()


def test_stored_database_of_schema_0003_is_upgraded_whole(store: Store, tmp_path: Path) -> None:
    """Its studies have no looks; all else stays, and it is then as a fresh one."""
    path = tmp_path / "earlier.db"
    path.write_bytes(gzip.decompress((DATA / "schema-0003.db.gz").read_bytes()))
    names = [table for table in schema.metadata.tables if table != "looks"]

    def content() -> dict[str, list[dict[str, object]]]:
        with sqlite.connect(path, begin="BEGIN", query_only=True).begin() as connection:
            found = {name: connection.execute(sa.text(f"SELECT * FROM {name}")).mappings() for name in names}
            return {name: [dict(row) for row in rows] for name, rows in found.items()}

    before = content()
    assert upgrade_store(str(path)) == ("0003", schema.HEAD)
    before["studies"] = [study | {"looks": None} for study in before["studies"]]
    assert content() == before
    upgraded = open_store(str(path))
    assert described(upgraded.engine) == described(store.engine)
    upgraded.close()


def test_every_earlier_schema_is_stored() -> None:
    versions = sorted(path.name[:4] for path in (PROJECT / "runner/queue/migrations/versions").glob("0*.py"))
    stored = sorted(path.name[7:11] for path in DATA.glob("schema-*.db.gz"))
    assert versions == [*stored, schema.HEAD]


@both_engines
def test_upgrade_twice_keeps_one_identity(store: Store, database: str) -> None:
    upgrade(store.engine)
    assert open_store(database).database_id == store.database_id


@pytest.mark.slow
def test_many_processes_make_one_database(tmp_path: Path) -> None:
    path = str(tmp_path / "new.db")
    code = f"from runner.queue.store import open_store; print(open_store({path!r}, True).database_id)"
    assert len(set(four_at_once(code))) == 1


def test_moved_or_replaced_file_is_noticed(store: Store, tmp_path: Path) -> None:
    store.check_identity()
    store.path.rename(tmp_path / "moved.db")
    with pytest.raises(StoreUnreachable, match="moved"):
        store.check_identity()
    store.path.write_bytes((tmp_path / "moved.db").read_bytes())
    with pytest.raises(StoreUnreachable, match="replaced"):
        store.check_identity()


def test_last_one_out_folds_the_log_back(tmp_path: Path) -> None:
    opened = open_store(str(tmp_path / "jobs.db"), create=True)
    opened.write(lambda c: c.execute(schema.meta.insert().values(key="a", value="b")))
    opened.close()
    assert [file.name for file in tmp_path.iterdir()] == ["jobs.db"]


def test_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/home {tmp_path} nfs4 rw 0 0\n")
    found = sqlite.network_file_system(tmp_path / "jobs.db", mounts)
    assert found == (tmp_path, "nfs4")
    assert sqlite.network_file_system(Path("/elsewhere/jobs.db"), mounts) is None
    monkeypatch.setattr(sqlite, "network_file_system", lambda path: found)
    with pytest.raises(StoreRefused, match=r"nfs4.*--db"):
        open_store(str(tmp_path / "jobs.db"), create=True)
    assert not (tmp_path / "jobs.db").exists()


def test_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(StoreRefused) as refusal:
        open_store("mysql://me:hunter2@host/db")
    assert "hunter2" not in str(refusal.value)


def test_begin_takes_the_write_lock_at_once(store: Store) -> None:
    other = sqlite.connect(store.path, begin="BEGIN IMMEDIATE", query_only=False)
    with store.engine.begin(), pytest.raises(sa.exc.OperationalError, match="locked"), other.begin():
        pass
    other.dispose()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing can be written to, once `seal` was called on it, as on a DVD."""
    folder = tmp_path / "medium"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
    folder.chmod(0o755)


def seal(folder: Path) -> None:
    folder.chmod(0o555)  # which root may pass over
    mounts = (["--bind", str(folder)], ["-o", "remount,ro,bind"])
    if os.getuid() == 0 and any(
        subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode
        for options in mounts
    ):
        pytest.skip("sealing a folder needs root that may mount, or no root at all")


def test_a_command_does_not_wait_for_a_database_that_cannot_be_written(queued: Store) -> None:
    """SQLite's answer is that of a file without permission to write, or a disk mounted read-only."""
    tries: list[int] = []

    def change(connection: sa.Connection) -> None:
        tries.append(1)
        connection.execute(sa.delete(schema.meta))

    sealed = replace(queued, engine=queued.reader)
    with pytest.raises(StoreReadOnly, match="read-only now; look at its permissions"):
        sealed.write(change, patience_seconds=0.05)
    assert len(tries) > 1  # as a worker, to whom nobody listens
    tries.clear()
    sealed.told = print
    with pytest.raises(StoreReadOnly):
        sealed.write(change)
    assert len(tries) == 1


@pytest.mark.slow
def test_a_command_that_waits_for_a_lock_says_so_once(queued: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SILENT_SECONDS", 0.0)
    holder = sqlite.driver().connect(str(queued.path), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    said: list[str] = []
    queued.told = said.append
    with pytest.raises(StoreUnavailable, match="locked by another program"):
        queued.write(lambda c: c.execute(sa.delete(schema.meta)), patience_seconds=0.6)
    holder.close()
    assert said == ["waiting: the database is locked by another program (for 0 s at most)"]


@pytest.mark.slow
def test_a_database_on_a_read_only_medium_can_be_read(queued: Store, read_only: Path) -> None:
    queued.close()
    path = read_only / "a name with spaces?.db"
    shutil.copy(queued.path, path)
    seal(read_only)
    words = [sys.executable, str(PROJECT / "cli.py"), "status", "--db", str(path)]
    done = warm.run(words, cwd=PROJECT, env=environment(), **TEXT)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^tiny +4 ", done.stdout, re.MULTILINE)
    store = open_store(str(path))
    with pytest.raises(StoreUnreachable, match="read-only medium; copy it to a disk that can be written"):
        store.write(lambda c: jobs.cancel_all(c, [1]))
    store.close()
    assert [file.name for file in read_only.iterdir()] == [path.name]


def test_a_log_beside_a_database_that_cannot_be_written_is_not_passed_over(
    queued: Store, read_only: Path
) -> None:
    """Read without its -wal the file would show an earlier moment."""
    path = read_only / "jobs.db"
    queued.write(lambda c: jobs.cancel_all(c, [1]))
    for end in ("", "-wal"):
        shutil.copy(f"{queued.path}{end}", f"{path}{end}")
    assert Path(f"{path}-wal").stat().st_size
    seal(read_only)
    with pytest.raises(StoreUnreachable, match="its -wal can only be read where SQLite may write: copy both"):
        open_store(str(path))
