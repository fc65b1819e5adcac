"""How training went and where the tokens went: stability by condition, expert load by layer.

The runs' own measures come from `results`, the load from the raw counts of the final evaluation.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.aggregate import condition, done_of_all
from reports.expert_load import (
    dead_experts,
    global_variation,
    layer_variation,
    load_entropy,
    max_violation,
    variation,
)
from reports.frames import StudyData
from reports.statistics import Array, Std, finite
from reports.study import Cell
from reports.tables import DASH, Section, Table, mean_spread, number

_MEASURES = (
    *("clipped_share", "max_grad_norm", "loss_spikes", "train_loss_tail_sd", "steps_to_loss"),
    *("train_loss_last_100", "unweighted_aux_loss_last_100"),
)


def stability(data: StudyData, std: Std) -> Section:
    """One row a condition: clipping, gradient norm, spikes, the end of the loss curve, steps to a loss."""
    if data.done[list(_MEASURES)].isna().all(axis=None):
        return Section("Training stability", ("No measures of training are recorded for this study.",))
    columns = (
        *data.study.factors,
        *("n", "Clipped updates (%)", "Largest gradient norm", "Loss spikes", "Last tenth: sd of loss"),
        *("Steps to target loss", "Train loss, last 100 steps", "Unweighted aux loss, last 100 steps"),
    )
    return Section(
        "Training stability",
        tables=(Table(columns, tuple(_stability_row(data, cell, std) for cell in data.cells)),),
        notes=(
            "Clipped updates, spikes and the sd of the last tenth are means over runs; the gradient norm is "
            "the largest of all runs.",
            "A spike is an update whose loss is above the running median by 6 median absolute deviations.",
            "Steps to target loss: the median of the runs that reached the declared training loss, and how "
            "many did; a dash where none did or none was declared.",
        ),
    )


def load(data: StudyData, std: Std) -> Section:
    """Two tables: the load of each condition in a row, then layer by layer, over the finished runs."""
    heading = "Expert load by layer"
    arrays = _counts_by_run(data)
    if not arrays:
        return Section(heading, ("No expert counts are recorded for this study.",))
    conditions, layers = [], []
    for cell, runs in data.by_cell.items():
        counts = [arrays[job] for job in runs["job_id"] if job in arrays]
        conditions.append((*condition(cell), *_condition_row(counts, std)))
        layers += [(*condition(cell), *row) for row in _layer_rows(counts, std)]
    factors = data.study.factors
    wide = ("n", "Global CV", "Mean layer CV", "sd over layers", "Largest layer CV", "Dead experts")
    deep = ("Layer", "n", "CV", "MaxVio", "Entropy (nats)", "Dead experts")
    tables = (Table((*factors, *wide), tuple(conditions)), Table((*factors, *deep), tuple(layers)))
    return Section(heading, tables=tables, notes=_load_notes(std, list(arrays.values())))


def _stability_row(data: StudyData, cell: Cell, std: Std) -> tuple[str, ...]:
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"]
    return (
        *condition(cell),
        done_of_all(runs),
        _mean(100 * done["clipped_share"], 1),
        number(done["max_grad_norm"].max(), 2),
        _mean(done["loss_spikes"], 1),
        _mean(done["train_loss_tail_sd"], 4),
        _reached(done["steps_to_loss"]),
        mean_spread(done["train_loss_last_100"], 4, std, len(done)),
        _mean(done["unweighted_aux_loss_last_100"], 4),
    )


def _mean(values: npt.ArrayLike, decimals: int) -> str:
    numbers = finite(values)
    return number(float(numbers.mean()), decimals) if numbers.size else DASH


def _reached(steps: pd.Series) -> str:
    reached = finite(steps)
    return f"{number(float(np.median(reached)), 0)} ({reached.size}/{len(steps)})" if reached.size else DASH


def _counts_by_run(data: StudyData) -> dict[int, Array]:
    """Job → counts (L, E) of its final evaluation; an expert without a row received none."""
    configs = dict(zip(data.done["job_id"], data.done["config"], strict=True))
    counts = data.counts[data.counts["job_id"].isin(configs)]
    arrays = {}
    for job, rows in counts.groupby("job_id"):
        model = configs[job].get("model", {})
        layers = max(int(rows["layer"].max()) + 1, model.get("n_layers", 0))
        array = np.zeros((layers, max(int(rows["expert"].max()) + 1, model.get("n_experts", 0))))
        array[rows["layer"], rows["expert"]] = rows["tokens"]
        arrays[int(str(job))] = array
    return arrays


def _condition_row(counts: list[Array], std: Std) -> tuple[str, ...]:
    """One condition. Shapes: a (L, E) a run; each measure is taken in a run, then averaged over runs."""
    if not counts:
        return ("0", *[DASH] * 5)
    n, layers = len(counts), [layer_variation(run) for run in counts]
    return (
        str(n),
        mean_spread([global_variation(run) for run in counts], 4, std, n),
        mean_spread([run.mean for run in layers], 4, std, n),
        _mean([run.sd for run in layers], 4),
        number(max(run.max for run in layers), 4),
        _dead(counts),
    )


def _layer_rows(counts: list[Array], std: Std) -> list[tuple[str, ...]]:
    """The layers of one condition. Shapes: a (L, E) a run; where runs differ in L, n says so."""
    rows: list[tuple[str, ...]] = []
    for layer in range(max((len(run) for run in counts), default=0)):
        of_runs = [run[layer] for run in counts if layer < len(run)]
        rows.append(
            (
                str(layer),
                str(len(of_runs)),
                mean_spread([variation(run) for run in of_runs], 4, std, len(of_runs)),
                _mean([max_violation(run) for run in of_runs], 3),
                _mean([load_entropy(run) for run in of_runs], 4),
                _dead(of_runs),
            )
        )
    return rows


def _dead(counts: list[Array]) -> str:
    return f"{sum(map(dead_experts, counts))} of {sum(run.size for run in counts)}"


def _load_notes(std: Std, arrays: list[Array]) -> tuple[str, ...]:
    sizes = sorted({run.shape[1] for run in arrays})
    even = ", ".join(f"{math.log(size):.4f} for {size} experts" for size in sizes)
    return (
        "CV is population sd / mean over experts, within a run, on the whole held-out split; ± is the "
        f"{std} standard deviation over runs. Global sums the counts over layers first, so that layers which "
        "are unbalanced in opposite ways cancel; the layers' own CVs do not.",
        f"MaxVio is max / mean - 1. Entropy of an even load: {even}. Dead experts received no token, over "
        "all runs (and layers) of the row. Layers count from 0.",
    )
