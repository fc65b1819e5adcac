"""The noise floor: runs of one configuration and one seed, and how far apart they came out.

A grid with `repeats` makes such runs. Where they agree in every bit, a difference between conditions is the
conditions'; where they do not, a difference below the floor means nothing. Who shows it:
reports/output/report.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.reading.frames import StudyData
from reports.reading.measures import ACCURACY, LOAD, LOSS, PERPLEXITY, Measure
from reports.reading.study import Cell
from reports.tables import Section, Table
from runner.queue.schema import results

MEASURES: tuple[Measure, ...] = (LOSS, PERPLEXITY, ACCURACY, LOAD)
_OF_THE_MACHINE = ("seconds", "tokens_per_second", "peak_memory")
"""Parts of the names of what may differ between two equal runs: times, speeds, memory."""
COMPARED = tuple(
    column.name
    for column in results.c
    if column.name not in ("job_id", "attempt", "recorded_at", "exact")
    and not any(part in column.name for part in _OF_THE_MACHINE)
)


@dataclass(frozen=True)
class Floor:
    """The finished repeats of one condition and seed; there are at least two."""

    cell: Cell
    seed: int
    runs: pd.DataFrame
    equal: bool
    """Every recorded result, and every expert's tokens at every evaluation, agree in every bit."""

    def spread(self, column: str) -> float:
        """Greatest minus least value of a measure over the repeats; NaN where none was recorded."""
        values = self.runs[column].dropna()
        return float(values.max() - values.min()) if len(values) else float("nan")


def floors(data: StudyData) -> list[Floor]:
    """One for each condition and seed that has several finished runs of one configuration."""
    found: list[Floor] = []
    done = data.done.assign(kind=[_kind(config) for config in data.done["config"]])
    for cell in data.cells:
        of_cell = done[pd.Series([each == cell for each in done["cell"]], index=done.index, dtype=bool)]
        for _, runs in of_cell.groupby(["seed", "kind"], sort=True):
            if len(runs) > 1:
                found.append(Floor(cell, int(runs["seed"].iloc[0]), runs, _equal(data, runs)))
    return found


def noise_floor(data: StudyData) -> Section | None:
    """The section; None for a study without repeats."""
    measured = floors(data)
    if not measured:
        return None
    rows = tuple(
        (
            data.study.label(floor.cell),
            str(floor.seed),
            str(len(floor.runs)),
            "yes" if floor.equal else "no",
            *(f"{floor.spread(measure.column):.3g}" for measure in MEASURES),
        )
        for floor in measured
    )
    columns = ("condition", "seed", "runs", "bitwise equal", *(measure.label for measure in MEASURES))
    return Section(
        "Noise floor",
        text=(_verdict(measured, LOSS),),
        tables=(Table(columns, rows, align="lrrl" + "r" * len(MEASURES)),),
        notes=(
            "A value is the greatest minus the least over the runs of one configuration and one seed; "
            "nothing was changed between them. Times, speeds and memory are not compared.",
            "In the tables below each repeat counts as a run: n and ± are then of runs, not of seeds.",
        ),
    )


def _verdict(measured: list[Floor], measure: Measure) -> str:
    count = sum(len(floor.runs) for floor in measured)
    if all(floor.equal for floor in measured):
        return f"All {count} repeated runs are bitwise equal: the noise floor is zero."
    widest = max(floor.spread(measure.column) for floor in measured)
    return (
        f"The {count} repeated runs are not bitwise equal. They lie up to {widest:.3g} {measure.unit} apart "
        f"in {measure.label.lower()}: a difference between conditions below that means nothing."
    )


def _kind(config: dict[str, object]) -> str:
    """The configuration without its repeat: equal for runs that should be equal."""
    return repr(sorted((key, value) for key, value in config.items() if key != "repeat"))


def _equal(data: StudyData, runs: pd.DataFrame) -> bool:
    values = runs[[name for name in COMPARED if name in runs]].to_numpy(dtype=float)
    if not np.array_equal(values, np.broadcast_to(values[:1], values.shape), equal_nan=True):
        return False
    order = ["step", "split", "layer", "expert"]
    columns = [name for name in (*order, "tokens") if name in data.counts]
    tables = [
        data.counts[data.counts["job_id"] == job][columns]
        .sort_values([name for name in order if name in columns])
        .reset_index(drop=True)
        for job in runs["job_id"]
    ]
    return all(tables[0].equals(table) for table in tables[1:])
