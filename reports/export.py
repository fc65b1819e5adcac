"""A study's finished runs as CSV, the published columns first, for pandas and spreadsheets.

Only finished runs are rows: a count of seeds over the file is a count of results. Text that a spreadsheet
would run as a formula is made text.
"""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import sqlalchemy as sa

from reports.aggregate import GB
from reports.frames import choose_study, runs
from reports.study import Study
from reports.tables import plain
from runner.schema import results

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
)
_WHOLE = {column.name for column in results.c if isinstance(column.type, sa.Integer)}
_FORMULA = ("=", "+", "-", "@")


def export_csv(connection: sa.Connection, study: str | None = None) -> str:
    """The finished runs of a study (default: the newest) as CSV, one row a run, in the order of submission.

    Numbers keep every digit; a missing value is empty; 1 GB is 10^9 bytes.

    Raises:
        NoSuchStudy: there is none of that name, or none at all.
    """
    chosen, _ = choose_study(connection, study)
    frame = runs(connection, chosen)
    others = [factor for factor in chosen.factors if factor not in (*PUBLISHED_COLUMNS, *_FURTHER)]
    columns = [*PUBLISHED_COLUMNS, *others, *_FURTHER]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_text(column) for column in columns])
    for run in frame[frame["status"] == "done"].to_dict("records"):
        row = _row(chosen, {str(key): value for key, value in run.items()})
        writer.writerow([_shown(column, row.get(column)) for column in columns])
    return out.getvalue()


def _row(study: Study, run: dict[str, Any]) -> dict[str, Any]:
    """A run under the published names; a factor that does not vary comes from the configuration."""
    routing = run["config"].get("routing", {})
    return {
        "noise_std": routing.get("noise_std"),
        "load_balancing_weight": routing.get("load_balancing_weight"),
        **run,
        "study": study.name,
        "training_time_minutes": run["training_seconds"] / 60,
        "peak_memory_gb": run["peak_memory_bytes"] / GB,
    }


def _shown(column: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        # A frame holds whole numbers as floats where another run lacks them.
        return repr(int(value)) if column in _WHOLE and math.isfinite(value) else repr(value)
    return repr(value) if type(value) is int else _text(value)


def _text(value: Any) -> str:
    # One line, whatever the name holds: a bare carriage return would start a row for some readers.
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
