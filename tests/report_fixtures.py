"""Studies in small databases, a function a state, for the tests of reports/.

The numbers come from formulas, so that a test can compute them again without asking the project.
Rows are written straight into the tables of runner/queue/schema.py: reports/ only reads.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pysqlite3 import dbapi2

from model.program import METRICS
from runner.design.program import load
from runner.queue import schema
from runner.queue.dialects import storable

PUBLISHED_CSV = Path(__file__).parent / "data" / "published_results.csv"
FACTORS: dict[str, list[Any]] = {"noise_std": [0.0, 0.1, 0.5], "load_balancing_weight": [0.01, 0.0]}
SEEDS = (42, 43, 44)
START = 1_700_000_000.0
PROVENANCE = {
    "git_commit": "c0ffee",
    "git_dirty": False,
    "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "device_name": "Test CPU",
    "threads": 2,
    "precision": "fp32",
    "host": "here",
    "numeric_environment": {"blas": "openblas"},
}


@contextmanager
def opened(folder: Path) -> Iterator[sa.Connection]:
    """A connection to a new, empty database."""
    engine = new_database(folder)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def new_database(folder: Path) -> sa.Engine:
    """An empty database with every table and view."""
    engine = sa.create_engine(f"sqlite:///{folder / 'jobs.db'}", module=dbapi2)
    with engine.begin() as connection:
        schema.metadata.create_all(connection)
        connection.execute(sa.insert(schema.meta).values(key="database_id", value="db-1"))
    return engine


def add_study(connection: sa.Connection, name: str = "factorial", **values: Any) -> int:
    """A study's row; `grid` entries override the factorial's, other values are columns."""
    grid = {
        "name": name,
        "question": "Does routing noise help?",
        "factors": FACTORS,
        "seeds": list(SEEDS),
        "primary": "val_loss",
        "baseline": {"noise_std": 0.1, "load_balancing_weight": 0.01},
        "margins": {"val_loss": 0.005},
        "scale": "full",
        **values.pop("grid", {}),
    }
    facts = {"protocol": "sound", "corpus": "bundled", "corpus_id": "a" * 64}
    facts |= {label: values.pop(label) for label in facts if label in values}
    row = {"program": json.dumps(load().record()), "facts": json.dumps(facts), "created_at": START, **values}
    return _insert(connection, schema.studies, {"name": name, "grid": json.dumps(grid), **row})


def add_job(
    connection: sa.Connection,
    study: int,
    cell: dict[str, Any],
    seed: int,
    status: str = "done",
    **values: Any,
) -> int:
    """A job's row in the given state, without attempt or result; `config` replaces the configuration."""
    config = values.pop("config", None) or configuration(cell, seed)
    row: dict[str, Any] = {
        "study_id": study,
        "config": json.dumps(config, sort_keys=True),
        "cell": json.dumps(cell),
        "seed": seed,
        "status": status,
        "attempt": 0 if status == "queued" else 1,
        "total_steps": 400,
        "progress_step": 400 if status == "done" else 0,
        "created_at": START + 1,
        "finished_at": START + 100 if status in ("done", "failed", "cancelled") else None,
        "owner": "w" if status == "running" else None,
        "lease_expires_at": START + 160 if status == "running" else None,
    }
    row |= values
    row["config_hash"] = row.get("config_hash", f"{cell}{seed}{config}")
    return _insert(connection, schema.jobs, row)


def add_attempt(connection: sa.Connection, job: int, number: int = 1, **values: Any) -> None:
    """An attempt's row, done unless told otherwise; `provenance` is a dict or None."""
    row: dict[str, Any] = {
        "job_id": job,
        "number": number,
        "owner": "w",
        "outcome": "done",
        "started_at": START + 10 * number,
        "ended_at": START + 10 * number + 5,
        "host": "here",
        "pid": 1,
        "device": "cpu",
        "provenance": PROVENANCE,
        **values,
    }
    row["provenance"] = json.dumps(row["provenance"]) if row["provenance"] is not None else None
    connection.execute(sa.insert(schema.attempts).values(**row))


