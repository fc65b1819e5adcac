"""Where the tokens went: the experts' load by condition and by layer, from the raw counts.

Counts are of the final evaluation, on the whole held-out split. The measures:
reports/statistics/load.py.
"""

from __future__ import annotations

import math
from functools import partial

from reports.statistics.analysis import Analysis
from reports.statistics.inference import Std
from reports.statistics.load import RunLoad
from reports.tables import DASH, Section, Table, condition, mean, mean_spread, number

HEADING = "Expert load by layer"


def load(analysis: Analysis) -> Section | None:
    """Two tables: the load of each condition in a row, then layer by layer, over the finished runs."""
    data, std, loads = analysis.data, analysis.std, analysis.loads
    if not loads:
        return None
    conditions, layers = [], []
    for cell, runs in data.by_cell.items():
        found = [loads[job] for job in runs["job_id"] if job in loads]
        conditions.append((*condition(cell), *_condition_row(found, std)))
        layers += [(*condition(cell), *row) for row in _layer_rows(found, std)]
    factors = data.study.factors
    wide = ("n", "Global CV", "Mean layer CV", "sd over layers", "Largest layer CV", "Dead experts")
    deep = ("Layer", "n", "CV", "MaxVio", "Entropy (nats)", "Dead experts")
    tables = (Table((*factors, *wide), tuple(conditions)), Table((*factors, *deep), tuple(layers)))
    return Section(HEADING, tables=tables, notes=_notes(std, loads))


def dead(loads: list[RunLoad]) -> str:
    """`3 of 48`: experts without a token, of all experts in all layers and runs."""
    if not loads:
        return DASH
    return f"{sum(int(run.dead.sum()) for run in loads)} of {sum(run.shares.size for run in loads)}"


def _condition_row(loads: list[RunLoad], std: Std) -> tuple[str, ...]:
    """One condition: each measure is taken in a run, then averaged over runs."""
    if not loads:
        return ("0", *[DASH] * 5)
    n = len(loads)
    return (
        str(n),
        mean_spread([run.global_cv for run in loads], 4, std, n),
        mean_spread([float(run.cv.mean()) for run in loads], 4, std, n),
        mean([float(run.cv.std()) for run in loads], partial(number, decimals=4)),
        number(max(float(run.cv.max()) for run in loads), 4),
        dead(loads),
    )


def _layer_rows(loads: list[RunLoad], std: Std) -> list[tuple[str, ...]]:
    """The layers of one condition; where runs differ in how many they have, n says so."""
    rows: list[tuple[str, ...]] = []
    for layer in range(max((len(run.cv) for run in loads), default=0)):
        of_runs = [run for run in loads if layer < len(run.cv)]
        experts = sum(run.shares.shape[1] for run in of_runs)
        rows.append(
            (
                str(layer),
                str(len(of_runs)),
                mean_spread([float(run.cv[layer]) for run in of_runs], 4, std, len(of_runs)),
                mean([run.violation[layer] for run in of_runs], partial(number, decimals=3)),
                mean([run.entropy[layer] for run in of_runs], partial(number, decimals=4)),
                f"{sum(int(run.dead[layer]) for run in of_runs)} of {experts}",
            )
        )
    return rows


def _notes(std: Std, loads: dict[int, RunLoad]) -> tuple[str, ...]:
    sizes = sorted({run.shares.shape[1] for run in loads.values()})
    even = ", ".join(f"{math.log(size):.4f} for {size} experts" for size in sizes)
    return (
        "CV is population sd / mean over experts, within a run, on the whole held-out split; ± is the "
        f"{std} standard deviation over runs. Global sums the counts over layers first, so that layers which "
        "are unbalanced in opposite ways cancel; the layers' own CVs do not.",
        f"MaxVio is max / mean - 1. Entropy of an even load: {even}. Dead experts received no token, over "
        "all runs (and layers) of the row. Layers count from 0.",
    )
