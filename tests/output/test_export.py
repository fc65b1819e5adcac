"""reports/output/export.py: the published columns, every digit, and no formula for a spreadsheet."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from reports.output.export import PUBLISHED_COLUMNS, export
from tests import report_fixtures as made

# Section 11 of the published tutorial, unchanged.
SNIPPET = """
import pandas as pd
df = pd.read_csv('moe_routing_noise_experiment_results.csv')
print(df.groupby(['noise_std','load_balancing_weight']).agg(
    mean_ppl=('best_val_perplexity','mean'),
    std_ppl=('best_val_perplexity','std'),
    mean_cv=('expert_usage_cv','mean'),
    n=('seed','count')
))
"""


def test_the_tutorials_snippet_runs_on_the_export(
    connection: sa.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made.published_study(connection)
    monkeypatch.chdir(tmp_path)
    Path("moe_routing_noise_experiment_results.csv").write_text(export(connection).decode())
    exec(compile(SNIPPET, "snippet", "exec"), {})
    printed = capsys.readouterr().out
    assert "130.233333  1.153617  0.069600  3" in printed  # pandas' std is the sample one
    assert "144.296667  0.665833  0.334533  3" in printed


def test_export_gives_back_the_published_file(connection: sa.Connection) -> None:
    made.published_study(connection)
    exported = pd.read_csv(io.StringIO(export(connection).decode()))
    assert tuple(exported.columns[:10]) == PUBLISHED_COLUMNS
    pd.testing.assert_frame_equal(exported[list(PUBLISHED_COLUMNS)], pd.read_csv(made.PUBLISHED_CSV))


def test_export_has_the_finished_runs_alone_and_every_digit(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    rows = list(csv.DictReader(io.StringIO(export(connection).decode())))
    assert len(rows) == 11
    first = rows[0]
    assert float(first["val_loss"]) == made.loss_of(made.cells(made.FACTORS)[0], 42)
    assert (first["seed"], first["tokens_seen"], first["steps_to_loss"]) == ("42", "4915200", "")
    assert (first["peak_memory_gb"], first["training_time_minutes"]) == ("3.0", "1.6")


def test_export_takes_what_does_not_vary_from_the_configuration(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"top_k": [2]}})
    made.add_result(connection, made.add_job(connection, study, {"top_k": 2}, 42))
    (row,) = csv.DictReader(io.StringIO(export(connection).decode()))
    assert (row["noise_std"], row["load_balancing_weight"], row["top_k"]) == ("0.1", "0.01", "2")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_export_gives_spreadsheets_no_formula(connection: sa.Connection, name: str) -> None:
    study = made.add_study(connection, name, grid={"factors": {name: [name]}, "baseline": {}})
    job = made.add_job(connection, study, {name: name}, 42)
    made.add_result(connection, job, val_loss=-0.5)  # a negative number is no formula
    head, row = csv.reader(io.StringIO(export(connection).decode(), newline=""))
    shown = "'" + name.replace("\t", " ").replace("\r", " ")
    values = dict(zip(head, row, strict=True))
    assert (values["study"], values[shown], values["val_loss"]) == (shown, shown, "-0.5")
