"""Fixtures: a database in each state that a test begins from, and tiny real runs.

Every test has its own folder and database; only the prepared corpus is shared, since it is read-only.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import settings

from model.program import METRICS
from runner.design import grid_file
from runner.design.enqueue import enqueue
from runner.queue import jobs, schema
from runner.queue.store import Store, open_store
from tests import warm
from tests.postgres import Cluster, binaries
from tests.warm import environment

if TYPE_CHECKING:
    from tests.work.night import Night

PROJECT = Path(__file__).resolve().parent.parent

TINY_GRID = """
name = "tiny"
question = "Does it run?"
seeds = [42, 43]

[factors]
noise_std = [0.0, 0.5]

[baseline]
noise_std = 0.0

[base.model]
d_model = 16
n_layers = 1
n_heads = 2
d_ff = 16
n_experts = 4

[base.train]
steps = 40
batch_size = 2
seq_len = 32
accumulate = 2
eval_every = 20

[base.data]
documents = 60
tokens = 6000
held_out_tokens = 512
"""
"""Four runs of a second or so each: real text, real training, every event."""


settings.register_profile("suite", max_examples=40, deadline=None)
settings.register_profile("chaos", max_examples=400, deadline=None)
settings.load_profile("suite")
"""`make chaos` looks at ten times as many: pytest --hypothesis-profile=chaos."""

TEXT: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

both_engines = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
"""Runs a test once on each; without it, on SQLite."""
on_a_server = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


def pytest_configure() -> None:
    """Signals as in a terminal: under nohup, or in a background shell, processes would ignore them."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


NUMERICAL = ("engines", "network", "training", "statistics")
"""Folders whose tests compare bits, or digits that a processor rounds."""
STARTS = {"night", "real_night", "cli", "cluster", "launched", "terminal", "browser"}
"""Fixtures that start commands, servers or a browser."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in NUMERICAL:
            item.add_marker("numerical")
        server = "postgresql" in getattr(getattr(item, "callspec", None), "params", {}).values()
        if server or STARTS & {*getattr(item, "fixturenames", ())}:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server of this session's own."""
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL: install Debian's package postgresql (initdb and pg_ctl are needed)")
    made = Cluster(programs)
    yield made
    made.remove()


@pytest.fixture
def own_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """The server for a test that stops it: running again afterwards, whatever happened."""
    yield cluster
    if not (cluster.folder / "data" / "postmaster.pid").exists():
        cluster.start()


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What --db names: the default file in the test's folder, or a database of its own on the server."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield str(tmp_path / "jobs.db")
        return
    server = request.getfixturevalue("cluster")
    made = server.database()
    yield made
    server.drop(made)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    """An empty database."""
    opened = open_store(database, create=True)
    yield opened
    opened.close()


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sa.Connection]:
    """A new, empty database for a report's study (tests/report_fixtures.py)."""
    from tests.report_fixtures import opened

    with opened(tmp_path) as connection:
        yield connection


@pytest.fixture
def worker() -> jobs.Worker:
    return jobs.Worker(owner="worker-1", host="here", pid=1, device="cpu")


@pytest.fixture
def tiny_grid(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_GRID)
    return path


@pytest.fixture
def queued(store: Store, tiny_grid: Path) -> Store:
    """A database with the four jobs of the tiny grid, queued."""
    grid = grid_file.load_grid(str(tiny_grid))
    store.write(lambda c: enqueue(c, "tiny", grid))
    return store


