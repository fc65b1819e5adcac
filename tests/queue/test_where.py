"""The grammar of --where: against Python on the same rows, its refusals, and names of one job."""

from __future__ import annotations

import json
import operator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import cli as program
from model.config import ConfigError, RunConfig, all_keys
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.design.program import load
from runner.queue import jobs, schema
from runner.queue.jobs import UnknownJob
from runner.queue.selection import find_job, jobs_meant, known_names
from runner.queue.store import Store
from runner.queue.where import MAX_CHARACTERS, WhereError, columns, condition
from tests.conftest import both_engines, row, rows

OPERATORS = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
NUMBERS = {"noise_std": (0.0, 0.1, 0.5), "seed": (42, 43, 44), "id": (1, 3, 7), "priority": (0, 1)}


def matching(store: Store, text: str) -> list[int]:
    with store.read() as connection:
        meant = condition(text, *known_names(connection))
        return list(connection.scalars(sa.select(schema.jobs.c.id).where(meant).order_by("id")))


@pytest.fixture
def mixed(store: Store, tiny_grid: Any, worker: jobs.Worker) -> Store:
    """Eight jobs: 1 failed by oom, 2 running, 3 cancelled and paused before, the rest queued; 5 is urgent."""
    grid = scales.adjust(grid_file.load_grid(str(tiny_grid)), seeds="42..45")
    store.write(lambda c: enqueue(c, "tiny", grid))
    for _ in range(2):
        lease = store.write(lambda c: jobs.claim(c, worker))
        assert lease is not None
        if lease.job_id == 1:
            store.write(lambda c, lease=lease: jobs.fail(c, lease, "bad_config", "no"))
    store.write(lambda c: jobs.hold(c, [3]))
    store.write(lambda c: jobs.cancel_all(c, [3]))
    store.write(lambda c: jobs.prioritize(c, [5], 1))
    return store


def python_rows(store: Store) -> list[dict[str, Any]]:
    causes = {attempt["job_id"]: attempt["cause"] for attempt in rows(store, "attempts")}
    return [
        {**job, "noise_std": json.loads(job["cell"])["noise_std"], "cause": causes.get(job["id"])}
        for job in rows(store, "jobs")
    ]


def comparisons() -> st.SearchStrategy[tuple[str, Any]]:
    """(text, predicate over a row) of one comparison."""
    number = st.sampled_from([(name, value) for name, values in NUMBERS.items() for value in values])
    compared = st.tuples(number, st.sampled_from(sorted(OPERATORS))).map(
        lambda drawn: (
            f"{drawn[0][0]} {drawn[1]} {drawn[0][1]}",
            lambda row, d=drawn: OPERATORS[d[1]](row[d[0][0]], d[0][1]),
        )
    )
    word = st.sampled_from(
        [("status", status) for status in schema.STATUSES] + [("cause", "bad_config"), ("cause", "oom")]
    )
    words = st.tuples(word, st.sampled_from(["=", "!="])).map(
        lambda drawn: (
            f"{drawn[0][0]}{drawn[1]}'{drawn[0][1]}'",
            lambda row, d=drawn: OPERATORS[d[1]](row[d[0][0]], d[0][1]),
        )
    )
    among = st.lists(st.sampled_from(NUMBERS["seed"]), min_size=1, max_size=3).map(
        lambda seeds: (f"seed in ({', '.join(map(str, seeds))})", lambda row: row["seed"] in seeds)
    )
    return st.one_of(compared, words, among)


def joined(inner: st.SearchStrategy[tuple[str, Any]]) -> st.SearchStrategy[tuple[str, Any]]:
    both = st.tuples(inner, inner)
    return st.one_of(
        inner.map(lambda one: (f"not ({one[0]})", lambda row: not one[1](row))),
        both.map(lambda two: (f"({two[0][0]}) and ({two[1][0]})", lambda r: two[0][1](r) and two[1][1](r))),
        both.map(lambda two: (f"({two[0][0]}) OR ({two[1][0]})", lambda r: two[0][1](r) or two[1][1](r))),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.recursive(comparisons(), joined, max_leaves=6))
def test_a_condition_selects_what_python_selects(mixed: Store, asked: tuple[str, Any]) -> None:
    text, holds = asked
    assert matching(mixed, text) == [row["id"] for row in python_rows(mixed) if holds(row)]


def test_and_binds_closer_than_or(mixed: Store) -> None:
    assert matching(mixed, "id=1 or id=2 and seed=99") == [1]
    assert matching(mixed, "(id=1 or id=2) and seed=42") == [1, 2]
    assert matching(mixed, "not id=1 and id<3") == [2]


