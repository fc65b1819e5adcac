"""`export --to PROGRAM WHERE`: the series for TensorBoard, MLflow or W&B, by the program's own writer.

One run a job, named by its cell. Each program is an optional extra; the test split stays sealed.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reports.reading.frames import choose_study, runs
from reports.reading.study import Study
from runner.queue.schema import metrics
from runner.queue.where import written

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}
_AT_ONCE = 1_000
"""Metrics that an MLflow server takes in one request."""


class ExtraMissing(Exception):
    """An optional package is not installed; the message has the command that installs it."""

    exit_code = 69


class NotTaken(Exception):
    """The program did not take the runs; the message says why, in one line."""

    exit_code = 73


@dataclass(frozen=True)
class Run:
    """What a job has for another program."""

    name: str
    done: bool
    config: dict[str, Any]
    """Dotted keys, the seed among them."""
    results: dict[str, float]
    series: list[tuple[str, int, float]]
    """(split/name, step, value), by tag and step; values that are not numbers are left out."""


def export_to(connection: sa.Connection, program: str, where: str, study: str | None = None) -> int:
    """Write every series of a study (default: the newest); returns how many values were written.

    Args:
        program: tensorboard, mlflow or wandb.
        where: a folder; for MLflow also a tracking URI, as http://… or sqlite:///….

    Raises:
        ExtraMissing: the program's package is not installed.
        NotTaken: it refused what it was given.
    """
    write = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}[program]
    module = _module({"tensorboard": "tensorboard.summary"}.get(program, program), program)
    chosen, _ = choose_study(connection, study)
    count = 0
    for run in _runs(connection, chosen):
        try:
            write(module, where, chosen.name, run)
        except OSError:
            raise
        except Exception as error:  # whatever a foreign library raises; its reason is passed on
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise NotTaken(f"--to {program} {where}: {reason}") from error
        count += len(run.series)
    if program == "wandb":
        module.teardown()  # its background process writes what it holds only as it ends
    return count


def _runs(connection: sa.Connection, study: Study) -> Iterator[Run]:
    """The jobs that have a series, in the order of submission."""
    splits = ("train", "val") if study.test_revealed_at is None else ("train", "val", "test")
    for job in runs(connection, study).to_dict("records"):
        rows = connection.execute(
            sa.select(metrics.c.split, metrics.c.name, metrics.c.step, metrics.c.value)
            .where(metrics.c.job_id == job["job_id"], metrics.c.split.in_(splits))
            .where(metrics.c.value.is_not(None))
            .order_by(metrics.c.split, metrics.c.name, metrics.c.step)
        ).all()
        if not rows:
            continue
        cell = written(study.values(job["cell"]), ",")
        safe = re.sub(r"[^\w.,=+-]", "_", f"{cell},seed={job['seed']}")[:120]
        yield Run(
            name=f"job-{job['job_id']},{safe}",
            done=job["status"] == "done",
            config=_flat(job["config"]),
            results={
                name: job[name]
                for name in study.measures
                if isinstance(job[name], int | float) and math.isfinite(job[name])
            },
            series=[(f"{row.split}/{row.name}", row.step, row.value) for row in rows],
        )


def _tensorboard(summary: Any, folder: str, study: str, run: Run) -> None:
    writer = summary.Writer(str(Path(folder) / study / run.name))
    for tag, step, value in run.series:
        writer.add_scalar(tag, value, step)
    writer.close()


def _mlflow(mlflow: Any, where: str, study: str, run: Run) -> None:
    """A run of the experiment named like the study, in a folder of MLflow's file store or at a server."""
    from mlflow.entities import Metric, Param

    if "://" not in where:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # asked of whoever still wants folders
        where = Path(where).resolve().as_uri()
    client = mlflow.tracking.MlflowClient(tracking_uri=where)
    experiment = client.get_experiment_by_name(study)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(study)
    run_id = client.create_run(experiment_id, run_name=run.name).info.run_id
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in run.config.items()])
    last = max(step for _, step, _ in run.series)
    values = [Metric(tag, value, 0, step) for tag, step, value in run.series]
    values += [Metric(name, float(value), 0, last) for name, value in run.results.items()]
    for first in range(0, len(values), _AT_ONCE):
        client.log_batch(run_id, metrics=values[first : first + _AT_ONCE])
    client.set_terminated(run_id, "FINISHED" if run.done else "FAILED")


def _wandb(wandb: Any, folder: str, study: str, run: Run) -> None:
    """An offline run folder, which `wandb sync` uploads; nothing of this machine is put into it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    quiet = {"silent": True, "console": "off", "disable_git": True, "save_code": False, "program": study}
    private = {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False, "host": ""}
    settings = wandb.Settings(**quiet, **private)
    options = {"project": "nightshift", "group": study, "name": run.name, "config": run.config}
    open_run = wandb.init(mode="offline", dir=folder, settings=settings, reinit="create_new", **options)
    by_step: dict[int, dict[str, float]] = {}
    for tag, step, value in run.series:
        by_step.setdefault(step, {})[tag] = value
    for step in sorted(by_step):
        open_run.log(by_step[step], step=step)
    open_run.summary.update(run.results)
    open_run.finish(exit_code=0 if run.done else 1)


def _module(name: str, program: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = PACKAGES[program]
        raise ExtraMissing(
            f"--to {program}: {package} is not installed; pip install {package}, then try again"
        ) from error


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
