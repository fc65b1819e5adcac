"""A study's runs, metrics or counts as CSV, Parquet or JSON, for pandas, R and spreadsheets.

Only finished runs are rows of `runs`: a count of seeds over the file is a count of results. The test split
stays sealed until it is revealed. Text that a spreadsheet would run as a formula is made text in CSV.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
import sqlalchemy as sa

from reports.reading.frames import choose_study, runs
from reports.reading.measures import SOUGHT
from reports.reading.study import Study
from reports.sections.costs import GB
from reports.tables import plain
from runner.queue.schema import expert_counts, jobs, metrics

FORMATS = ("csv", "parquet", "json")
PUBLISHED_COLUMNS = (
    *("seed", "noise_std", "load_balancing_weight", "val_loss", "val_accuracy", "val_perplexity"),
    *("training_time_minutes", "peak_memory_gb", "best_val_perplexity", "expert_usage_cv"),
)
_FURTHER = (
    *("study", "job_id", "config_hash", "exact", "recorded_at", "val_bits_per_byte", "best_val_loss"),
    *("expert_usage_cv_layer_mean", "expert_usage_cv_layer_sd", "expert_usage_cv_layer_max"),
    *("train_loss_last_100", "aux_loss_last_100", "unweighted_aux_loss_last_100", "clipped_share"),
    *("max_grad_norm", "loss_spikes", "steps_to_loss", "train_loss_tail_sd", "training_seconds"),
    *("evaluation_seconds", "compile_seconds", "waiting_seconds", "tokens_per_second"),
    *("peak_memory_bytes", "tokens_seen", "unique_tokens", "parameters_total", "parameters_active"),
    *("protocol", "corpus", "corpus_id", "grid", "cell", "config"),
)
"""The last six, and config_hash, are what `import` needs to bring the study back whole."""
_GRID = ("question", "levels", "scale", "primary", "baseline", "margins", "repeats")
"""What of the design is in no run. Claims are not among it: in a file nothing is declared before the runs."""
_CONVERTED = {"training_time_minutes": "training_seconds", "peak_memory_gb": "peak_memory_bytes"}
_OF_CONFIGURATION = ("noise_std", "load_balancing_weight")
_OF_TEXT = ("protocol", "corpus", "corpus_id")
_FORMULA = ("=", "+", "-", "@")

Rows = tuple[list[str], Iterable[list[Any]]]
"""Column names, and a list of values a row; None where there is none."""


def _whole(study: Study) -> set[str]:
    """Columns of whole numbers, where a frame may hold floats."""
    return {"exact", *(name for name, measure in study.measures.items() if measure.decimals == 0)}


def export(
    connection: sa.Connection, study: str | None = None, table: str = "runs", format: str = "csv"
) -> bytes:
    """A table of a study (default: the newest): `runs`, `metrics` or `counts`, in the order of submission.

    Numbers keep every digit; a missing value is empty in CSV and null elsewhere; 1 GB is 10^9 bytes. JSON is
    a list of objects, a row each, as `pandas.read_json` reads it.
    """
    chosen, _ = choose_study(connection, study)
    read = {"runs": _runs, "metrics": _metrics, "counts": _counts}[table]
    columns, rows = read(connection, chosen)
    if format == "parquet":
        return _parquet(columns, rows, _whole(chosen))
    return {"csv": _csv, "json": _json}[format](columns, rows)


# --- the tables -------------------------------------------------------------------------------------------


def _runs(connection: sa.Connection, study: Study) -> Rows:
    frame = runs(connection, study)
    given = dict(
        connection.execute(sa.select(jobs.c.id, jobs.c.cell).where(jobs.c.study_id == study.id)).all()
    )
    others = [
        name for name in (*study.factors, *study.measures) if name not in (*PUBLISHED_COLUMNS, *_FURTHER)
    ]
    without = _not_of(study)
    columns = [name for name in (*PUBLISHED_COLUMNS, *others, *_FURTHER) if name not in without]
    found, whole = [], _whole(study)
    for run in frame[frame["status"] == "done"].to_dict("records"):
        row = _row(study, {str(key): value for key, value in run.items()})
        row["cell"] = given[row["job_id"]]
        found.append([_value(row.get(column), column in whole) for column in columns])
    return columns, found


def _not_of(study: Study) -> set[str]:
    """The columns that the study's program has nothing for."""
    absent = {name for name in SOUGHT if name not in study.measures}
    absent |= {theirs for theirs, ours in _CONVERTED.items() if ours in absent}
    keys = {key.rpartition(".")[2] for key in study.program.get("keys", {})} | set(study.factors)
    absent |= {name for name in _OF_CONFIGURATION if keys and name not in keys}
    return absent | (set() if study.has_text else set(_OF_TEXT))


