"""The tables and views of jobs.db; docs/schema.md explains them to outside readers.

Instants are seconds since 1970 (UTC) by the database's clock. CHECK constraints restate the rules that
runner/queue/jobs.py follows, so that no other program can leave a job half-way. SQLite tables are STRICT.
A fresh database is made from this file alone. Changing anything here needs a new HEAD, a version in
runner/queue/migrations/versions/ that alters the databases there are, and a stored one for tests/data.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    UniqueConstraint,
    event,
)
from sqlalchemy import Text as AnyText
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

HEAD = "0004"
"""The newest schema version; the row of `alembic_version` must say the same."""


class JobStatus(StrEnum):
    """The five states of a job. Who moves it in, and out, are functions of runner/queue/jobs.py."""

    QUEUED = "queued"
    """In: submit, release, fail and requeue_lost (if it is tried again), uncharge, retry_all. Out: claim,
    cancel_all."""
    RUNNING = "running"
    """In: claim. Out: finish, fail, release, end_cancelled, requeue_lost."""
    DONE = "done"
    """In: finish; settle, fail and requeue_lost, for a job that holds a result already. For ever."""
    FAILED = "failed"
    """In: fail and requeue_lost, after a final cause or too many failures. Out: retry_all, uncharge."""
    CANCELLED = "cancelled"
    """In: cancel_all, end_cancelled; fail and requeue_lost, if cancelling was asked for. Out: retry_all."""


STATUSES = tuple(status.value for status in JobStatus)
OPEN = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)
"""States of a job that has not ended."""
OVER = (JobStatus.DONE.value, JobStatus.FAILED.value, JobStatus.CANCELLED.value)
"""States of a job that has ended; `finished_at` says when."""
OUTCOMES = ("done", "failed", "lost", "preempted", "cancelled")
CAUSES = ("bug", "bad_config", "diverged", "oom", "stalled", "lost", "device", "infrastructure")

metadata = MetaData()

# STRICT tables know REAL; on other databases REAL would be 32 bits.
Number: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")
# SQLite's integers have 64 bits; on other databases INTEGER has 32, and tokens pass that in a long run.
Whole: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
# In the order of its bytes, as on SQLite, whatever the server's language.
Text: TypeEngine[str] = AnyText().with_variant(AnyText(collation="C"), "postgresql")


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


def _table(name: str, *parts: SchemaItem, **options: Any) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True, **options)


meta = _table(
    "meta",
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

studies = _table(
    "studies",
    Column("id", Whole, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("grid", Text, nullable=False),  # JSON: question, factors, primary, baseline, margins, claims
    Column("imported_from", Text),  # the file, for results that were not computed here
    Column("held", Whole, nullable=False, server_default="0"),
    Column("created_at", Number, nullable=False),
    Column("test_revealed_at", Number),  # until then the test split's rows are sealed
    # JSON: path, hash, keys, and measures in order, the first primary; runner/design/program.py writes it.
    Column("program", Text, nullable=False, server_default="{}"),
    Column("facts", Text, nullable=False, server_default="{}"),  # JSON: label → text, as the program says
    Column("looks", Text),  # JSON: seeds at each look, their order, spending, futility, drop
    CheckConstraint("held IN (0, 1)", name="held_is_a_flag"),
)

jobs = _table(
    "jobs",
    Column("id", Whole, primary_key=True),
    Column("study_id", ForeignKey("studies.id"), nullable=False),
    Column("config_hash", Text, nullable=False),
    Column("config", Text, nullable=False),  # canonical JSON of the whole RunConfig
    Column("cell", Text, nullable=False),  # JSON: the factors' values, in the grid's order
    Column("seed", Whole, nullable=False),
    Column("status", Text, nullable=False, server_default="queued"),
    Column("held", Whole, nullable=False, server_default="0"),
    Column("priority", Whole, nullable=False, server_default="0"),  # higher goes first
    Column("attempt", Whole, nullable=False, server_default="0"),  # the fence: grows with every claim
    Column("failures", Whole, nullable=False, server_default="0"),  # the attempts that were charged
    Column("max_failures", Whole, nullable=False, server_default="3"),
    Column("run_after", Number),  # back-off: not claimed before
    Column("owner", Text),  # the worker's UUID, while running
    Column("lease_expires_at", Number),
    Column("heartbeat_at", Number),
    Column("cancel_requested", Whole, nullable=False, server_default="0"),
    Column("progress_step", Whole, nullable=False, server_default="0"),
    Column("total_steps", Whole, nullable=False),
    Column("created_at", Number, nullable=False),
    Column("finished_at", Number),
    Column("progress_at", Number),  # the trainer's last event; heartbeat_at is the worker's
    UniqueConstraint("study_id", "config_hash", name="one_job_a_configuration"),
    CheckConstraint(_one_of("status", STATUSES), name="known_status"),
    CheckConstraint(
        "(status = 'running') = (owner IS NOT NULL)"
        " AND (status = 'running') = (lease_expires_at IS NOT NULL)",
        name="running_means_owned",
    ),
    CheckConstraint(f"({_one_of('status', OVER)}) = (finished_at IS NOT NULL)", name="final_has_an_end"),
    CheckConstraint("attempt >= 0 AND failures >= 0 AND max_failures >= 1", name="counts_are_counts"),
    CheckConstraint("held IN (0, 1) AND cancel_requested IN (0, 1)", name="flags_are_flags"),
    CheckConstraint("progress_step >= 0 AND total_steps >= 0", name="steps_are_counts"),
)
# The claim's order: a queue of a million jobs is read from one end of this index.
Index("jobs_claim", jobs.c.status, jobs.c.priority.desc(), jobs.c.id)

attempts = _table(
    "attempts",
    Column("id", Whole, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("number", Whole, nullable=False),
    Column("owner", Text, nullable=False),
    Column("outcome", Text),  # NULL while it runs
    Column("cause", Text),
    Column("message", Text),  # one line for people
    Column("traceback", Text),
    Column("charged", Whole, nullable=False, server_default="0"),
    Column("started_at", Number, nullable=False),
    Column("ended_at", Number),
    Column("host", Text, nullable=False),
    Column("pid", Whole, nullable=False),
    Column("device", Text, nullable=False),
    Column("exit_code", Whole),  # of the trainer process, where it ended; negative for a signal
    Column("resumed_from_step", Whole),
    Column("exact", Whole, nullable=False, server_default="1"),  # 0: resumed in another environment
    Column("log_path", Text),
    Column("provenance", Text),  # JSON: git, packages, device, numeric environment
    UniqueConstraint("job_id", "number", name="numbers_are_the_fence"),
    CheckConstraint(_one_of("outcome", OUTCOMES), name="known_outcome"),
    CheckConstraint(_one_of("cause", CAUSES), name="known_cause"),
    CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="ended_has_an_outcome"),
    CheckConstraint("charged IN (0, 1) AND exact IN (0, 1)", name="flags_are_flags"),
)

workers = _table(
    "workers",
    Column("id", Text, primary_key=True),  # the owner's UUID
    Column("host", Text, nullable=False),
    Column("pid", Whole, nullable=False),
    Column("device", Text, nullable=False),
    Column("started_at", Number, nullable=False),
    Column("heartbeat_at", Number, nullable=False),
    Column("stopped_at", Number),
    Column("exit_code", Whole),
)

metrics = _table(
    "metrics",
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("step", Whole, primary_key=True, autoincrement=False),
    Column("split", Text, primary_key=True),  # train, val, test (sealed)
    Column("name", Text, primary_key=True),
    Column("value", Number),
    Column("nonfinite", Text),  # nan, inf or -inf, where value is NULL
    CheckConstraint("(value IS NULL) = (nonfinite IS NOT NULL)", name="null_says_why"),
    CheckConstraint(_one_of("nonfinite", ("nan", "inf", "-inf")), name="known_nonfinite"),
    CheckConstraint(_one_of("split", ("train", "val", "test")), name="known_split"),
    sqlite_with_rowid=False,
)

expert_counts = _table(
    "expert_counts",
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("step", Whole, primary_key=True, autoincrement=False),
    Column("split", Text, primary_key=True),
    Column("layer", Whole, primary_key=True, autoincrement=False),
    Column("expert", Whole, primary_key=True, autoincrement=False),
    Column("tokens", Whole, nullable=False),  # top-k assignments: a layer's sum is tokens × k
    CheckConstraint("tokens >= 0", name="tokens_are_a_count"),
    CheckConstraint(_one_of("split", ("train", "val", "test")), name="known_split"),
    sqlite_with_rowid=False,
)

results = _table(
    "results",
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),  # at most one result a job
    Column("attempt", Whole, nullable=False),
    Column("recorded_at", Number, nullable=False),
    Column("exact", Whole, nullable=False, server_default="1"),
    CheckConstraint("exact IN (0, 1)", name="exact_is_a_flag"),
)

measures = _table(
    "measures",  # what a finished job came to, as its program names it: studies.program says what each is
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Number),
    Column("nonfinite", Text),  # nan, inf or -inf, where value is NULL
    CheckConstraint("(value IS NULL) = (nonfinite IS NOT NULL)", name="null_says_why"),
    CheckConstraint(_one_of("nonfinite", ("nan", "inf", "-inf")), name="known_nonfinite"),
    sqlite_with_rowid=False,
)

looks = _table(
    "looks",  # of a study that stops when it knows: one row a look
    Column("study_id", ForeignKey("studies.id"), primary_key=True),
    Column("number", Whole, primary_key=True, autoincrement=False),
    Column("seeds", Whole, nullable=False),  # how many there were
    Column("made_at", Number, nullable=False),
    Column("owner", Text, nullable=False),  # the worker that made it
    Column("reason", Text, nullable=False),  # why it was the last; empty where the study went on
    Column("claims", Text, nullable=False),  # JSON: each claim as the look left it
    Column("jobs", Whole, nullable=False),  # queued for the next block
    CheckConstraint("number >= 1 AND seeds >= 1 AND jobs >= 0", name="counts_are_counts"),
    sqlite_with_rowid=False,
)

checkpoints = _table(
    "checkpoints",  # the files that exist: a row goes when its file is pruned
    Column("id", Whole, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("attempt", Whole, nullable=False),
    Column("step", Whole, nullable=False),
    Column("path", Text, nullable=False),  # relative to the run folder
    Column("sha256", Text, nullable=False),
    Column("size_bytes", Whole, nullable=False),
    Column("seconds", Number, nullable=False),
    Column("created_at", Number, nullable=False),
    UniqueConstraint("job_id", "attempt", "step", name="one_file_a_step"),
)

events = _table(
    "events",  # append-only: every transition, and what else a morning-after reader needs
    Column("id", Whole, primary_key=True),
    Column("at", Number, nullable=False),
    Column("job_id", ForeignKey("jobs.id")),
    Column("attempt", Whole),
    Column("owner", Text),
    Column("kind", Text, nullable=False),
    Column("detail", Text),
)
Index("events_of_job", events.c.job_id)


def _measure(name: str) -> str:
    """A measure of the job `j` in a view; NULL where it has none."""
    return f"(SELECT m.value FROM measures m WHERE m.job_id = j.id AND m.name = '{name}')"


_OF_THE_MODEL = (
    *("val_loss", "val_perplexity", "val_accuracy", "val_bits_per_byte", "best_val_perplexity"),
    *("expert_usage_cv", "aux_loss_last_100", "training_seconds", "tokens_per_second", "peak_memory_bytes"),
)
"""Measures that v_runs has as columns: those of the language model. Others: in `measures`."""
_COLUMNS = ", ".join(f"{_measure(name)} AS {name}" for name in _OF_THE_MODEL)
VIEWS = {
    "v_runs": f"""
        SELECT j.id AS job_id, s.name AS study, j.seed, j.cell, j.status, j.attempt AS attempts, j.failures,
               j.progress_step, j.total_steps, {_COLUMNS}, j.config_hash
        FROM jobs j JOIN studies s ON s.id = j.study_id
    """,
    "v_cells": f"""
        SELECT s.name AS study, j.cell, COUNT(*) AS jobs, COUNT(r.job_id) AS n,
               AVG({_measure("val_loss")}) AS mean_val_loss,
               AVG({_measure("val_perplexity")}) AS mean_val_perplexity,
               AVG({_measure("expert_usage_cv")}) AS mean_expert_usage_cv,
               SUM({_measure("training_seconds")}) AS training_seconds
        FROM jobs j JOIN studies s ON s.id = j.study_id LEFT JOIN results r ON r.job_id = j.id
        GROUP BY s.id, s.name, j.cell
    """,
}


def make_views(connection: Connection) -> None:
    for name, select in VIEWS.items():
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {select}")


def drop_views(connection: Connection) -> None:
    """Before tables change: an engine refuses to alter what a view shows."""
    for name in VIEWS:
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")


@event.listens_for(metadata, "after_create")
def _after_create(_: MetaData, connection: Connection, **options: Any) -> None:
    make_views(connection)