@pytest.fixture
def lease(queued: Store, worker: jobs.Worker) -> jobs.Lease:
    """Job 1 in the hands of worker-1."""
    found = queued.write(lambda c: jobs.claim(c, worker))
    assert found is not None
    return found


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared corpora, shared: read-only, and verified by hash at each load."""
    return tmp_path_factory.mktemp("data_cache")


@pytest.fixture
def cli(tmp_path: Path, cache_dir: Path, database: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command as a user does, in the test's folder; returns exit code, stdout and stderr."""

    def run(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        words = command(*arguments, cache_dir=cache_dir)
        return warm.run(words, timeout, cwd=tmp_path, env=environment(database), **TEXT)

    return run


@pytest.fixture
def night(tmp_path: Path, cache_dir: Path, database: str) -> Iterator[Night]:
    """Two jobs of the toy program in a queue; whatever still works on them is killed after the test."""
    from tests.work.night import Night

    made = Night(tmp_path, cache_dir, database if "://" in database else "", toy=True)
    yield made
    made.end()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB of its own: room for the copy of the source, and for a few checkpoints."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def real_night(tmp_path: Path, cache_dir: Path) -> Iterator[Night]:
    """The same two jobs of the model itself."""
    from tests.work.night import Night

    made = Night(tmp_path, cache_dir)
    yield made
    made.end()


def _undisturbed(folder: Path, cache_dir: Path, toy: bool) -> str:
    from tests.work.night import Night

    made = Night(folder, cache_dir, toy=toy)
    assert made.drain() == 0
    bits = results_bits(made.store)
    made.end()
    return bits


@pytest.fixture(scope="session")
def bits(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> str:
    """What the toy night comes to when nothing disturbs it."""
    return _undisturbed(tmp_path_factory.mktemp("undisturbed"), cache_dir, toy=True)


@pytest.fixture(scope="session")
def real_bits(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> str:
    """What the real night comes to when nothing disturbs it."""
    return _undisturbed(tmp_path_factory.mktemp("undisturbed"), cache_dir, toy=False)


def command(*arguments: str, cache_dir: Path) -> list[str]:
    """The command line; commands that read a corpus get the shared cache, and work one trainer a device."""
    cache = ["--cache-dir", str(cache_dir)] if arguments[0] in ("enqueue", "work") else []
    alone = {"--threads": "1", "--slots": "1"} if arguments[0] == "work" else {}
    more = [word for name, value in alone.items() if name not in arguments for word in (name, value)]
    return [sys.executable, str(PROJECT / "cli.py"), *arguments, *cache, *more]


def four_at_once(code: str) -> list[str]:
    """What four processes print that run the code at the same time; none of them fails."""
    words, usual = [sys.executable, "-c", code], environment()
    started = [
        warm.Command(words, cwd=PROJECT, env=usual, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    printed = [each.communicate(timeout=120)[0] for each in started]
    assert [each.returncode for each in started] == [0] * 4
    return printed


def row(store: Store, table: str, **where: Any) -> dict[str, Any]:
    """The one row of a table that matches."""
    found = rows(store, table, **where)
    assert len(found) == 1, found
    return found[0]


def rows(store: Store, table: str, **where: Any) -> list[dict[str, Any]]:
    target = schema.metadata.tables[table]
    with store.read() as connection:
        statement = sa.select(target).where(*(target.c[name] == value for name, value in where.items()))
        ordered = statement.order_by(*target.primary_key.columns)
        return [dict(found._mapping) for found in connection.execute(ordered)]


def wide(store: Store) -> list[dict[str, Any]]:
    """The results as they were before schema 0003, a column a measure of the language model."""
    found = rows(store, "results")
    for result in found:
        result |= dict.fromkeys(METRICS)
        for each in rows(store, "measures", job_id=result["job_id"]):
            result[each["name"]] = float(each["nonfinite"] or each["value"])
    return found


def results_bits(store: Store) -> str:
    """Everything that must not depend on interruptions: results, metrics, counts; no times, no speeds."""
    timing = ("seconds", "tokens_per_second", "peak_memory")
    with store.read() as connection:
        results = sa.select(schema.results.c.job_id, schema.results.c.exact).order_by("job_id")
        found = [tuple(r) for r in connection.execute(results)]
        measures = connection.execute(sa.select(schema.measures).order_by("job_id", "name"))
        found += [tuple(r) for r in measures if not any(part in r.name for part in timing)]
        metrics = sa.select(schema.metrics).where(schema.metrics.c.name != "tokens_per_second")
        series = [tuple(r) for r in connection.execute(metrics.order_by("job_id", "step", "split", "name"))]
        counts = [tuple(r) for r in connection.execute(sa.select(schema.expert_counts))]
    return json.dumps([found, series, sorted(counts)])


def described(engine: sa.Engine) -> dict[str, object]:
    """Everything that a database knows of its tables and views, as it can be compared."""
    inspector = sa.inspect(engine)
    tables = {
        name: (
            [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(name)],
            inspector.get_pk_constraint(name)["constrained_columns"],
            sorted(str(c["sqltext"]) for c in inspector.get_check_constraints(name)),
            sorted(str(c["column_names"]) for c in inspector.get_unique_constraints(name)),
            sorted(str(c["referred_table"]) for c in inspector.get_foreign_keys(name)),
            sorted(str(c["column_names"]) for c in inspector.get_indexes(name)),
        )
        for name in schema.metadata.tables
    }
    views = {name: " ".join((inspector.get_view_definition(name) or "").split()) for name in schema.VIEWS}
    return {**tables, **views}


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs learn to count instead of reading a corpus."""
    from model.training import state
    from tests.training_runs import Numbers

    monkeypatch.setattr(state, "prepare", lambda config, _: Numbers(config))


@pytest.fixture
def counting(numbers: None) -> None:
    """The same in one thread: bits depend on how many there are."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def curved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Connection]:
    """A study with curves, which no test changes."""
    from tests import report_fixtures

    with report_fixtures.opened(tmp_path_factory.mktemp("curved")) as connection:
        report_fixtures.curved_study(connection)
        yield connection