def _row(study: Study, run: dict[str, Any]) -> dict[str, Any]:
    """A run under the published names; a factor that does not vary comes from the configuration."""
    routing = run["config"].get("routing", {})
    return {
        "noise_std": routing.get("noise_std"),
        "load_balancing_weight": routing.get("load_balancing_weight"),
        **run,
        "study": study.name,
        "protocol": study.protocol,
        "corpus": study.corpus,
        "corpus_id": study.corpus_id,
        "grid": json.dumps({key: study.grid[key] for key in _GRID if key in study.grid}),
        "config": json.dumps(run["config"]),
        "training_time_minutes": run["training_seconds"] / 60,
        "peak_memory_gb": run["peak_memory_bytes"] / GB,
    }


def _value(value: Any, whole: bool) -> Any:
    """A whole number as one: a frame holds it as a float where another run lacks it. NaN is no value."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return int(value) if whole and isinstance(value, float) and value.is_integer() else value


def _metrics(connection: sa.Connection, study: Study) -> Rows:
    return _of_jobs(connection, study, metrics, ("step", "split", "name", "value", "nonfinite"))


def _counts(connection: sa.Connection, study: Study) -> Rows:
    return _of_jobs(connection, study, expert_counts, ("step", "split", "layer", "expert", "tokens"))


def _of_jobs(connection: sa.Connection, study: Study, table: sa.Table, columns: tuple[str, ...]) -> Rows:
    """Rows of a table with the job, its seed and its factors; the sealed test split is not among them."""
    factors = [factor for factor in study.factors if factor not in ("job_id", "seed", *columns)]
    own = [table.c[name] for name in columns]
    statement = (
        sa.select(jobs.c.id, jobs.c.seed, jobs.c.cell, *own)
        .join(jobs, jobs.c.id == table.c.job_id)
        .where(jobs.c.study_id == study.id)
        .order_by(*table.primary_key.columns)
    )
    if study.test_revealed_at is None:
        statement = statement.where(table.c.split != "test")
    cells: dict[str, list[Any]] = {}

    def levels(cell: str) -> list[Any]:
        if cell not in cells:
            values = json.loads(cell)
            cells[cell] = [values.get(factor) for factor in factors]
        return cells[cell]

    rows = ([row[0], row[1], *levels(row[2]), *row[3:]] for row in connection.execute(statement))
    return ["job_id", "seed", *factors, *columns], rows


# --- the formats ------------------------------------------------------------------------------------------


def _csv(columns: list[str], rows: Iterable[list[Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_text(column) for column in columns])
    for row in rows:
        writer.writerow([_shown(value) for value in row])
    return out.getvalue().encode()


def _parquet(columns: list[str], rows: Iterable[list[Any]], whole: set[str]) -> bytes:
    frame = pd.DataFrame(list(rows), columns=columns, dtype=object)
    frame = frame.astype({column: _dtype(frame[column], column in whole) for column in columns})
    out = io.BytesIO()
    import pyarrow  # type: ignore[import-untyped]  # noqa: F401  pandas would not name what is missing

    frame.to_parquet(out, index=False)
    return out.getvalue()


def _dtype(values: pd.Series[Any], whole: bool) -> str:
    """A type that knows a missing value: whole numbers stay whole where one run lacks them."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int} or (not kinds and whole):
        return "Int64"
    return "Float64" if kinds <= {int, float} else "string"


def _json(columns: list[str], rows: Iterable[list[Any]]) -> bytes:
    objects = [dict(zip(columns, map(_finite, row), strict=True)) for row in rows]
    return (json.dumps(objects, indent=1, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    """JSON has no infinity: it is named."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) or type(value) is int else _text(value)


def _text(value: Any) -> str:
    # One line, whatever the name holds: a bare carriage return would start a row for some readers.
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
