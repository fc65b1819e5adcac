"""What the study cost and what went wrong on the way: runs and attempts without a result, timings.

Times are of the runs that finished, from `results`, the attempts that they were resumed from included; what
others took is the price of failures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.reading.frames import StudyData
from reports.reading.rows import recorded
from reports.reading.study import Cell
from reports.statistics.analysis import Analysis
from reports.statistics.inference import finite
from reports.tables import (
    DASH,
    Section,
    Table,
    condition,
    done_of_all,
    mean,
    minutes,
    number,
    whole,
)

CLOCKS = ("training_seconds", "evaluation_seconds", "compile_seconds", "waiting_seconds")
_SHOWN = 30
GB = 1e9
"""Bytes in a GB, here and in the exported CSV."""


def seconds_a_seed(data: StudyData) -> float:
    """Seconds of one device for all conditions with one seed; 0 where none was timed."""
    done = data.done
    seconds = sum(float(done[clock].sum()) for clock in CLOCKS if clock in done)
    return len(data.cells) * seconds / max(1, len(done))


def timings(analysis: Analysis) -> Section:
    """One row a condition: minutes a run by phase, speed, and what all its runs took together."""
    data = analysis.data
    if data.done.empty or not recorded(data.done, CLOCKS):
        return Section("Timings and cost", ("No times are recorded for this study.",))
    columns = (
        *data.study.factors,
        *("n", "Training (min)", "Evaluation (min)", "Compiling (min)", "Waiting (min)"),
        *("Tokens/s", "Slowest tokens/s", "Hours in all", "Peak memory (GB)"),
    )
    hours = sum(_total(data.done[clock]) for clock in CLOCKS) / 3600
    lost = _lost_seconds(data) / 3600
    return Section(
        "Timings and cost",
        (
            f"{number(hours, 2)} hours of device time for the {len(data.done)} finished runs; attempts that "
            f"no result goes back to took {number(lost, 2)} hours more.",
        ),
        (Table(columns, tuple(_row(data, cell) for cell in data.cells)),),
        (
            "Minutes are means a run. Compiling is the first step of each process, waiting is data, start-up "
            "and checkpoints. Tokens/s is of training steps alone. Peak memory is the largest of the "
            "condition, in 10^9 bytes.",
        ),
    )


def failures(analysis: Analysis) -> Section:
    """How attempts ended that left no result, by outcome and cause."""
    data = analysis.data
    heading = "Failures and retries"
    if data.attempts.empty:
        return Section(heading, ("No attempts are recorded for this study.",))
    ended = data.attempts.dropna(subset=["outcome"])
    unfinished = ended[ended["outcome"] != "done"]
    retried = int((data.done["result_attempt"] > 1).sum())
    text = (
        f"{len(data.attempts)} attempts at {len(data.runs)} runs; {retried} of {len(data.done)} finished "
        "runs needed more than one.",
    )
    if unfinished.empty:
        return Section(heading, (*text, "Every attempt that has ended left a result."))
    groups = unfinished.assign(cause=unfinished["cause"].fillna(DASH)).groupby(["outcome", "cause"])
    rows = tuple(_failure(str(names[0]), str(names[1]), rows) for names, rows in groups)
    columns = ("Outcome", "Cause", "Attempts", "Runs", "Charged", "Minutes", "Last message")
    return Section(
        heading,
        text,
        (Table(columns, rows[:_SHOWN], "llrrrrl"),),
        (
            "Charged attempts count against a run's limit; a preemption, a release and a broken device do "
            "not. Minutes are of these attempts together.",
        ),
    )


def missing(analysis: Analysis) -> Section | None:
    """The runs without a result, failed ones first, each with the cause of its last attempt that has one."""
    data = analysis.data
    runs = data.runs[data.runs["status"] != "done"]
    if runs.empty:
        return None
    told = data.last_causes
    order = {status: rank for rank, status in enumerate(("failed", "cancelled", "running", "queued"))}
    rows = [
        (
            *(str(run["job_id"]), data.study.label(run["cell"]), str(run["seed"])),
            run["status"] + (" (held)" if run["held"] else ""),
            *(str(run["attempt"]), f"{whole(run['progress_step'])} of {whole(run['total_steps'])}"),
            *_cause(told.loc[run["job_id"]] if run["job_id"] in told.index else {}),
        )
        for run in sorted(runs.to_dict("records"), key=lambda run: (order[run["status"]], run["job_id"]))
    ]
    columns = ("Job", "Condition", "Seed", "Status", "Attempts", "Step", "Last cause", "Message")
    more = len(rows) - _SHOWN
    return Section(
        "Runs without a result",
        tables=(Table(columns, tuple(rows[:_SHOWN]), "rlrlrrll"),),
        notes=(f"And {more} more.",) if more > 0 else (),
    )


def _row(data: StudyData, cell: Cell) -> tuple[str, ...]:
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"]
    speed = finite(done["tokens_per_second"])
    total = sum(_total(done[clock]) for clock in CLOCKS)
    return (
        *condition(cell),
        done_of_all(runs),
        *(mean(done[clock], minutes) for clock in CLOCKS),
        whole(float(speed.mean())) if speed.size else DASH,
        whole(float(speed.min())) if speed.size else DASH,
        number(total / 3600, 2) if len(done) else DASH,
        number(done["peak_memory_bytes"].max() / GB, 2),
    )


def _total(seconds: pd.Series) -> float:
    return float(np.sum(finite(seconds)))


def _failure(outcome: str, cause: str, rows: pd.DataFrame) -> tuple[str, ...]:
    messages = rows["message"].dropna()
    return (
        *(outcome, cause, str(len(rows)), str(rows["job_id"].nunique()), str(int(rows["charged"].sum()))),
        minutes(_total(rows["ended_at"] - rows["started_at"])),
        str(messages.iloc[-1]) if len(messages) else DASH,
    )


def _lost_seconds(data: StudyData) -> float:
    ended = data.attempts[data.attempts["wasted"].astype(bool)]
    seconds = _total(ended["ended_at"] - ended["started_at"])
    return seconds if math.isfinite(seconds) else 0.0


def _cause(attempt: Mapping[str, Any]) -> tuple[str, str]:
    return attempt.get("cause") or DASH, attempt.get("message") or DASH
