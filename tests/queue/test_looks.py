"""A look is made once, by whoever comes first, whole or not at all; and it queues the next block."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from model.config import ConfigError
from model.events import Resumed
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.design.grid import Grid
from runner.design.linking import SAME, link
from runner.design.more import more_seeds
from runner.design.program import reseeding
from runner.queue import jobs, looks, records, studies
from runner.queue.looks import Decided
from runner.queue.store import Store, open_store
from tests.conftest import TINY_GRID, both_engines, row, rows

LOOKED = """
[[claims]]
name = "Noise harms"
kind = "greater"
compare = { noise_std = 0.5 }

[looks]
seeds = [3, 5, 8]
"""
BOTH = ({"noise_std": 0.0}, {"noise_std": 0.5})

RESEED = reseeding(Path())
HERE = dict.fromkeys(SAME, "the same")


def nothing(connection: sa.Connection, study: str) -> dict[str, int]:
    """No other study has any of its runs."""
    return {}


def grid_of(folder: Path, text: str = LOOKED) -> Grid:
    path = folder / "looked.toml"
    path.write_text(TINY_GRID + text)
    return grid_file.load_grid(str(path))


@pytest.fixture
def looked(store: Store, tmp_path: Path) -> Store:
    """A database with the six jobs of a first block, queued."""
    store.write(lambda c: enqueue(c, "tiny", grid_of(tmp_path), max_failures=5, priority=2))
    return store


def work(store: Store, failing: Sequence[int] = ()) -> None:
    """Finish every queued job; those of some seeds fail."""
    worker = jobs.Worker(owner="worker-1", host="here", pid=1, device="cpu")
    while (lease := store.write(lambda c: jobs.claim(c, worker))) is not None:
        seed = row(store, "jobs", id=lease.job_id)["seed"]
        if seed in failing:
            store.write(lambda c: jobs.fail(c, lease, "diverged", "loss is not a number"))
        else:
            store.write(partial(_finish, lease=lease))


def _finish(connection: sa.Connection, lease: jobs.Lease) -> None:
    records.describe(connection, lease, HERE, "trainer.log", 1)
    records.rewind(connection, lease, Resumed(0, environment={"device": "one"}))
    jobs.finish(connection, lease, {"val_loss": 1.0, "val_perplexity": 2.718})


def saying(number: int, reason: str = "", cells: Sequence[Mapping[str, Any]] = BOTH) -> looks.Decide:
    claim = {"name": "Noise harms", "look": number if reason else 0}
    return lambda connection, study: Decided(number, [claim], [] if reason else cells, reason)


def seeds(store: Store, status: str = "queued") -> list[int]:
    return [job["seed"] for job in rows(store, "jobs", status=status)]


@both_engines
def test_the_first_block_alone_is_queued_and_the_rest_is_fixed(looked: Store, tmp_path: Path) -> None:
    assert seeds(looked) == [42, 42, 43, 43, 44, 44]
    plan = json.loads(row(looked, "studies")["looks"])
    assert (plan["seeds"], plan["order"]) == ([3, 5, 8], list(range(42, 50)))
    assert looked.write(lambda c: enqueue(c, "tiny", grid_of(tmp_path))) == 0


@pytest.mark.parametrize(
    "text",
    [LOOKED.replace("3, 5, 8", "3, 5, 9"), LOOKED + 'spending = "pocock"', LOOKED.partition("[looks]")[0]],
    ids=["looks", "spending", "none"],
)
def test_another_design_is_refused_afterwards(looked: Store, tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="fixed when it was made; start another study"):
        looked.write(lambda c: enqueue(c, "tiny", grid_of(tmp_path, text)))


def test_seeds_levels_and_looks_cannot_be_added(looked: Store, tmp_path: Path) -> None:
    more = scales.adjust(grid_of(tmp_path), seeds="7..14")
    with pytest.raises(ConfigError, match="fixed when it was made"):
        looked.write(lambda c: enqueue(c, "tiny", more))
    with pytest.raises(ConfigError, match="its looks say which seeds it gets"):
        looked.write(lambda c: more_seeds(c, "tiny", [50], Path()))
    wider = (TINY_GRID + LOOKED).replace("[0.0, 0.5]", "[0.0, 0.5, 0.7]")
    (tmp_path / "wider.toml").write_text(wider)
    with pytest.raises(ConfigError, match="its design is fixed"):
        looked.write(lambda c: enqueue(c, "tiny", grid_file.load_grid(str(tmp_path / "wider.toml"))))
    plain = grid_of(tmp_path, LOOKED.partition("[looks]")[0])
    looked.write(lambda c: enqueue(c, "plain", plain))
    with pytest.raises(ConfigError, match="has no looks, which was fixed"):
        looked.write(lambda c: enqueue(c, "plain", grid_of(tmp_path)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[looks]\nseeds = [3, 5]", "a look decides"),
        (LOOKED.replace("3, 5, 8", "2, 5"), "growing numbers from 3 on"),
        (LOOKED.replace("3, 5, 8", "5, 5"), "growing numbers"),
        (LOOKED.replace("3, 5, 8", "5"), "growing numbers"),
        (LOOKED + 'spending = "linear"', "looks.spending = 'linear': choose one of obrien-fleming, pocock"),
        (LOOKED + "futility = 1.5", "looks.futility = 1.5: must be a probability"),
        (LOOKED + "seed = 3", "looks.seed: no such key"),
    ],
)
def test_what_a_grid_cannot_say(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        grid_of(tmp_path, text)


def test_the_option_says_the_same_as_the_file(tmp_path: Path) -> None:
    plain = grid_of(tmp_path, LOOKED.partition("[looks]")[0])
    chosen = scales.adjust(plain, seeds="7,3", looks="3,4,6")
    assert (chosen.looks.seeds, chosen.seeds) == ((3, 4, 6), (7, 3, 8, 9, 10, 11))  # type: ignore[union-attr]
    assert chosen.begun.seeds == (7, 3, 8)
    with pytest.raises(ConfigError, match="--looks 3-6: write"):
        scales.adjust(plain, looks="3-6")


@both_engines
def test_a_look_is_due_when_no_job_of_the_block_is_open(looked: Store) -> None:
    assert not looks.make_due(looked, saying(1), "me", RESEED, nothing)
    worker = jobs.Worker(owner="worker-1", host="here", pid=1, device="cpu")
    lease = looked.write(lambda c: jobs.claim(c, worker))
    assert lease is not None
    with looked.read() as connection:
        assert looks.due(connection) == []
    looked.write(lambda c: jobs.release(c, lease, "a signal"))
    work(looked, failing=[43])
    looked.write(lambda c: studies.hold(c, "tiny", True))
    assert not looks.make_due(looked, saying(1), "me", RESEED, nothing)
    looked.write(lambda c: studies.hold(c, "tiny", False))
    assert looks.make_due(looked, saying(1), "me", RESEED, nothing)  # what diverged is no gap


@both_engines
def test_a_look_queues_the_runs_that_the_grid_would_have(looked: Store, tmp_path: Path) -> None:
    work(looked)
    (made,) = looks.make_due(looked, saying(1), "me", RESEED, nothing)
    assert (made.study, made.decided.number, made.jobs) == ("tiny", 1, 4)
    assert seeds(looked) == [45, 45, 46, 46]
    new = rows(looked, "jobs", status="queued")
    assert {(job["max_failures"], job["priority"]) for job in new} == {(5, 2)}
    wanted = [c.hash for _, c in grid_of(tmp_path).runs() if c.seed in (45, 46)]
    assert [job["config_hash"] for job in new] == wanted
    kept = row(looked, "looks")
    assert (kept["number"], kept["seeds"], kept["owner"], kept["jobs"]) == (1, 3, "me", 4)
    assert json.loads(row(looked, "studies")["grid"])["seeds"] == [42, 43, 44, 45, 46]
    assert made.told() == "tiny: look 1: 0 of 1 claims decided; 4 runs queued"


def test_conditions_that_nobody_needs_get_no_further_seeds(looked: Store) -> None:
    work(looked)
    looks.make_due(looked, saying(1, cells=BOTH[1:]), "me", RESEED, nothing)
    assert [(j["seed"], json.loads(j["cell"])) for j in rows(looked, "jobs", status="queued")] == [
        (45, BOTH[1]),
        (46, BOTH[1]),
    ]


@pytest.mark.slow
def test_the_last_look_is_the_last(looked: Store) -> None:
    for number in (1, 2, 3):
        work(looked)
        assert looks.make_due(
            looked, saying(number, "" if number < 3 else "the last look"), "me", RESEED, nothing
        )
    assert len(seeds(looked, "done")) == 16
    assert not looks.make_due(looked, saying(4), "me", RESEED, nothing)
    assert [look["seeds"] for look in rows(looked, "looks")] == [3, 5, 8]


def test_a_study_that_knows_stops(looked: Store) -> None:
    work(looked)
    (made,) = looks.make_due(looked, saying(1, "every claim is decided"), "me", RESEED, nothing)
    assert made.jobs == 0
    assert not seeds(looked)
    assert not looks.make_due(looked, saying(2), "me", RESEED, nothing)


@both_engines
def test_of_two_that_decided_at_once_one_makes_the_look(looked: Store) -> None:
    work(looked)
    with looked.read() as connection:
        (study,) = looks.due(connection)
    decided = saying(1)(None, "tiny")  # type: ignore[arg-type]
    first, second = (
        looked.write(lambda c, o=owner: looks.make(c, study, decided, o, RESEED, nothing))
        for owner in ("one", "two")
    )
    assert first is not None
    assert (first.jobs, second) == (4, None)
    assert row(looked, "looks")["owner"] == "one"
    assert len(seeds(looked)) == 4


def test_a_decision_about_other_runs_is_thrown_away(looked: Store) -> None:
    work(looked, failing=[44])
    with looked.read() as connection:
        (study,) = looks.due(connection)
    failed = [job["id"] for job in rows(looked, "jobs", status="failed")]
    looked.write(lambda c: jobs.retry_all(c, failed))
    decided = saying(1)(None, "tiny")  # type: ignore[arg-type]
    assert looked.write(lambda c: looks.make(c, study, decided, "me", RESEED, nothing)) is None
    work(looked)
    assert looked.write(lambda c: looks.make(c, study, decided, "me", RESEED, nothing)) is None
    assert rows(looked, "looks") == []
    assert looks.make_due(looked, saying(1), "me", RESEED, nothing)


def test_a_study_goes_with_its_looks(looked: Store) -> None:
    work(looked)
    looks.make_due(looked, saying(1, "every claim is decided"), "me", RESEED, nothing)
    ids = [job["id"] for job in rows(looked, "jobs")]
    assert looked.write(lambda c: studies.delete(c, ids, "tiny")) == ["tiny"]
    assert rows(looked, "looks") == []


@pytest.mark.slow
def test_killed_at_any_statement_a_look_happens_once(looked: Store, tmp_path: Path) -> None:
    """A process is killed before its first, second, … statement of the look, until one gets through.

    One run of the block that it queues is another study's, and taken over.
    """
    looked.write(lambda c: enqueue(c, "pilot", scales.adjust(grid_of(tmp_path, ""), seeds="45")))
    looked.write(lambda c: c.exec_driver_sql("DELETE FROM jobs WHERE id = 8"))
    work(looked)
    path = str(looked.path)
    before = looked.write(lambda c: c.exec_driver_sql("SELECT * FROM events").all())
    looked.close()  # each process opens its own
    killed = 0
    for strike in itertools.count(1):
        child = os.fork()
        if not child:
            _look_and_die(path, strike)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
        store = open_store(path)
        assert rows(store, "looks") == []
        assert (len(rows(store, "jobs")), len(rows(store, "results"))) == (7, 7)
        assert len(rows(store, "events")) == len(before)
        store.close()
    assert killed >= 15  # else nothing was proven
    store = open_store(path)
    assert len(rows(store, "looks")) == 1
    assert seeds(store) == [45, 46, 46]
    assert len(rows(store, "results")) == 8
    store.close()


def _look_and_die(path: str, strike: int) -> None:
    """In a process of its own: make the look, and be killed before a statement, or before the COMMIT."""
    code = 1
    try:
        store, count = open_store(path), itertools.count(1)

        def struck(*_: Any) -> None:
            if next(count) == strike:
                os.kill(os.getpid(), signal.SIGKILL)

        sa.event.listen(store.engine, "before_cursor_execute", struck)
        sa.event.listen(store.engine, "commit", struck)
        (made,) = looks.make_due(store, saying(1), "me", RESEED, partial(link, here=HERE))
        code = int(made.taken_over != {"pilot": 1})
    finally:
        os._exit(code)
