"""reports/reading/frames.py: what is read, in which order, and what is not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from model.config import ConfigError
from reports.reading import frames, series
from reports.reading.study import Study
from runner.queue import schema
from tests import report_fixtures as made

CELL = {"noise_std": 0.1, "load_balancing_weight": 0.01}


def chosen(connection: sa.Connection, name: str | None = None) -> Study:
    return frames.choose_study(connection, name)[0]


def test_the_newest_study_is_chosen_and_the_others_named(connection: sa.Connection) -> None:
    made.add_study(connection, "old", created_at=1.0)
    made.add_study(connection, "new", created_at=3.0)
    made.add_study(connection, "between", created_at=2.0)
    study, others = frames.choose_study(connection)
    assert (study.name, others) == ("new", ["between", "old"])
    study, others = frames.choose_study(connection, "old")
    assert (study.name, others) == ("old", ["new", "between"])


def test_of_two_studies_of_one_instant_the_later_row_is_newer(connection: sa.Connection) -> None:
    made.add_study(connection, "first")
    made.add_study(connection, "second")
    assert chosen(connection).name == "second"


def test_no_such_study_names_what_there_is(connection: sa.Connection) -> None:
    with pytest.raises(frames.NoSuchStudy, match="enqueue --grid factorial"):
        frames.choose_study(connection)
    made.add_study(connection, "mine")
    with pytest.raises(ConfigError, match=r"'other'.*known: mine"):
        frames.choose_study(connection, "other")


def test_runs_is_a_row_a_job_with_factors_and_results(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    runs = frames.runs(connection, chosen(connection))
    assert len(runs) == 18
    assert runs["val_loss"].notna().sum() == 11
    first = runs.iloc[0]
    assert (first["noise_std"], first["load_balancing_weight"], first["seed"]) == (0.0, 0.01, 42)
    assert first["cell"] == (0.0, 0.01)
    assert first["val_loss"] == made.loss_of(made.cells(made.FACTORS)[0], 42)
    assert first["config"]["routing"] == {"noise_std": 0.0, "load_balancing_weight": 0.01}
    assert runs["val_loss"].dtype == "float64"
    assert runs["val_bits_per_byte"].dtype == "float64"


def test_runs_of_another_study_stay_out(connection: sa.Connection) -> None:
    made.finished_study(connection, "one")
    other = made.add_study(connection, "two")
    made.finish(connection, other, CELL, 42)
    study = chosen(connection, "two")
    assert len(frames.runs(connection, study)) == 1
    assert len(frames.attempts(connection, study)) == 1
    assert set(series.expert_counts(connection, study)["job_id"]) == {19}


def test_a_study_without_jobs_has_empty_frames(connection: sa.Connection) -> None:
    made.add_study(connection)
    data = frames.load(connection, chosen(connection))
    assert data.runs.empty
    assert data.attempts.empty
    assert data.counts.empty
    assert len(data.by_cell) == 6
    assert all(runs.empty and "val_loss" in runs for runs in data.by_cell.values())


def test_attempts_carry_cause_and_provenance(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    attempts = frames.attempts(connection, chosen(connection))
    assert attempts["cause"].dropna().value_counts().to_dict() == {"diverged": 3, "lost": 1}
    assert attempts.iloc[0]["provenance"]["packages"]["torch"] == "2.13.0"
    assert "traceback" not in attempts


def test_provenance_may_be_missing(connection: sa.Connection) -> None:
    job = made.add_job(connection, made.add_study(connection), CELL, 42)
    made.add_attempt(connection, job, provenance=None)
    assert list(frames.attempts(connection, chosen(connection))["provenance"]) == [{}]


def test_cells_follow_the_grid_then_the_jobs(connection: sa.Connection) -> None:
    study = made.add_study(connection)
    made.add_job(connection, study, {"noise_std": 9.0, "load_balancing_weight": 0.0}, 42, "queued")
    made.add_job(connection, study, {"noise_std": 0, "load_balancing_weight": 0.01}, 42, "queued")
    data = frames.load(connection, chosen(connection))
    assert data.cells[:2] == [(0.0, 0.01), (0.0, 0.0)]
    assert data.cells[6:] == [(9.0, 0.0)]
    assert len(data.by_cell[(0.0, 0.01)]) == 1  # 0 and 0.0 are one level


def test_metrics_are_series_with_their_infinities(connection: sa.Connection) -> None:
    job = made.add_job(connection, made.add_study(connection), CELL, 42)
    for step, value, mark in ((8, None, "inf"), (4, 5.5, None), (12, None, "nan"), (16, None, "-inf")):
        made.add_metric(connection, job, "loss", value, step=step, split="train", nonfinite=mark)
    made.add_metric(connection, job, "aux_loss", 0.1, step=4, split="train")
    found = series.metrics(connection, chosen(connection), ["loss"])
    assert list(found["step"]) == [4, 8, 12, 16]
    assert list(found["value"][:2]) == [5.5, math.inf]
    assert math.isnan(found["value"][2])
    assert found["value"][3] == -math.inf


def test_counts_are_those_of_the_latest_evaluation(connection: sa.Connection) -> None:
    study = made.add_study(connection)
    job, other = (made.add_job(connection, study, CELL, seed) for seed in (42, 43))
    made.add_counts(connection, job, [[1, 1]], step=100)
    made.add_counts(connection, job, [[7, 3], [5, 5]], step=400)
    made.add_counts(connection, job, [[9, 9]], step=500, split="test")
    made.add_counts(connection, other, [[2, 2]], step=200)
    counts = series.expert_counts(connection, chosen(connection))
    assert list(counts[counts["job_id"] == job]["tokens"]) == [7, 3, 5, 5]
    assert set(counts[counts["job_id"] == other]["step"]) == {200}


def test_variation_of_the_load_by_layer_and_evaluation(connection: sa.Connection) -> None:
    study = made.add_study(connection)
    job, other = (made.add_job(connection, study, CELL, seed) for seed in (42, 43))
    for step, counts in ((100, [[7, 3, 2], [5, 5, 5]]), (200, [[0, 0, 0], [10**9, 1, 1]])):
        made.add_counts(connection, job, counts, step=step)
    made.add_counts(connection, job, [[1, 9]], step=200, split="test")
    made.add_counts(connection, other, [[1, 9]], step=100)
    found = series.layer_variation(connection, chosen(connection), [job])
    assert found[["job_id", "step", "layer"]].values.tolist() == [
        *([job, 100, 0], [job, 100, 1], [job, 200, 0], [job, 200, 1]),
    ]
    assert found["value"].tolist() == pytest.approx(
        [np.std([7, 3, 2]) / 4, 0.0, math.nan, np.std([1e9, 1, 1]) / np.mean([1e9, 1, 1])], nan_ok=True
    )
    assert found["value"][1] == 0  # not rounding


def test_the_test_split_is_sealed_until_it_is_revealed(connection: sa.Connection) -> None:
    job = made.add_job(connection, made.add_study(connection), CELL, 42)
    made.add_metric(connection, job, "loss", 4.4, split="test")
    made.add_counts(connection, job, [[1, 2]], split="test")
    study = chosen(connection)
    with pytest.raises(series.SealedTestSplit, match="test --study factorial"):
        series.metrics(connection, study, ["loss"], "test")
    with pytest.raises(series.SealedTestSplit):
        series.expert_counts(connection, study, "test")
    connection.execute(sa.update(schema.studies).values(test_revealed_at=made.START + 9))
    study = chosen(connection)
    assert list(series.metrics(connection, study, ["loss"], "test")["value"]) == [4.4]
    assert len(series.expert_counts(connection, study, "test")) == 2


def test_only_the_latest_evaluation_tells_what_is_not_finite(connection: sa.Connection) -> None:
    job = made.add_job(connection, made.add_study(connection), CELL, 42)
    made.add_metric(connection, job, "accuracy", None, step=100, nonfinite="nan")
    made.add_metric(connection, job, "accuracy", 0.2, step=400)
    made.add_metric(connection, job, "loss", None, step=400, nonfinite="inf")
    made.add_metric(connection, job, "loss", None, step=400, nonfinite="nan", split="test")
    found = series.nonfinite_metrics(connection, chosen(connection))
    assert [tuple(row) for row in found[["name", "nonfinite"]].to_numpy()] == [("loss", "inf")]


def test_text_that_is_no_text_is_read(connection: sa.Connection) -> None:
    # JSON may carry half of a surrogate pair, which neither UTF-8 nor Arrow can hold.
    study = made.add_study(connection, grid={"factors": {"corpus": ["\ud800"]}})
    made.add_job(connection, study, {"corpus": "\ud800"}, 42, "queued")
    data = frames.load(connection, chosen(connection))
    assert data.cells == [("\ud800",)]
    assert list(data.runs["corpus"]) == ["\ud800"]


def test_the_series_tables_are_never_scanned(connection: sa.Connection) -> None:
    made.finished_study(connection)
    study = chosen(connection)
    asked: list[tuple[str, Any]] = []
    sa.event.listen(
        connection, "before_cursor_execute", lambda c, k, text, values, *_: asked.append((text, values))
    )
    frames.load(connection, study)
    of_series = [text for text, _ in asked if "expert_counts" in text or "metrics" in text]
    assert len(of_series) == 3  # counts, what is not finite, the router's measures
    for text, values in list(asked):
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
        steps = [str(row[-1]) for row in plan]
        assert not [step for step in steps if step.startswith(("SCAN metrics", "SCAN expert_counts"))]


def test_reading_changes_nothing(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    before = connection.exec_driver_sql("SELECT total_changes()").scalar()
    frames.load(connection, chosen(connection))
    assert connection.exec_driver_sql("SELECT total_changes()").scalar() == before


def test_whole_numbers_stay_whole_where_all_are_known(connection: sa.Connection) -> None:
    made.finished_study(connection)
    runs = frames.runs(connection, chosen(connection))
    assert runs["seed"].dtype == runs["peak_memory_bytes"].dtype == "int64"
    assert pd.api.types.is_float_dtype(runs["steps_to_loss"])


def test_an_import_shares_runs_only_where_their_values_are_the_same(connection: sa.Connection) -> None:
    for name in ("first", "again", "other"):
        study = made.add_study(connection, name, imported_from=f"{name}.csv")
        for seed in (1, 2):
            job = made.add_job(connection, study, CELL, seed, config={"routing": CELL, "seed": seed})
            made.add_result(connection, job, val_loss=4.0 + seed / 10 + (name == "other"))
    assert frames.shared(connection, chosen(connection, "first")) == (("again", 2),)
    assert frames.shared(connection, chosen(connection, "other")) == ()
