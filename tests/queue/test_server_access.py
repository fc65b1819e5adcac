"""Who may come into a server's database, and that neither a URL nor a refusal tells a password."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from runner.queue.store import StoreRefused, StoreUnreachable, locate, open_store
from tests import warm
from tests.conftest import PROJECT, TEXT, command, environment, on_a_server
from tests.postgres import PASSWORD, Cluster

# --- URLs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://me:SECRET@box:5433/lab", "postgresql+psycopg://me@box:5433/lab"),
        ("postgresql+psycopg://me@box/lab?password=SECRET", "postgresql+psycopg://me@box/lab"),
        (
            "postgresql+psycopg2://box/lab?sslmode=require&sslpassword=SECRET",
            "postgresql+psycopg://box/lab?sslmode=require",
        ),
        ("postgresql://me:SECRET@/lab?host=/run/pg", "postgresql+psycopg://me@/lab?host=%2Frun%2Fpg"),
        ("sqlite:///some/jobs.db", "some/jobs.db"),
        ("jobs.db", "jobs.db"),
    ],
)
def test_name_is_without_secrets(url: str, name: str) -> None:
    place = locate(url.replace("SECRET", PASSWORD))
    assert place.name == name
    assert PASSWORD not in repr(place)
    assert locate(place.name).name == name


@pytest.mark.parametrize(
    "url", ["postgresql://me:SECRET@box:port/lab", "post gres://SECRET", "oracle://me:SECRET@box/lab"]
)
def test_url_that_cannot_be_used_is_not_repeated(url: str) -> None:
    with pytest.raises(StoreRefused, match="postgresql\\+psycopg://USER@HOST/NAME") as refusal:
        locate(url.replace("SECRET", PASSWORD))
    assert PASSWORD not in str(refusal.value)
    assert refusal.value.__cause__ is None


# --- who may come in --------------------------------------------------------------------------------------


def test_password_comes_from_the_environment_or_a_file(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = cluster.url("postgres", password="")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with pytest.raises(StoreUnreachable, match=r"empty; .*enqueue"):
        open_store(bare)
    monkeypatch.delenv("PGPASSWORD")
    secrets = tmp_path / "pgpass"
    secrets.write_text(f"*:*:*:nightshift:{PASSWORD}\n")
    secrets.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(secrets))
    with pytest.raises(StoreUnreachable, match=r"empty; .*enqueue"):
        open_store(bare)
    secrets.unlink()
    with pytest.raises(StoreUnreachable, match=r"PGPASSWORD or ~/.pgpass"):
        open_store(bare)


@pytest.mark.parametrize("wrong", ["password", "name", "server"])
def test_what_cannot_be_reached_is_one_line_and_exit_69(cluster: Cluster, wrong: str) -> None:
    urls = {
        "password": cluster.url("postgres", f":{PASSWORD}-not"),
        "name": cluster.url("nowhere"),
        "server": f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/lab",
    }
    words = command("status", "--db", urls[wrong], cache_dir=Path())
    done = warm.run(words, cwd=PROJECT, env=environment(), **TEXT)
    assert (done.returncode, done.stdout) == (69, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: postgresql+psycopg://")
    assert "~/.pgpass" in line
    assert PASSWORD not in line


def test_database_of_another_program_or_encoding_is_refused(cluster: Cluster) -> None:
    other = cluster.database(empty=True)
    engine = sa.create_engine(other)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE recipes (id INTEGER)")
    engine.dispose()
    for create in (False, True):
        with pytest.raises(StoreRefused, match="not a Nightshift database"):
            open_store(other, create)
    cluster.drop(other)
    with cluster.admin.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StoreRefused, match=r"LATIN1, not UTF8; .*createdb"):
        open_store(cluster.url("latin"), create=True)
    cluster.drop(cluster.url("latin"))


@on_a_server
def test_backup_names_the_servers_own_tool(cli, database: str) -> None:
    done = cli("db", "backup", "copy.db")
    assert (done.returncode, "pg_dump" in done.stderr) == (65, True)
    assert PASSWORD not in done.stderr