def add_result(connection: sa.Connection, job: int, **values: Any) -> None:
    """A result with all measures; values replace them, or the columns of its row; None leaves one out."""
    row = {"attempt": 1, "recorded_at": START + 100 + job, "exact": 1}
    row |= {name: values.pop(name) for name in row if name in values}
    measured: dict[str, Any] = {
        "val_loss": 4.5,
        "val_perplexity": 90.0,
        "val_accuracy": 0.25,
        "val_bits_per_byte": 1.7,
        "best_val_loss": 4.49,
        "best_val_perplexity": 89.0,
        "expert_usage_cv": 0.1,
        "train_loss_last_100": 4.2,
        "aux_loss_last_100": 0.06,
        "unweighted_aux_loss_last_100": 6.1,
        "clipped_share": 0.25,
        "max_grad_norm": 3.5,
        "loss_spikes": 1,
        "train_loss_tail_sd": 0.02,
        "training_seconds": 96.0,
        "tokens_per_second": 51_200.0,
        "peak_memory_bytes": 3_000_000_000,
        "tokens_seen": 4_915_200,
        "unique_tokens": 500_000,
        "parameters_total": 29_507_328,  # 2 layers × 4 experts of 1,179,648, and 20,070,144 outside
        "parameters_active": 24_788_736,
        **values,
    }
    connection.execute(sa.insert(schema.results).values(job_id=job, **row))
    for name, value in measured.items():
        if value is not None:
            connection.execute(sa.insert(schema.measures).values(job_id=job, name=name, **storable(value)))


def add_counts(
    connection: sa.Connection, job: int, counts: list[list[int]], step: int = 400, split: str = "val"
) -> None:
    """Expert counts, a list a layer."""
    rows = [
        {"job_id": job, "step": step, "split": split, "layer": layer, "expert": expert, "tokens": tokens}
        for layer, experts in enumerate(counts)
        for expert, tokens in enumerate(experts)
    ]
    connection.execute(sa.insert(schema.expert_counts), rows)


def add_metric(connection: sa.Connection, job: int, name: str, value: float | None, **where: Any) -> None:
    """One metric row, at the last evaluation unless told otherwise; `nonfinite` marks a missing value."""
    row = {"job_id": job, "step": 400, "split": "val", "name": name, "value": value, **where}
    connection.execute(sa.insert(schema.metrics).values(**row))


def configuration(cell: dict[str, Any], seed: int) -> dict[str, Any]:
    """A RunConfig's shape with two layers of four experts; the cell's factors go under routing."""
    return {
        "model": {
            "d_model": 384,
            "n_layers": 2,
            "n_heads": 8,
            "d_ff": 1536,
            "n_experts": 4,
            "top_k": 2,
            "dropout": 0.1,
            "vocab_size": 49_152,
        },
        "routing": {"noise_std": 0.1, "load_balancing_weight": 0.01, **cell},
        "train": {"steps": 400, "batch_size": 24, "seq_len": 512, "accumulate": 4, "eval_every": 100},
        "data": {"corpus": "bundled", "corpus_id": "a" * 64},
        "protocol": "sound",
        "seed": seed,
    }


