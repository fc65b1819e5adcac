"""From the database to memory: a study and its DataFrames, read once, never written.

Each function takes a SQLAlchemy connection, so that one deferred transaction can serve a whole report.
The test split is sealed here: its rows are read only after the study's `test_revealed_at` is set.
What is made of the frames: reports/report.py. The tables: runner/schema.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import sqlalchemy as sa

from reports.study import Cell, Study
from runner.schema import attempts as attempts_table
from runner.schema import expert_counts as counts_table
from runner.schema import jobs, meta, results, studies
from runner.schema import metrics as metrics_table


class NoSuchStudy(Exception):
    """No study of that name, or none at all; the message names what there is and the command that helps."""

    exit_code = 65


class SealedTestSplit(Exception):
    """The test split was asked for before it was revealed."""

    exit_code = 65


@dataclass(frozen=True)
class StudyData:
    """Everything that the report of one study needs, in memory."""

    study: Study
    runs: pd.DataFrame
    attempts: pd.DataFrame
    counts: pd.DataFrame
    nonfinite: pd.DataFrame
    database_id: str

    @property
    def cells(self) -> list[Cell]:
        """The grid's conditions, then those that only jobs know, in the order they came."""
        return list(dict.fromkeys([*self.study.cells(), *self.runs["cell"]]))

    @property
    def done(self) -> pd.DataFrame:
        """The finished runs; results of no other run exist."""
        return self.runs[self.runs["status"] == "done"]

    @cached_property
    def last_causes(self) -> pd.DataFrame:
        """Job → the last of its attempts that has a cause."""
        caused = self.attempts.dropna(subset=["cause"])
        return caused.drop_duplicates("job_id", keep="last").set_index("job_id")

    @cached_property
    def by_cell(self) -> dict[Cell, pd.DataFrame]:
        """Condition → all its runs, by seed and job; results are NaN for those that are not done."""
        rows: dict[Cell, list[int]] = {cell: [] for cell in self.cells}
        for row, cell in enumerate(self.runs["cell"]):
            rows[cell].append(row)
        return {cell: self.runs.iloc[found].sort_values(["seed", "job_id"]) for cell, found in rows.items()}


def list_studies(connection: sa.Connection) -> pd.DataFrame:
    """One row a study, newest first: id, name, protocol, corpus, imported_from, created_at, jobs, done."""
    done = sa.func.count(sa.case((jobs.c.status == "done", 1)))
    return _frame(
        connection,
        sa.select(
            *(
                studies.c[name]
                for name in ("id", "name", "protocol", "corpus", "imported_from", "created_at")
            ),
            sa.func.count(jobs.c.id).label("jobs"),
            done.label("done"),
        )
        .outerjoin(jobs, jobs.c.study_id == studies.c.id)
        .group_by(studies.c.id)
        .order_by(studies.c.created_at.desc(), studies.c.id.desc()),
    )


def choose_study(connection: sa.Connection, name: str | None = None) -> tuple[Study, list[str]]:
    """The study of that name, or the newest; and the names of the others, newest first.

    Raises:
        NoSuchStudy: none has that name, or there is none.
    """
    statement = sa.select(studies).order_by(studies.c.created_at.desc(), studies.c.id.desc())
    rows = connection.execute(statement).mappings().all()
    if not rows:
        raise NoSuchStudy("no study yet: add one with `python cli.py enqueue --grid factorial`")
    chosen = rows[0] if name is None else next((row for row in rows if row["name"] == name), None)
    if chosen is None:
        known = [row["name"] for row in rows]
        raise NoSuchStudy(f"{name!r}: no such study; known: {', '.join(known)}; try --study {known[0]}")
    values = {**chosen, "grid": json.loads(chosen["grid"]), "held": bool(chosen["held"])}
    return Study(**values), [row["name"] for row in rows if row["name"] != chosen["name"]]


def load(connection: sa.Connection, study: Study) -> StudyData:
    """Read all of a study that the report needs."""
    database_id = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "database_id"))
    return StudyData(
        study,
        runs(connection, study),
        attempts(connection, study),
        expert_counts(connection, study),
        nonfinite_metrics(connection, study),
        str(database_id or "not recorded"),
    )


def runs(connection: sa.Connection, study: Study) -> pd.DataFrame:
    """One row a job, in the order of submission: the job, its result (NaN until done), its factors.

    `cell` is the key of its condition and `config` the parsed RunConfig (partial for imported results).
    A factor that is named like a column of jobs or results has no column of its own.
    """
    own = ("seed", "status", "held", "attempt", "failures", "progress_step", "total_steps", "config_hash")
    columns = [jobs.c[name] for name in (*own, "cell", "config", "created_at", "finished_at")]
    measured = [c for c in results.c if c.name not in ("job_id", "attempt")]
    frame = _frame(
        connection,
        sa.select(jobs.c.id.label("job_id"), *columns, results.c.attempt.label("result_attempt"), *measured)
        .outerjoin(results, results.c.job_id == jobs.c.id)
        .where(jobs.c.study_id == study.id)
        .order_by(jobs.c.id),
    )
    given = [json.loads(text) for text in frame["cell"]]
    frame["config"] = _objects(json.loads(text) for text in frame["config"])
    frame["cell"] = _objects(study.cell(values) for values in given)
    for factor in study.factors:
        if factor not in frame:
            levels = [values.get(factor) for values in given]
            numeric = all(isinstance(level, int | float) for level in levels)
            frame[factor] = pd.Series(levels) if numeric else _objects(levels)
    return frame


