"""A run on its own: what became of it, its curves, and the end of its log, for the page.

The log is a file of the run folder; it is read where it is still there, and only inside that folder: a path
in a database is not to be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from reports.figures import style
from reports.figures.layout import MAX_RUNS, Curves, chosen_runs
from reports.figures.panels import by_step, capital, of_series, styled
from reports.reading.frames import StudyData
from reports.reading.measures import LOAD
from reports.tables import DASH, Picture, instant, minutes, number, plain, whole

LOG_LINES, LOG_BYTES = 30, 16_384


@dataclass(frozen=True)
class RunPage:
    """One run: a line, labelled facts, a figure where it has curves, the last lines of its log."""

    job: int
    title: str
    facts: tuple[tuple[str, str], ...]
    picture: Picture | None
    log: str
    remark: str


def run_pages(curves: Curves, data: StudyData, runs_dir: Path) -> list[RunPage]:
    """A page for each of `chosen_runs`, in the order of submission."""
    jobs = set(chosen_runs(data))
    remark = ""
    if len(data.runs) > MAX_RUNS:
        remark = f"{MAX_RUNS} of {len(data.runs)} runs, those without a result first."
    last = data.attempts.drop_duplicates("job_id", keep="last").set_index("job_id")
    return [
        _page(data, run, last, curves, runs_dir / data.database_id, remark)
        for run in data.runs.to_dict("records")
        if run["job_id"] in jobs
    ]


def log_tail(folder: Path, log_path: object) -> str:
    """The last lines of a log inside the run folder; empty where there is none, or none to be read."""
    if not isinstance(log_path, str) or "\0" in log_path:
        return ""
    try:
        path = (folder / log_path).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            content = file.read(LOG_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(content.splitlines()[-LOG_LINES:])


def _page(
    data: StudyData,
    run: Mapping[Any, Any],
    last: pd.DataFrame,
    curves: Curves,
    folder: Path,
    remark: str,
) -> RunPage:
    job = int(run["job_id"])
    attempt = {str(k): v for k, v in last.loc[job].items()} if job in last.index else {}
    label = f"{data.study.label(run['cell'])}, seed {run['seed']}"
    outcome = data.study.measure(data.study.outcome)
    result = ""
    if run["status"] == "done":
        result = f": {outcome.label.lower()} {number(run[outcome.column], outcome.decimals)}"
    return RunPage(
        job,
        f"Run {job}: {label} – {run['status']}{result}",
        _facts(data, run, attempt),
        _picture(data, job, curves),
        log_tail(folder, attempt.get("log_path")),
        remark,
    )


def _facts(
    data: StudyData, run: Mapping[Any, Any], attempt: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    told = [
        ("Status", f"{run['status']}, step {whole(run['progress_step'])} of {whole(run['total_steps'])}"),
        ("Configuration", str(run["config_hash"])[:16]),
        ("Attempts", f"{run['attempt']}, {run['failures']} charged"),
    ]
    if attempt:
        resumed = attempt["resumed_from_step"]
        start = f", resumed from step {whole(resumed)}" if resumed > 0 else ""  # NaN is not
        ended = f"{attempt['outcome'] or 'running'}, {instant(attempt['started_at'])}{start}"
        told.append(("Last attempt", f"{ended}, on {attempt['device']} of {attempt['host']}"))
        if attempt["cause"]:
            told.append(("Cause", f"{attempt['cause']}: {attempt['message'] or DASH}"))
    if run["status"] == "done":
        told += [(m.label, number(run[m.column], m.decimals)) for m in data.study.results]
        if LOAD in data.study.measures:
            told.append((data.study.measure(LOAD).label, number(run[LOAD], 4)))
        if "training_seconds" in data.study.measures:
            speed = whole(run["tokens_per_second"])
            told.append(("Training", f"{_minutes(run['training_seconds'])} min, {speed} tokens/s"))
    return tuple(told)


def _minutes(seconds: float) -> str:
    return DASH if math.isnan(seconds) else minutes(seconds)


def _picture(data: StudyData, job: int, curves: Curves) -> Picture | None:
    train, held_out = (found[found["job_id"] == job] for found in (curves.train, curves.held_out))
    if train.empty and held_out.empty:
        return None
    measure = of_series(data.study, held_out if train.empty else train)
    if not train.empty and of_series(data.study, held_out).column != measure.column:
        held_out = held_out[:0]  # another series: it would want an axis of its own
    label, unit = capital(plain(measure.label)), plain(measure.unit)

    def draw() -> Figure:
        # Fixed margins: a settled layout takes ten times as long, and there may be sixty of these.
        figure = Figure(figsize=(style.WIDTH * 0.75, 2.3))
        axes = figure.add_axes((0.11, 0.2, 0.87, 0.74))
        steps, values = by_step(train, [job])
        style.run_curves(axes, (steps, values[0]), by_step(held_out, [job]))
        axes.set_xlabel("Step")
        axes.set_ylabel(f"{label} ({unit})" if unit else label)
        return figure

    told = plain(measure.label)
    kinds = [
        *([] if train.empty else [f"training {told} of each update (line)"]),
        *([] if held_out.empty else [f"held-out {told} of each evaluation (points)"]),
    ]
    caption = f"{capital(' and '.join(kinds))}."
    return Picture(f"run-{job}", f"{label} of run {job} over steps.", caption, styled(draw, settle=False))
