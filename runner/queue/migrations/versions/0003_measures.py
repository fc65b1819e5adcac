"""A result's measures become rows, and a study says which program made them: any program may bring its own.

The wide row of `results` was the language model's. What it held and what it meant is written out here, as it
was; the columns protocol, corpus and corpus_id of `studies` become its facts.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NUMBER: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
WHOLE: sa.types.TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT: sa.types.TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NATS = "nats per token"
MEASURES = (  # name, which way is better, unit, decimals
    ("val_loss", "lower", NATS, 4),
    ("val_perplexity", "lower", "", 2),
    ("val_accuracy", "higher", "share of tokens", 4),
    ("val_bits_per_byte", "lower", "bits per byte", 4),
    ("best_val_loss", "lower", NATS, 4),
    ("best_val_perplexity", "lower", "", 2),
    ("expert_usage_cv", "none", "", 4),
    ("expert_usage_cv_layer_mean", "none", "", 4),
    ("expert_usage_cv_layer_sd", "none", "", 4),
    ("expert_usage_cv_layer_max", "none", "", 4),
    ("train_loss_last_100", "lower", NATS, 4),
    ("aux_loss_last_100", "none", NATS, 5),
    ("unweighted_aux_loss_last_100", "none", NATS, 4),
    ("clipped_share", "none", "share of updates", 4),
    ("max_grad_norm", "none", "", 4),
    ("loss_spikes", "lower", "updates", 0),
    ("steps_to_loss", "lower", "steps", 0),
    ("train_loss_tail_sd", "none", NATS, 4),
    ("training_seconds", "lower", "seconds", 1),
    ("evaluation_seconds", "lower", "seconds", 1),
    ("compile_seconds", "lower", "seconds", 1),
    ("waiting_seconds", "lower", "seconds", 1),
    ("tokens_per_second", "higher", "tokens per second", 1),
    ("peak_memory_bytes", "lower", "bytes", 0),
    ("tokens_seen", "none", "tokens", 0),
    ("unique_tokens", "none", "tokens", 0),
    ("parameters_total", "none", "parameters", 0),
    ("parameters_active", "none", "parameters", 0),
)
EXPONENTIAL = ("val_loss", "best_val_loss", "train_loss_last_100")
KEYS = {
    "int": (
        *("model.d_model", "model.n_layers", "model.n_heads", "model.d_ff", "model.n_experts"),
        *("model.top_k", "model.vocab_size", "train.steps", "train.batch_size", "train.micro_batch"),
        *("train.seq_len", "train.accumulate", "train.eval_every", "data.documents"),
        *("data.document_characters", "data.tokens", "data.held_out_tokens", "seed", "repeat"),
    ),
    "float": (
        *("model.dropout", "routing.noise_std", "routing.load_balancing_weight", "routing.z_loss_weight"),
        *("routing.bias_rate", "train.muon_lr", "train.muon_momentum", "train.weight_decay"),
        *("train.grad_clip", "train.target_loss"),
    ),
    "str": (
        *("routing.noise", "routing.balance", "train.precision", "train.engine", "data.corpus"),
        *("data.corpus_id", "data.tokenizer", "data.tokenizer_id", "data.text_column", "protocol"),
    ),
}
OF_STUDY = ("protocol", "corpus", "corpus_id")


def upgrade() -> None:
    op.create_table(
        "measures",
        sa.Column("job_id", WHOLE, sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("value", NUMBER),
        sa.Column("nonfinite", TEXT),
        sa.CheckConstraint("(value IS NULL) = (nonfinite IS NOT NULL)", name="null_says_why"),
        sa.CheckConstraint("nonfinite IN ('nan', 'inf', '-inf')", name="known_nonfinite"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    _measures_of_results()
    _studies()


def _measures_of_results() -> None:
    """NULL was no value (SQLite had made it of NaN, too); an infinity is named."""
    most = 1.7976931348623157e308
    for name, *_ in MEASURES:
        number = f"CAST({name} AS {'REAL' if op.get_bind().dialect.name == 'sqlite' else 'DOUBLE PRECISION'})"
        finite = f"{name} BETWEEN -{most} AND {most}"
        infinite = f"CASE WHEN {name} > {most} THEN 'inf' ELSE '-inf' END"
        op.execute(
            "INSERT INTO measures (job_id, name, value, nonfinite)"
            f" SELECT job_id, '{name}', CASE WHEN {finite} THEN {number} END,"
            f" CASE WHEN {finite} THEN NULL ELSE {infinite} END FROM results WHERE {name} IS NOT NULL"
        )
    for name, *_ in MEASURES:
        op.drop_column("results", name)


def _studies() -> None:
    for name in ("program", "facts"):
        op.add_column("studies", sa.Column(name, TEXT, nullable=False, server_default="{}"))
    measures = [
        {
            "name": name,
            "better": better,
            "unit": unit,
            "decimals": decimals,
            "exponential": name in EXPONENTIAL,
        }
        for name, better, unit, decimals in MEASURES
    ]
    keys = {key: kind for kind, names in KEYS.items() for key in names}
    told: dict[str, object] = {"path": "model/program.py", "hash": "", "measures": measures, "keys": keys}
    told |= {"sized": True, "identity": True, "warm": True, "stalled_seconds": None}
    program = json.dumps(told)
    rows = op.get_bind().execute(sa.text(f"SELECT id, {', '.join(OF_STUDY)} FROM studies")).mappings().all()
    for row in rows:
        facts = json.dumps({name: row[name] for name in OF_STUDY})
        changed = sa.text("UPDATE studies SET program = :program, facts = :facts WHERE id = :id")
        op.get_bind().execute(changed, {"program": program, "facts": facts, "id": row["id"]})
    for name in OF_STUDY:
        op.drop_column("studies", name)
