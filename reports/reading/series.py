"""Series and final values: what evaluations recorded over steps, read only as far as it is needed.

The test split is sealed here: what takes a split raises SealedTestSplit for `test` until the study's
`test_revealed_at` is set.
A study's runs and attempts: reports/reading/frames.py. The tables: runner/queue/schema.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from reports.reading.rows import frame, whole_numbers, with_infinities
from reports.reading.study import Study
from runner.queue.schema import events, jobs
from runner.queue.schema import expert_counts as counts_table
from runner.queue.schema import metrics as metrics_table

ROUTER = ("router_entropy", "top1_probability", "noisy_agreement")
"""What an evaluation records of the router beside its counts."""
LOSS_SE = "loss_se"
"""The standard error of an evaluation's loss over the windows of its text."""
SCORES = ("loss", "perplexity", "accuracy", "bits_per_byte")
"""What an evaluation scores."""


class SealedTestSplit(Exception):
    """The test split was asked for before it was revealed."""

    exit_code = 65


def metrics(
    connection: sa.Connection,
    study: Study,
    names: Iterable[str],
    split: str = "train",
    only: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Series over steps: job_id, step, name, value (NaN and ±inf as recorded), in that order.

    `only` limits it to some jobs: a figure does not need ten thousand series.
    """
    _check_seal(study, split)
    m = metrics_table.c
    statement = (
        sa.select(m.job_id, m.step, m.name, m.value, m.nonfinite)
        .join(jobs, jobs.c.id == m.job_id)
        .where(jobs.c.study_id == study.id, m.split == split, m.name.in_(list(names)))
        .order_by(m.job_id, m.name, m.step)
    )
    if only is not None:
        statement = statement.where(jobs.c.id.in_(list(only)))
    return with_infinities(frame(connection, statement))


def names(connection: sa.Connection, split: str, only: Iterable[int]) -> list[str]:
    """The series that some jobs logged of a split: every row of theirs is read for it."""
    m = metrics_table.c
    found = sa.select(m.name).distinct().where(m.job_id.in_(list(only)), m.split == split)
    return list(connection.scalars(found.order_by(m.name)))


def final_metrics(
    connection: sa.Connection, study: Study, names: Iterable[str], split: str = "val"
) -> pd.DataFrame:
    """Values at each job's latest evaluation: job_id, step, name, value."""
    _check_seal(study, split)
    m = metrics_table.c
    statement = (
        sa.select(m.job_id, m.step, m.name, m.value, m.nonfinite)
        .select_from(jobs)
        .join(metrics_table, m.job_id == jobs.c.id)
        .where(jobs.c.study_id == study.id, m.split == split, m.name.in_(list(names)))
        .where(m.step == _latest_step(metrics_table, split))
        .order_by(m.job_id, m.name)
    )
    return with_infinities(frame(connection, statement))


def expert_counts(connection: sa.Connection, study: Study, split: str = "val") -> pd.DataFrame:
    """Counts at each job's latest evaluation: job_id, step, layer, expert, tokens."""
    _check_seal(study, split)
    c = counts_table.c
    return whole_numbers(
        connection,
        sa.select(c.job_id, c.step, c.layer, c.expert, c.tokens)
        .select_from(jobs)
        .join(counts_table, c.job_id == jobs.c.id)
        .where(jobs.c.study_id == study.id, c.split == split)
        .where(c.step == _latest_step(counts_table, split))
        .order_by(c.job_id, c.step, c.layer, c.expert),
    )


def layer_variation(connection: sa.Connection, study: Study, only: Iterable[int]) -> pd.DataFrame:
    """The experts' CV (population sd / mean) of each layer at every evaluation of some jobs.

    Columns: job_id, step, layer, value; NaN where no token was counted. The database sums over experts: a
    figure does not need each expert of each of its hundreds of runs.
    """
    c = counts_table.c
    tokens = sa.cast(c.tokens, sa.Double)
    found = frame(
        connection,
        sa.select(
            *(c.job_id, c.step, c.layer, sa.func.count().label("experts")),
            *(sa.func.sum(tokens).label("total"), sa.func.sum(tokens * tokens).label("squares")),
        )
        .join(jobs, jobs.c.id == c.job_id)
        .where(jobs.c.study_id == study.id, c.split == "val", c.job_id.in_(list(only)))
        .group_by(c.job_id, c.step, c.layer)
        .order_by(c.job_id, c.step, c.layer),
    )
    # Of whole numbers, so exact: an even load has 0 and no rounding.
    excess = found.pop("experts") * found.pop("squares") - found["total"] ** 2
    found["value"] = np.sqrt(excess.clip(lower=0.0)) / found.pop("total").replace(0.0, math.nan)
    return found


def nonfinite_metrics(connection: sa.Connection, study: Study) -> pd.DataFrame:
    """What is NaN or infinite in each job's latest evaluation: job_id, step, name, nonfinite."""
    m = metrics_table.c
    return frame(
        connection,
        sa.select(m.job_id, m.step, m.name, m.nonfinite)
        .select_from(jobs)
        .join(metrics_table, m.job_id == jobs.c.id)
        .where(jobs.c.study_id == study.id, m.split == "val", m.nonfinite.is_not(None))
        .where(m.step == _latest_step(metrics_table, "val"))
        .order_by(m.job_id, m.name),
    )


def test_scores(connection: sa.Connection, study: Study) -> pd.DataFrame:
    """The test split's final scores once it is revealed, until then nothing."""
    if study.test_revealed_at is None:
        return pd.DataFrame(columns=["job_id", "step", "name", "value"])
    return final_metrics(connection, study, SCORES, "test")


def revealed_by(connection: sa.Connection, study: Study) -> str:
    """The command that revealed the study's test split; empty while it is sealed."""
    statement = sa.select(events.c.detail).where(events.c.kind == "test revealed").order_by(events.c.id)
    details = [json.loads(text or "{}") for text in connection.scalars(statement)]
    return next((str(d.get("command", "")) for d in details if d.get("study_id") == study.id), "")


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