def test_a_job_without_the_value_is_different_from_it(mixed: Store) -> None:
    assert matching(mixed, "cause != bad_config") == [2, 3, 4, 5, 6, 7, 8]
    assert matching(mixed, "not cause = bad_config") == [2, 3, 4, 5, 6, 7, 8]


def told_of(job: dict[str, Any], causes: dict[int, str]) -> dict[str, Any]:
    """Every name of the grammar, and what it is for a job; names and values as Python has them."""
    config = RunConfig.from_dict(json.loads(job["config"]))
    short = [key.rsplit(".", 1)[-1] for key in all_keys()]
    keys = {key: config.value(key) for key in [*all_keys(), *short]}
    known = {name: job.get(name) for name in columns()}
    told = {**keys, **known, "study": "tiny", "hash": job["config_hash"], "cause": causes.get(job["id"])}
    return {name: value for name, value in told.items() if value is not None}


@pytest.mark.slow
@both_engines
def test_every_name_selects_what_python_selects(mixed: Store) -> None:
    causes = {attempt["job_id"]: attempt["cause"] for attempt in rows(mixed, "attempts")}
    told = {job["id"]: told_of(job, causes) for job in rows(mixed, "jobs")}
    assert {*columns(), *all_keys()} <= set(told[1])
    with mixed.read() as connection:
        for name, value in told[1].items():
            alike = [number for number, other in told.items() if other.get(name) == value]
            meant = jobs_meant(connection, [], None, f"{name}='{value}'", schema.STATUSES)
            assert [job.id for job in meant] == alike, name
            unlike = jobs_meant(connection, [], "tiny", f"{name} != '{value}'", schema.STATUSES)
            assert [job.id for job in unlike] == [number for number in told if number not in alike], name
            assert find_job(connection, f"{name}='{value}',id=1") == 1


COMMANDS = {"retry": (1, 3), "cancel": (4, 5), "pause": (5, 6), "resume": (5, 6), "prioritize": (6, 7)}
"""Each with two jobs that it may change."""


@pytest.mark.slow
@both_engines
@pytest.mark.parametrize("command", [*COMMANDS, "delete"])
def test_every_command_takes_every_name(mixed: Store, database: str, command: str) -> None:
    one, other = COMMANDS.get(command, (7, 8))
    causes = {attempt["job_id"]: attempt["cause"] for attempt in rows(mixed, "attempts")}
    told = told_of(row(mixed, "jobs", id=one), causes)
    names = [*columns(), *(key.rsplit(".", 1)[-1] for key in all_keys())]
    holding = [f"{name}='{told[name]}'" if name in told else f"{name}!=oom" for name in names]
    before = rows(mixed, "jobs")
    mixed.close()

    def run(*words: str) -> Result:
        return CliRunner().invoke(program.app, [*words, "--db", database])

    for start in range(0, len(holding), 12):
        some = holding[start : start + 12]
        assert run("show", ",".join([*some, f"id={one}"])).exit_code == 0
        asked = run(command, "--where", f"id={one} and {' and '.join(some)} or id={other}")
        assert (asked.exit_code, "2 jobs" in asked.output) == (2, True), asked.output
    assert rows(mixed, "jobs") == before
    done = run(command, "--where", f"id={one} and study=tiny", "--yes")
    assert done.exit_code == 0, done.output
    after = {job["id"]: job for job in rows(mixed, "jobs")}
    changed = [job["id"] for job in before if after.get(job["id"]) != job]
    assert changed == ([] if command == "resume" else [one])  # it was not paused


def test_configuration_keys_are_known_short_and_dotted(mixed: Store) -> None:
    assert matching(mixed, "routing.noise_std = 0.5 and d_model = 16") == [2, 4, 6, 8]
    assert matching(mixed, "data.corpus = bundled and study = tiny") == list(range(1, 9))
    assert matching(mixed, "protocol = published") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a name"),
        ("nois_std=3", "did you mean routing.noise_std"),
        ("seed", "expected =, !="),
        ("seed=", "expected a value"),
        ("seed=abc", "must be a number"),
        ("seed=1 seed=2", "write `and` or `or`"),
        ("(seed=1", r"expected '\)'"),
        ("seed=1)", "write `and` or `or`"),
        ("status=asleep", "one of queued, running"),
        ("status<done", "compare it with"),
        ("study='open", "a quote left open"),
        ("seed in 1", r"expected '\('"),
        ("and", "no such key"),
        ("(" * 300 + "seed=1" + ")" * 300, "nested deeper"),
        ("not " * 200 + "seed=1", "nested deeper"),
        ("seed=1 or " * 200, f"more than {MAX_CHARACTERS}"),
    ],
)
def test_what_does_not_follow_the_grammar_is_refused_in_a_line(text: str, said: str) -> None:
    with pytest.raises(WhereError, match=said) as caught:
        condition(text, (), [load().keys])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("value", ["x'; DROP TABLE jobs; --", 'a" OR 1=1', "%", "_", "\\", "NULL"])
