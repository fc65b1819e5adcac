"""From the database to memory: a study and its DataFrames, read once, never written.

Each function takes a SQLAlchemy connection, so that one deferred transaction can serve a whole report.
What evaluations recorded over steps: reports/reading/series.py. What is made of the frames:
reports/output/report.py. The tables: runner/queue/schema.py.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import sqlalchemy as sa

from reports.reading import plans, series
from reports.reading.looks import Look, looks
from reports.reading.measures import SOUGHT
from reports.reading.plans import Addition, Plan
from reports.reading.rows import frame, objects, with_infinities
from reports.reading.study import Cell, Study
from runner.queue.attempts import wasted
from runner.queue.looks import Standing, standing
from runner.queue.schema import attempts as attempts_table
from runner.queue.schema import jobs, meta, results, studies
from runner.queue.schema import measures as measures_table
from runner.queue.studies import named


class NoSuchStudy(Exception):
    """No study of that name, or none at all; the message names what there is and the command that helps."""

    exit_code = 65


@dataclass(frozen=True)
class StudyData:
    """Everything that the report of one study needs, in memory."""

    study: Study
    runs: pd.DataFrame
    attempts: pd.DataFrame
    counts: pd.DataFrame
    nonfinite: pd.DataFrame
    final: pd.DataFrame
    """The router's measures and loss_se at each job's latest evaluation: job_id, step, name, value."""
    test: pd.DataFrame
    """The test split's scores, like `final`; empty while the split is sealed."""
    revealed_by: str
    """The command that revealed the test split; empty while it is sealed."""
    database_id: str
    plans: tuple[Plan, ...] = ()
    """Numbers of seeds that were decided on from results."""
    additions: tuple[Addition, ...] = ()
    """What joined the study after its first runs."""
    shared: tuple[tuple[str, int], ...] = ()
    """(Another study, runs of this one whose configuration, seed included, it has too)."""
    linked: tuple[tuple[str, int], ...] = ()
    """(Another study, runs that were taken over from it)."""
    looks: tuple[Look, ...] = ()
    """The looks that were made at it, where it stops when it knows;"""
    standing: Standing | None = None
    """and how far it has come by them."""

    @property
    def seeds_to_come(self) -> int:
        """Seeds that a study with looks may still get."""
        if not self.study.looks or (self.looks and self.looks[-1].reason):
            return 0
        there = self.looks[-1].seeds if self.looks else 0
        return int(self.study.looks["seeds"][-1]) - there

    @cached_property
    def cells(self) -> list[Cell]:
        """The grid's conditions, then those that only jobs know, in the order they came."""
        return list(dict.fromkeys([*self.study.cells(), *self.runs["cell"]]))

    @cached_property
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


def choose_study(connection: sa.Connection, name: str | None = None) -> tuple[Study, list[str]]:
    """The study of that name, or the newest; and the names of the others, newest first.

    Raises:
        ConfigError: none has that name.
        NoSuchStudy: there is none at all.
    """
    statement = sa.select(studies).order_by(studies.c.created_at.desc(), studies.c.id.desc())
    rows = connection.execute(statement).mappings().all()
    if not rows:
        raise NoSuchStudy("no study yet: add one with `python cli.py enqueue --grid factorial`")
    chosen = rows[0] if name is None else named(connection, name)._mapping
    parsed = {name: json.loads(chosen[name] or "{}") for name in ("grid", "program", "facts", "looks")}
    others = [row["name"] for row in rows if row["name"] != chosen["name"]]
    return Study(**{**chosen, **parsed, "held": bool(chosen["held"])}), others


def load(connection: sa.Connection, study: Study) -> StudyData:
    """Read all of a study that the report needs."""
    database_id = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "database_id"))
    return StudyData(
        study,
        runs(connection, study),
        attempts(connection, study),
        series.expert_counts(connection, study),
        series.nonfinite_metrics(connection, study),
        series.final_metrics(connection, study, (*series.ROUTER, series.LOSS_SE)),
        series.test_scores(connection, study),
        series.revealed_by(connection, study),
        str(database_id or "not recorded"),
        plans.plans(connection, study),
        plans.additions(connection, study),
        shared(connection, study),
        plans.linked(connection, study),
        looks(connection, study.id),
        standing(connection, study.id, study.looks) if study.looks else None,
    )


