"""`export --to tensorboard DIR`: the recorded series as event files, by TensorBoard's own writer.

One run folder a job, named by its cell. TensorBoard is an optional extra; the test split stays sealed.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reports.reading.frames import choose_study
from runner.queue.schema import jobs, metrics


class ExtraMissing(Exception):
    """An optional package is not installed; the message has the command that installs it."""

    exit_code = 69


def export_tensorboard(connection: sa.Connection, folder: Path, study: str | None = None) -> int:
    """Write every series of a study (default: the newest); returns how many values were written.

    A tag is split/name, as in train/loss; values that are not numbers are left out.

    Raises:
        ExtraMissing: TensorBoard is not installed.
        NoSuchStudy: there is none of that name, or none at all.
    """
    writer_of = _writer()
    chosen, _ = choose_study(connection, study)
    listed = sa.select(jobs.c.id, jobs.c.cell, jobs.c.seed).where(jobs.c.study_id == chosen.id)
    splits = ("train", "val") if chosen.test_revealed_at is None else ("train", "val", "test")
    count = 0
    for job in connection.execute(listed.order_by(jobs.c.id)).all():
        rows = connection.execute(
            sa.select(metrics.c.split, metrics.c.name, metrics.c.step, metrics.c.value)
            .where(metrics.c.job_id == job.id, metrics.c.split.in_(splits), metrics.c.value.is_not(None))
            .order_by(metrics.c.split, metrics.c.name, metrics.c.step)
        ).all()
        if not rows:
            continue
        writer = writer_of(str(folder / chosen.name / _run_name(job)))
        for row in rows:
            writer.add_scalar(f"{row.split}/{row.name}", row.value, row.step)
        writer.close()
        count += len(rows)
    return count


def _writer() -> Any:
    try:
        return importlib.import_module("tensorboard.summary").Writer
    except ImportError as error:
        raise ExtraMissing(
            "--to tensorboard: TensorBoard is not installed; pip install tensorboard, then try again"
        ) from error


def _run_name(job: Any) -> str:
    cell = ",".join(f"{name}={value}" for name, value in json.loads(job.cell).items())
    safe = re.sub(r"[^\w.,=+-]", "_", f"{cell},seed={job.seed}")[:120]
    return f"job-{job.id},{safe}"
