"""The sealed test split: revealed once, by a command that is recorded, and shown from then on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import sqlalchemy as sa

from model.config import ConfigError
from runner.queue import schema
from runner.queue.store import Store
from runner.queue.studies import reveal_test
from tests import report_fixtures as made
from tests.conftest import rows
from tests.report_reading import fact, render, section, tables


@pytest.mark.slow
def test_until_it_is_revealed_nothing_of_it_is_shown(connection: sa.Connection) -> None:
    made.curved_study(connection)
    text = render(connection)
    assert "Sealed. python cli.py test --study factorial reveals it" in section(text, "Test split")
    assert "4.40" not in text
    assert fact(text, "Test split") == "sealed: not read for this report"


@pytest.mark.slow
def test_revealed_scores_stand_beside_the_validation_loss(connection: sa.Connection) -> None:
    made.curved_study(connection)
    assert reveal_test(connection, "factorial", "python cli.py test --study factorial")
    text = render(connection)
    row = tables(section(text, "Test split"))[0][0]
    losses = 4.4 + np.array([1, 2, 3]) / 1000  # jobs 1 to 3
    assert row["Test loss"] == f"{losses.mean():.4f} ± {losses.std(ddof=1):.4f}"
    assert row["Test PPL"].startswith("81.50")
    assert row["n"] == "3/3"
    assert "by python cli.py test --study factorial" in fact(text, "Test split")
    date = fact(text, "Test split").split(" by ")[0].removeprefix("revealed ")
    assert f"Revealed {date}" in section(text, "Test split")


def test_revealing_twice_keeps_the_first_date(connection: sa.Connection) -> None:
    made.curved_study(connection)
    assert reveal_test(connection, "factorial", "first")
    once = connection.scalar(sa.select(schema.studies.c.test_revealed_at))
    assert not reveal_test(connection, "factorial", "second")
    assert connection.scalar(sa.select(schema.studies.c.test_revealed_at)) == once
    found = connection.execute(sa.select(schema.events.c.kind, schema.events.c.detail)).all()
    assert [(kind, json.loads(detail)["command"]) for kind, detail in found] == [("test revealed", "first")]


def test_what_has_no_test_split_is_refused(connection: sa.Connection) -> None:
    made.published_study(connection)
    with pytest.raises(ConfigError, match="imported results; they have no test split"):
        reveal_test(connection, "published")
    with pytest.raises(ConfigError, match="'other': not in this database"):
        reveal_test(connection, "other")


@pytest.mark.slow
def test_a_study_without_scores_says_so(connection: sa.Connection) -> None:
    made.finished_study(connection)
    reveal_test(connection, "factorial")
    assert "No finished run has test scores." in section(render(connection), "Test split")


@pytest.mark.slow
def test_the_commands_of_the_report(
    cli: Callable[..., CompletedProcess[str]], store: Store, tmp_path: Path
) -> None:
    store.write(made.curved_study)
    store.write(lambda c: c.exec_driver_sql("UPDATE jobs SET status = 'cancelled' WHERE id = 18"))
    asked = cli("test", "--study", "factorial")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.startswith("factorial: 1 of its 18 jobs are not done; once its test scores are seen,")
    assert asked.stderr.endswith("nobody is there to answer; add --yes\n")
    assert rows(store, "studies")[0]["test_revealed_at"] is None
    store.write(lambda c: c.exec_driver_sql("UPDATE jobs SET status = 'done' WHERE id = 18"))
    first = cli("test", "--study", "factorial", "--yes")
    assert (first.returncode, first.stderr) == (0, "")
    assert "| 0.0 | 0.01 | 3/3 | 4.4020 ± 0.0010 |" in first.stdout
    again = cli("test", "--study", "factorial")
    assert again.stdout == first.stdout
    assert "revealed before; nothing changed" in again.stderr
    (event,) = rows(store, "events", kind="test revealed")
    assert json.loads(event["detail"])["command"] == "python cli.py test --study factorial --yes"

    plain = cli("report")
    # The command in the report makes the same report.
    line = plain.stdout.split("```bash\npython cli.py ")[1].split(" >")[0]
    assert cli(*line.split()).stdout == plain.stdout
    written = cli("report", "--output", "out", "--format", "json")
    assert (written.returncode, written.stdout) == (0, "")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["title"] == "Study factorial"

    store.write(lambda c: c.exec_driver_sql("UPDATE results SET exact = 0 WHERE job_id = 1"))
    strict = cli("report", "--strict")
    assert (strict.returncode, strict.stdout) == (65, "")
    assert strict.stderr.count("\n") == 1
    bad = cli("power", "--study", "factorial", "--difference", "0.5")
    assert (bad.returncode, bad.stderr) == (
        65,
        "error: --difference 0.5: of what? write 0.5nats, 0.5ppl, 0.5percent\n",
    )
