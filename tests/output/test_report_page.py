"""The report as a page: studies with little in them, the same bytes, hostile names, numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from markdown_it import MarkdownIt

from model.config import ConfigError
from reports.output.export import export
from reports.output.files import first_screen
from reports.output.markdown import escape, markdown_table
from reports.tables import (
    Table,
    instant,
    mean_spread,
    minutes,
    number,
    probability,
)
from tests import report_fixtures as made
from tests.report_reading import render, tables

CELL = {"noise_std": 0.1, "load_balancing_weight": 0.01}
ONE_CELL: dict[str, Any] = {"factors": {}, "baseline": {}}
HOSTILE = "=cmd|'/C calc'!A0 <script>alert(1)</script> `x` [a](http://b) *c* \x1b[31m \u202e\n| d |"


def empty_study(connection: sa.Connection) -> None:
    made.add_study(connection)


def one_cell(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid=ONE_CELL)
    for seed in made.SEEDS:
        made.add_result(connection, made.add_job(connection, study, {}, seed))


def one_seed(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"seeds": [42]})
    for cell in made.cells(made.FACTORS):
        made.finish(connection, study, cell, 42)


def all_failed(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"noise_std": [0.0, 0.1]}})
    for cell in made.cells({"noise_std": [0.0, 0.1]}):
        for seed in made.SEEDS:
            job = made.add_job(connection, study, cell, seed, "failed")
            made.add_attempt(connection, job, outcome="failed", cause="oom", message="out of memory")


def all_equal(connection: sa.Connection) -> None:
    study = made.add_study(connection)
    for cell in made.cells(made.FACTORS):
        for seed in made.SEEDS:
            made.finish(connection, study, cell, seed, val_loss=4.5, val_perplexity=90.0)


def other_primary(connection: sa.Connection) -> None:
    made.finished_study(connection, grid={"primary": "no_such_metric"})


def bare_grid(connection: sa.Connection) -> None:
    study = made.add_study(
        connection, grid={"question": None, "primary": None, "margins": None, "seeds": None}
    )
    made.add_job(connection, study, CELL, 42, "cancelled", config={"seed": 42})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "said"),
    [
        (empty_study, ["The study has no runs.", "18 of the grid never enqueued"]),
        (one_cell, ["One condition: there is nothing to compare.", "4.5000 ± 0.0000"]),
        (one_seed, [" ± – |", "unclear"]),
        (all_failed, ["0 of 6 done; 6 failed (oom 6)", "out of memory", "unclear", "| 42 | – | – | – | – |"]),
        (all_equal, ["is the same in every seed (n = 3 seeds)", "negligible"]),
        (other_primary, ["The metric no_such_metric is not among the recorded results."]),
        (bare_grid, ["**Question:** none was declared with this study", "1 cancelled"]),
    ],
)
def test_a_study_with_little_in_it_says_so(
    connection: sa.Connection, state: Callable[[sa.Connection], None], said: list[str]
) -> None:
    state(connection)
    for std in ("sample", "population"):
        text = render(connection, std=std)
        for sentence in said:
            assert sentence in text
        assert not re.search(r"\bnan\b", text)
    assert export(connection).decode().startswith("seed,noise_std")


@pytest.mark.slow
@pytest.mark.parametrize("state", [made.finished_study, made.unfinished_study, made.published_study])
def test_the_same_database_gives_the_same_bytes(
    connection: sa.Connection, state: Callable[[sa.Connection], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    state(connection)
    first = render(connection)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    assert render(connection) == first
    assert render(connection, "factorial" if "factorial" in first else "published") == first


@pytest.mark.slow
def test_the_command_that_repeats_it_names_everything(connection: sa.Connection) -> None:
    made.finished_study(connection)
    assert "python cli.py report --study factorial --std sample > experiment_results.md" in render(connection)
    again = render(connection, std="population", db="my runs/jobs.db")
    assert "--study factorial --std population --db 'my runs/jobs.db' > " in again


def test_a_hostile_study_is_shown_as_text(connection: sa.Connection) -> None:
    study = made.add_study(
        connection,
        HOSTILE,
        corpus=HOSTILE,
        grid={"question": HOSTILE + "\ud800", "factors": {"corpus": [HOSTILE]}, "baseline": {}},
    )
    for seed in (42, 43):
        job = made.add_job(connection, study, {"corpus": HOSTILE}, seed)
        made.add_attempt(connection, job, provenance={**made.PROVENANCE, "device_name": HOSTILE})
        made.add_result(connection, job)
    failed = made.add_job(connection, study, {"corpus": HOSTILE}, 44, "failed")
    made.add_attempt(connection, failed, outcome="failed", cause="bug", message=HOSTILE)
    text = render(connection)
    text.encode()  # no lone surrogate is left
    assert not set(text) & {"\x1b", "\u202e", "\r"}
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script" not in html
    assert "<a " not in html
    assert "<em>" not in html
    assert html.count("<pre>") == 1
    for table in tables(text):
        assert table  # every row has as many cells as its head
    assert text.startswith(first_screen(connection, None))


@pytest.mark.slow
def test_markdown_is_read_by_a_renderer(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    html = MarkdownIt("commonmark").enable("table").render(render(connection))
    # Aggregate, missing runs, five families, power, stability, two of load, one a condition, timings,
    # failures, the levels' order; no analysis of variance, since no seed is complete.
    assert html.count("<table>") == 22
    assert html.count("<h4>") == 12
    assert html.count("<h1>") == 1


def test_unknown_names_are_one_line(connection: sa.Connection) -> None:
    made.add_study(connection)
    with pytest.raises(ConfigError, match="known: "):
        render(connection, "other")


def test_cells_escape_what_markdown_would_read() -> None:
    assert escape("a|b\n<c> \\ `d` é漢🙂") == "a\\|b &lt;c&gt; \\\\ \\`d\\` é漢🙂"
    # GitHub reads $…$ as mathematics, ~…~ as struck out, _…_ as emphasis unless it is within a word.
    assert escape("$a$ ~b~ _c_ __d__ noise_std") == r"\$a\$ \~b\~ \_c\_ \_\_d\_\_ noise_std"
    assert markdown_table(Table(("a|b",), (("x\ny",),), "l")) == "| a\\|b |\n|:---|\n| x y |"


def test_numbers() -> None:
    assert number(None) == number(math.nan) == "–"
    assert (number(math.inf), number(-math.inf)) == ("inf", "-inf")
    assert (number(-0.00001, 2), number(-0.01, 2)) == ("0.00", "-0.01")
    assert (number(123456789.0, 2), number(130.234, 2)) == ("1.235e+08", "130.23")
    assert (probability(0.00001234), probability(0.5), probability(math.nan)) == ("1.2e-05", "0.5000", "–")
    assert (minutes(96), minutes(30), minutes(3)) == ("1.6", "0.50", "0.050")
    assert mean_spread([1.0, 3.0], 2, "sample", 2) == "2.00 ± 1.41"
    assert mean_spread([1.0, 3.0], 2, "population", 3) == "2.00 ± 1.00 (n=2)"
    assert mean_spread([1.0], 2, "population", 1) == "1.00 ± –"
    assert mean_spread([], 2, "sample", 0) == "–"
    assert instant(0.0) == "1970-01-01 00:00:00 UTC"