def cells(factors: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination of the factors' levels."""
    return [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]


def loss_of(cell: dict[str, Any], seed: int) -> float:
    """A loss with a seed effect, a noise effect, and a little of neither."""
    noise, weight = float(cell["noise_std"]), float(cell["load_balancing_weight"])
    interaction = 0.003 * ((seed * 7 + int(10 * noise)) % 5)
    return 4.5 + 0.01 * (seed - 43) + 0.2 * noise + 0.1 * weight + interaction


def layer_counts(seed: int, layers: int = 2, experts: int = 4) -> list[list[int]]:
    """Counts that lean to opposite experts in even and odd layers."""
    rows = [[100 + 10 * e + seed % 3 for e in range(experts)] for _ in range(layers)]
    return [row[::-1] if layer % 2 else row for layer, row in enumerate(rows)]


def finish(connection: sa.Connection, study: int, cell: dict[str, Any], seed: int, **values: Any) -> int:
    """A finished run with attempt, result and counts, its loss from `loss_of`."""
    loss = loss_of(cell, seed)
    job = add_job(connection, study, cell, seed)
    add_attempt(connection, job)
    measured = {
        "val_loss": loss,
        "val_perplexity": math.exp(loss),
        "best_val_loss": loss - 0.01,
        "best_val_perplexity": math.exp(loss - 0.01),
        "val_accuracy": 0.7 - loss / 10,
        "expert_usage_cv": loss / 40,
    }
    add_result(connection, job, **{**measured, **values})
    add_counts(connection, job, layer_counts(seed))
    return job


def curved_study(connection: sa.Connection, **values: Any) -> int:
    """The finished factorial with losses over steps, counts at two evaluations, and the router's measures."""
    study = finished_study(connection, **values)
    for job in range(1, 19):
        for step in range(100, 500, 100):
            loss = 6.0 - step / 400 + job / 200
            add_metric(connection, job, "loss", loss, step=step, split="train")
            add_metric(connection, job, "loss", loss + 0.1, step=step)
        for number, name in enumerate(("router_entropy", "top1_probability", "noisy_agreement")):
            add_metric(connection, job, name, 0.5 + number / 10 + job / 1000)
            add_metric(connection, job, name, 0.4 + number / 10 + job / 1000, step=200)
        add_counts(connection, job, layer_counts(job), step=200)
        for name, value in (("loss", 4.4), ("perplexity", 81.5), ("accuracy", 0.26), ("bits_per_byte", 1.6)):
            add_metric(connection, job, name, value + job / 1000, split="test")
    return study


def finished_study(connection: sa.Connection, name: str = "factorial", **values: Any) -> int:
    """The factorial with all of its 18 runs done."""
    study = add_study(connection, name, **values)
    for cell in cells(FACTORS):
        for seed in SEEDS:
            finish(connection, study, cell, seed)
    return study


def unfinished_study(connection: sa.Connection) -> int:
    """The factorial under way: one condition misses a seed, one is queued, one failed altogether."""
    study = add_study(connection)
    for number, cell in enumerate(cells(FACTORS)):
        for seed in SEEDS:
            if number == 5:
                job = add_job(connection, study, cell, seed, "failed", failures=1)
                add_attempt(
                    connection, job, outcome="failed", cause="diverged", message="loss is nan", charged=1
                )
            elif number == 4:
                add_job(connection, study, cell, seed, "queued")
            elif number == 3 and seed == 44:
                job = add_job(connection, study, cell, seed, "running", progress_step=120, attempt=2)
                add_attempt(
                    connection, job, 1, outcome="lost", cause="lost", message="lease expired", charged=1
                )
                add_attempt(connection, job, 2, outcome=None, ended_at=None)
            else:
                finish(connection, study, cell, seed)
    return study


def published_study(connection: sa.Connection, **grid: Any) -> int:
    """The 18 published results as an import leaves them: a partial configuration, six values, no attempt.

    `grid` entries are put into the imported study's grid.
    """
    study = add_study(
        connection,
        "published",
        protocol="published",
        corpus="unknown",
        corpus_id="",
        imported_from="published_results.csv",
        grid={"question": "", "baseline": {}, "margins": {}, "scale": "unknown", **grid},
    )
    with PUBLISHED_CSV.open(newline="") as file:
        for row in csv.DictReader(file):
            cell = {name: float(row[name]) for name in FACTORS}
            config = {"routing": cell, "seed": int(row["seed"])}
            job = add_job(connection, study, cell, int(row["seed"]), attempt=0, total_steps=0, config=config)
            names = ("val_loss", "val_accuracy", "val_perplexity", "best_val_perplexity", "expert_usage_cv")
            given = {name: float(row[name]) for name in names}
            given |= {"training_seconds": 60 * float(row["training_time_minutes"])}
            empty = dict.fromkeys(METRICS)
            add_result(connection, job, **{**empty, **given, "attempt": 0, "exact": 0})
    return study


def _insert(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> int:
    return int(connection.execute(sa.insert(table).values(**row).returning(table.c.id)).scalar_one())
