# ruff: noqa: E501 (written by Alembic from runner/queue/schema.py, then frozen)
"""The first schema: studies, jobs, attempts, workers, metrics, counts, results, checkpoints, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
WHOLE: sa.types.TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT: sa.types.TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "meta",
        sa.Column("key", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("key"),
        sqlite_strict=True,
    )
    op.create_table(
        "studies",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("grid", TEXT, nullable=False),
        sa.Column("protocol", TEXT, nullable=False),
        sa.Column("corpus", TEXT, nullable=False),
        sa.Column("corpus_id", TEXT, nullable=False),
        sa.Column("imported_from", TEXT, nullable=True),
        sa.Column("held", WHOLE, server_default="0", nullable=False),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.Column("test_revealed_at", NUMBER, nullable=True),
        sa.CheckConstraint("held IN (0, 1)", name="held_is_a_flag"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
        sqlite_strict=True,
    )
    op.create_table(
        "workers",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("pid", WHOLE, nullable=False),
        sa.Column("device", TEXT, nullable=False),
        sa.Column("started_at", NUMBER, nullable=False),
        sa.Column("heartbeat_at", NUMBER, nullable=False),
        sa.Column("stopped_at", NUMBER, nullable=True),
        sa.Column("exit_code", WHOLE, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sqlite_strict=True,
    )
    op.create_table(
        "jobs",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("study_id", WHOLE, nullable=False),
        sa.Column("config_hash", TEXT, nullable=False),
        sa.Column("config", TEXT, nullable=False),
        sa.Column("cell", TEXT, nullable=False),
        sa.Column("seed", WHOLE, nullable=False),
        sa.Column("status", TEXT, server_default="queued", nullable=False),
        sa.Column("held", WHOLE, server_default="0", nullable=False),
        sa.Column("priority", WHOLE, server_default="0", nullable=False),
        sa.Column("attempt", WHOLE, server_default="0", nullable=False),
        sa.Column("failures", WHOLE, server_default="0", nullable=False),
        sa.Column("max_failures", WHOLE, server_default="3", nullable=False),
        sa.Column("run_after", NUMBER, nullable=True),
        sa.Column("owner", TEXT, nullable=True),
        sa.Column("lease_expires_at", NUMBER, nullable=True),
        sa.Column("heartbeat_at", NUMBER, nullable=True),
        sa.Column("cancel_requested", WHOLE, server_default="0", nullable=False),
        sa.Column("progress_step", WHOLE, server_default="0", nullable=False),
        sa.Column("total_steps", WHOLE, nullable=False),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.Column("finished_at", NUMBER, nullable=True),
        sa.CheckConstraint(
            "(status = 'running') = (owner IS NOT NULL) AND (status = 'running') = (lease_expires_at IS NOT NULL)",
            name="running_means_owned",
        ),
        sa.CheckConstraint(
            "(status IN ('done', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="final_has_an_end"
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="known_status"
        ),
        sa.CheckConstraint("attempt >= 0 AND failures >= 0 AND max_failures >= 1", name="counts_are_counts"),
        sa.CheckConstraint("held IN (0, 1) AND cancel_requested IN (0, 1)", name="flags_are_flags"),
        sa.CheckConstraint("progress_step >= 0 AND total_steps >= 0", name="steps_are_counts"),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["studies.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study_id", "config_hash", name="one_job_a_configuration"),
        sqlite_strict=True,
    )
    op.create_index("jobs_claim", "jobs", ["status", sa.literal_column("priority DESC"), "id"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("job_id", WHOLE, nullable=False),
        sa.Column("number", WHOLE, nullable=False),
        sa.Column("owner", TEXT, nullable=False),
        sa.Column("outcome", TEXT, nullable=True),
        sa.Column("cause", TEXT, nullable=True),
        sa.Column("message", TEXT, nullable=True),
        sa.Column("traceback", TEXT, nullable=True),
        sa.Column("charged", WHOLE, server_default="0", nullable=False),
        sa.Column("started_at", NUMBER, nullable=False),
        sa.Column("ended_at", NUMBER, nullable=True),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("pid", WHOLE, nullable=False),
        sa.Column("device", TEXT, nullable=False),
        sa.Column("exit_code", WHOLE, nullable=True),
        sa.Column("resumed_from_step", WHOLE, nullable=True),
        sa.Column("exact", WHOLE, server_default="1", nullable=False),
        sa.Column("log_path", TEXT, nullable=True),
        sa.Column("provenance", TEXT, nullable=True),
        sa.CheckConstraint(
            "cause IN ('bug', 'bad_config', 'diverged', 'oom', 'stalled', 'lost', 'device', 'infrastructure')",
            name="known_cause",
        ),
        sa.CheckConstraint(
            "outcome IN ('done', 'failed', 'lost', 'preempted', 'cancelled')", name="known_outcome"
        ),
        sa.CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="ended_has_an_outcome"),
        sa.CheckConstraint("charged IN (0, 1) AND exact IN (0, 1)", name="flags_are_flags"),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "number", name="numbers_are_the_fence"),
        sqlite_strict=True,
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("job_id", WHOLE, nullable=False),
        sa.Column("attempt", WHOLE, nullable=False),
        sa.Column("step", WHOLE, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.Column("size_bytes", WHOLE, nullable=False),
        sa.Column("seconds", NUMBER, nullable=False),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "attempt", "step", name="one_file_a_step"),
        sqlite_strict=True,
    )
    op.create_table(
        "events",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("at", NUMBER, nullable=False),
        sa.Column("job_id", WHOLE, nullable=True),
        sa.Column("attempt", WHOLE, nullable=True),
        sa.Column("owner", TEXT, nullable=True),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("detail", TEXT, nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sqlite_strict=True,
    )
    op.create_index("events_of_job", "events", ["job_id"], unique=False)
    op.create_table(
        "expert_counts",
        sa.Column("job_id", WHOLE, nullable=False),
        sa.Column("step", WHOLE, autoincrement=False, nullable=False),
        sa.Column("split", TEXT, nullable=False),
        sa.Column("layer", WHOLE, autoincrement=False, nullable=False),
        sa.Column("expert", WHOLE, autoincrement=False, nullable=False),
        sa.Column("tokens", WHOLE, nullable=False),
        sa.CheckConstraint("split IN ('train', 'val', 'test')", name="known_split"),
        sa.CheckConstraint("tokens >= 0", name="tokens_are_a_count"),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
        ),
        sa.PrimaryKeyConstraint("job_id", "step", "split", "layer", "expert"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "metrics",
        sa.Column("job_id", WHOLE, nullable=False),
        sa.Column("step", WHOLE, autoincrement=False, nullable=False),
        sa.Column("split", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("value", NUMBER, nullable=True),
        sa.Column("nonfinite", TEXT, nullable=True),
        sa.CheckConstraint("nonfinite IN ('nan', 'inf', '-inf')", name="known_nonfinite"),
        sa.CheckConstraint("split IN ('train', 'val', 'test')", name="known_split"),
        sa.CheckConstraint("(value IS NULL) = (nonfinite IS NOT NULL)", name="null_says_why"),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
        ),
        sa.PrimaryKeyConstraint("job_id", "step", "split", "name"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "results",
        sa.Column("job_id", WHOLE, nullable=False),
        sa.Column("attempt", WHOLE, nullable=False),
        sa.Column("recorded_at", NUMBER, nullable=False),
        sa.Column("exact", WHOLE, server_default="1", nullable=False),
        sa.Column("val_loss", NUMBER, nullable=False),
        sa.Column("val_perplexity", NUMBER, nullable=False),
        sa.Column("val_accuracy", NUMBER, nullable=True),
        sa.Column("val_bits_per_byte", NUMBER, nullable=True),
        sa.Column("best_val_loss", NUMBER, nullable=True),
        sa.Column("best_val_perplexity", NUMBER, nullable=True),
        sa.Column("expert_usage_cv", NUMBER, nullable=True),
        sa.Column("expert_usage_cv_layer_mean", NUMBER, nullable=True),
        sa.Column("expert_usage_cv_layer_sd", NUMBER, nullable=True),
        sa.Column("expert_usage_cv_layer_max", NUMBER, nullable=True),
        sa.Column("train_loss_last_100", NUMBER, nullable=True),
        sa.Column("aux_loss_last_100", NUMBER, nullable=True),
        sa.Column("unweighted_aux_loss_last_100", NUMBER, nullable=True),
        sa.Column("clipped_share", NUMBER, nullable=True),
        sa.Column("max_grad_norm", NUMBER, nullable=True),
        sa.Column("loss_spikes", WHOLE, nullable=True),
        sa.Column("steps_to_loss", WHOLE, nullable=True),
        sa.Column("train_loss_tail_sd", NUMBER, nullable=True),
        sa.Column("training_seconds", NUMBER, nullable=True),
        sa.Column("evaluation_seconds", NUMBER, nullable=True),
        sa.Column("compile_seconds", NUMBER, nullable=True),
        sa.Column("waiting_seconds", NUMBER, nullable=True),
        sa.Column("tokens_per_second", NUMBER, nullable=True),
        sa.Column("peak_memory_bytes", WHOLE, nullable=True),
        sa.Column("tokens_seen", WHOLE, nullable=True),
        sa.Column("unique_tokens", WHOLE, nullable=True),
        sa.Column("parameters_total", WHOLE, nullable=True),
        sa.Column("parameters_active", WHOLE, nullable=True),
        sa.CheckConstraint("exact IN (0, 1)", name="exact_is_a_flag"),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
        ),
        sa.PrimaryKeyConstraint("job_id"),
        sqlite_strict=True,
    )
    op.execute(
        """
        CREATE VIEW v_runs AS
        SELECT j.id AS job_id, s.name AS study, j.seed, j.cell, j.status, j.attempt AS attempts, j.failures,
               j.progress_step, j.total_steps, r.val_loss, r.val_perplexity, r.val_accuracy,
               r.val_bits_per_byte, r.best_val_perplexity, r.expert_usage_cv, r.aux_loss_last_100,
               r.training_seconds, r.tokens_per_second, r.peak_memory_bytes, j.config_hash
        FROM jobs j JOIN studies s ON s.id = j.study_id LEFT JOIN results r ON r.job_id = j.id
        """
    )
    op.execute(
        """
        CREATE VIEW v_cells AS
        SELECT s.name AS study, j.cell, COUNT(*) AS jobs, COUNT(r.job_id) AS n,
               AVG(r.val_loss) AS mean_val_loss, AVG(r.val_perplexity) AS mean_val_perplexity,
               AVG(r.expert_usage_cv) AS mean_expert_usage_cv, SUM(r.training_seconds) AS training_seconds
        FROM jobs j JOIN studies s ON s.id = j.study_id LEFT JOIN results r ON r.job_id = j.id
        GROUP BY s.id, s.name, j.cell
        """
    )