def test_values_are_bound_and_never_sql(mixed: Store, value: str) -> None:
    quote = "'" if "'" not in value else '"'
    assert matching(mixed, f"study={quote}{value}{quote}") == []
    compiled = condition(f"study={quote}{value}{quote}").compile()
    assert value in compiled.params.values()
    assert "'" not in str(compiled)
    assert '"' not in str(compiled)
    assert len(rows(mixed, "jobs")) == 8


def refusal(text: str) -> str:
    """What is said against a text; nothing where it is a condition."""
    try:
        condition(text, (), [load().keys])
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.slow
@given(text=st.text(max_size=60))
def test_no_text_breaks_the_parser_or_the_line_that_refuses_it(text: str) -> None:
    assert len(refusal(text).splitlines()) <= 1


@pytest.mark.slow
@given(words=st.lists(st.sampled_from(["seed", "=", "in", "(", ")", ",", "not", "and", "or", "1", "'\n'"])))
def test_no_order_of_its_own_words_breaks_it(words: list[str]) -> None:
    assert len(refusal(" ".join(words)).splitlines()) <= 1


# --- one job, by a name -----------------------------------------------------------------------------------


def test_a_job_is_found_by_id_by_hash_and_by_cell(mixed: Store) -> None:
    hashes = {job["id"]: job["config_hash"] for job in rows(mixed, "jobs")}
    with mixed.read() as connection:
        assert find_job(connection, "4") == 4
        assert find_job(connection, "noise_std=0.5,seed=43") == 4
        assert find_job(connection, " seed=43 , noise_std=0.5, study=tiny ") == 4
        for job_id, config_hash in hashes.items():
            assert find_job(connection, config_hash) == job_id
            shortest = next(
                n for n in range(4, 65) if sum(h.startswith(config_hash[:n]) for h in hashes.values()) == 1
            )
            assert find_job(connection, f"{config_hash[:shortest]}") == job_id


def test_a_hash_of_digits_alone_is_a_name_where_no_job_has_that_id(mixed: Store) -> None:
    mixed.write(lambda c: c.execute(sa.text("UPDATE jobs SET config_hash = '9012abcd' WHERE id = 6")))
    with mixed.read() as connection:
        assert find_job(connection, "9012") == 6


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("99", "not in this database; `python cli.py status`"),
        ("seed=42", r"several jobs match \(1, 2\); give an id, or add noise_std= \(0.0, 0.5\)$"),
        ("noise_std=0.5", r"several jobs match \(2, 4, 6, 8\); give an id, or add seed= \(42, 43, 44, 45\)$"),
        ("seed=77", "not in this database"),
        ("ffff", "not in this database"),
        ("fff", "name it by an id"),
        ("something", "name it by an id"),
        ("", "name it by an id"),
    ],
)
def test_a_name_that_names_no_one_job_is_refused(mixed: Store, name: str, said: str) -> None:
    with mixed.read() as connection, pytest.raises(UnknownJob, match=said):
        find_job(connection, name)


def test_many_jobs_are_meant_by_study_or_condition(mixed: Store) -> None:
    def ids(names: list[str], study: str | None, where: str | None, *statuses: str) -> list[int]:
        with mixed.read() as connection:
            return [job.id for job in jobs_meant(connection, names, study, where, statuses)]

    assert ids([], "tiny", None, "queued") == [4, 5, 6, 7, 8]
    assert ids([], "tiny", "noise_std=0.5", "queued", "running") == [2, 4, 6, 8]
    assert ids([], None, "status=failed", "queued") == []
    assert ids(["noise_std=0.5,seed=45", "4"], None, None, "queued") == [4, 8]
    with pytest.raises(ConfigError, match="which jobs"):
        ids([], None, None, "queued")
    with pytest.raises(ConfigError, match="not both"):
        ids(["1"], "tiny", None, "queued")
    with pytest.raises(ConfigError, match="known: tiny"):
        ids([], "other", None, "queued")
    with pytest.raises(UnknownJob, match="job 1: failed; this is for queued jobs"):
        ids(["1", "4"], None, None, "queued")
