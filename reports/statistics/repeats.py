"""Runs of one configuration and one seed, which a grid with `repeats` makes, and how far apart they came out.

Printed by reports/sections/repeats.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.reading.frames import StudyData
from reports.reading.study import Cell
from reports.statistics.blocks import kind

_OF_THE_MACHINE = ("seconds", "tokens_per_second", "peak_memory")
"""Parts of the names of what may differ between two equal runs: times, speeds, memory."""


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
    for cell, of_cell in data.by_cell.items():
        done = of_cell[of_cell["status"] == "done"]
        again = done[done["seed"].duplicated(keep=False)]
        if again.empty:
            continue
        for _, runs in again.assign(kind=list(map(kind, again["config"]))).groupby(["seed", "kind"]):
            if len(runs) > 1:
                found.append(Floor(cell, int(runs["seed"].iloc[0]), runs, _equal(data, runs)))
    return found


def _equal(data: StudyData, runs: pd.DataFrame) -> bool:
    compared = [name for name in data.study.measures if not any(part in name for part in _OF_THE_MACHINE)]
    values = runs[compared].to_numpy(dtype=float)
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