def attempts(connection: sa.Connection, study: Study) -> pd.DataFrame:
    """One row an attempt, by job and number, with outcome, cause and parsed provenance ({} if none)."""
    own = [c for c in attempts_table.c if c.name not in ("id", "owner", "traceback")]
    frame = _frame(
        connection,
        sa.select(*own)
        .join(jobs, jobs.c.id == attempts_table.c.job_id)
        .where(jobs.c.study_id == study.id)
        .order_by(attempts_table.c.job_id, attempts_table.c.number),
    )
    frame["provenance"] = _objects(json.loads(text or "{}") for text in frame["provenance"])
    return frame


def metrics(
    connection: sa.Connection, study: Study, names: Iterable[str], split: str = "train"
) -> pd.DataFrame:
    """Series over steps: job_id, step, name, value (NaN and ±inf as recorded), in that order.

    Raises:
        SealedTestSplit: the test split, before it was revealed.
    """
    _check_seal(study, split)
    m = metrics_table.c
    frame = _frame(
        connection,
        sa.select(m.job_id, m.step, m.name, m.value, m.nonfinite)
        .join(jobs, jobs.c.id == m.job_id)
        .where(jobs.c.study_id == study.id, m.split == split, m.name.in_(list(names)))
        .order_by(m.job_id, m.name, m.step),
    )
    marks = frame.pop("nonfinite").map(lambda mark: float(mark or "nan"))
    frame["value"] = frame["value"].fillna(marks)
    return frame


def expert_counts(connection: sa.Connection, study: Study, split: str = "val") -> pd.DataFrame:
    """Counts at each job's latest evaluation: job_id, step, layer, expert, tokens.

    Raises:
        SealedTestSplit: the test split, before it was revealed.
    """
    _check_seal(study, split)
    c = counts_table.c
    statement = sa.select(c.job_id, c.step, c.layer, c.expert, c.tokens)
    return _frame(
        connection,
        statement.select_from(jobs)
        .join(counts_table, c.job_id == jobs.c.id)
        .where(jobs.c.study_id == study.id, c.split == split, c.step == _latest_step(counts_table, split))
        .order_by(c.job_id, c.layer, c.expert),
    )


def nonfinite_metrics(connection: sa.Connection, study: Study) -> pd.DataFrame:
    """What is NaN or infinite in each job's latest evaluation: job_id, step, name, nonfinite."""
    m = metrics_table.c
    return _frame(
        connection,
        sa.select(m.job_id, m.step, m.name, m.nonfinite)
        .select_from(jobs)
        .join(metrics_table, m.job_id == jobs.c.id)
        .where(jobs.c.study_id == study.id, m.split == "val", m.nonfinite.is_not(None))
        .where(m.step == _latest_step(metrics_table, "val"))
        .order_by(m.job_id, m.name),
    )


def _latest_step(table: sa.Table, split: str) -> sa.ScalarSelect[Any]:
    # Walks the primary key backwards from the job's end and stops at the first row: no scan of the series.
    other = table.alias()
    return (
        sa.select(other.c.step)
        .where(other.c.job_id == jobs.c.id, other.c.split == split)
        .order_by(other.c.step.desc())
        .limit(1)
        .correlate(jobs)
        .scalar_subquery()
    )


def _check_seal(study: Study, split: str) -> None:
    if split == "test" and study.test_revealed_at is None:
        raise SealedTestSplit(
            f"study {study.name}: its test split is sealed; reveal it with "
            f"`python cli.py test --study {study.name}`"
        )


def _frame(connection: sa.Connection, statement: sa.Select[Any]) -> pd.DataFrame:
    # Text stays Python's (a lone surrogate must not stop the report); numbers are floats, None is NaN,
    # but for columns that cannot be NULL.
    rows = connection.execute(statement).all()
    frame = pd.DataFrame(rows, columns=[c.name for c in statement.selected_columns], dtype=object)
    for column in statement.selected_columns:
        if isinstance(column.type, sa.Double | sa.Integer):
            exact = isinstance(column.type, sa.Integer) and not frame[column.name].isna().any()
            frame[column.name] = frame[column.name].astype("int64" if exact else "float64")
    return frame


def _objects(values: Iterable[Any]) -> pd.Series[Any]:
    return pd.Series(list(values), dtype=object)