def shared(connection: sa.Connection, study: Study) -> tuple[tuple[str, int], ...]:
    """The database's other studies with runs of this one's configurations, and how many, by name.

    An import's configuration is only what its file says: such a run is another's where its value is, too.
    """
    theirs, own_value, their_value = jobs.alias(), measures_table.alias(), measures_table.alias()
    equal = (
        sa.select(own_value.c.job_id)
        .join(
            their_value, (their_value.c.name == own_value.c.name) & (their_value.c.value == own_value.c.value)
        )
        .where(own_value.c.job_id == jobs.c.id, own_value.c.name == study.outcome)
        .where(their_value.c.job_id == theirs.c.id)
        .exists()
    )
    made_here = sa.true() if study.imported_from is None else sa.false()
    # By study, then hash: the way the unique index of jobs is sorted, so that no study is scanned.
    statement = (
        sa.select(studies.c.name, sa.func.count())
        .select_from(jobs)
        .join(studies, studies.c.id != jobs.c.study_id)
        .join(theirs, (theirs.c.study_id == studies.c.id) & (theirs.c.config_hash == jobs.c.config_hash))
        .where(jobs.c.study_id == study.id)
        .where(sa.and_(made_here, studies.c.imported_from.is_(None)) | equal)
        .group_by(studies.c.name)
        .order_by(studies.c.name)
    )
    return tuple((str(name), int(count)) for name, count in connection.execute(statement))


def runs(connection: sa.Connection, study: Study) -> pd.DataFrame:
    """One row a job, in the order of submission: the job, its result (NaN until done), its factors.

    What sections ask for (`SOUGHT`) is NaN if the program does not measure it, as in an import that lacks it.
    A measure of no decimals has whole numbers where every run has one.
    `cell` is the key of its condition and `config` the parsed RunConfig (partial for imported results).
    A factor that is named like a column of jobs or a measure has no column of its own.
    """
    own = ("seed", "status", "held", "attempt", "failures", "progress_step", "total_steps", "config_hash")
    columns = [jobs.c[name] for name in (*own, "cell", "config", "created_at", "finished_at")]
    recorded = (results.c.attempt.label("result_attempt"), results.c.recorded_at, results.c.exact)
    found = frame(
        connection,
        sa.select(jobs.c.id.label("job_id"), *columns, *recorded)
        .outerjoin(results, results.c.job_id == jobs.c.id)
        .where(jobs.c.study_id == study.id)
        .order_by(jobs.c.id),
    )
    found = found.join(measured(connection, study), on="job_id")
    for name, measure in study.measures.items():
        if measure.decimals == 0 and not (found[name] % 1).any() and not found[name].isna().any():
            found[name] = found[name].astype("int64")
    for name in SOUGHT:
        if name not in found:
            found[name] = math.nan
    given = [json.loads(text) for text in found["cell"]]
    found["config"] = objects(json.loads(text) for text in found["config"])
    found["cell"] = objects(study.cell(values) for values in given)
    for factor in study.factors:
        if factor not in found:
            levels = [values.get(factor) for values in given]
            numeric = all(isinstance(level, int | float) for level in levels)
            found[factor] = pd.Series(levels) if numeric else objects(levels)
    return found


def measured(connection: sa.Connection, study: Study) -> pd.DataFrame:
    """A row a job that has measures, by its id, a column a measure, in the program's order.

    NaN is both what was measured as that and what was not.
    """
    m = measures_table.c
    found = with_infinities(
        frame(
            connection,
            sa.select(m.job_id, m.name, m.value, m.nonfinite)
            .join(jobs, jobs.c.id == m.job_id)
            .where(jobs.c.study_id == study.id)
            .order_by(m.job_id),
        )
    )
    table = found.pivot(index="job_id", columns="name", values="value")
    return table.reindex(columns=list(dict.fromkeys([*study.measures, *table.columns])))


def attempts(connection: sa.Connection, study: Study) -> pd.DataFrame:
    """One row an attempt, by job and number, with `wasted` and parsed provenance ({} if none)."""
    own = [c for c in attempts_table.c if c.name not in ("id", "owner", "traceback")]
    found = frame(
        connection,
        sa.select(*own, wasted().label("wasted"))
        .join(jobs, jobs.c.id == attempts_table.c.job_id)
        .where(jobs.c.study_id == study.id)
        .order_by(attempts_table.c.job_id, attempts_table.c.number),
    )
    found["provenance"] = objects(json.loads(text or "{}") for text in found["provenance"])
    return found
