"""How training went, and how the router routed: stability and routing by condition.

The runs' own measures come from `results`, the router's from the last evaluation. Where the tokens went:
reports/sections/load.py.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from reports.reading.frames import StudyData
from reports.reading.rows import by_seed, recorded
from reports.reading.series import ROUTER
from reports.reading.study import Cell
from reports.statistics.analysis import Analysis
from reports.statistics.inference import Std, finite
from reports.tables import (
    DASH,
    Section,
    Table,
    condition,
    done_of_all,
    mean,
    mean_spread,
    number,
)

_MEASURES = (
    *("clipped_share", "max_grad_norm", "loss_spikes", "train_loss_tail_sd", "steps_to_loss"),
    *("train_loss_last_100", "unweighted_aux_loss_last_100"),
)


STABILITY, ROUTING = "Training stability", "Routing"


def stability(analysis: Analysis) -> Section:
    """One row a condition: clipping, gradient norm, spikes, the end of the loss curve, steps to a loss."""
    data, std = analysis.data, analysis.std
    if not recorded(data.done, _MEASURES):
        return Section(STABILITY, ("No measures of training are recorded for this study.",))
    columns = (
        *data.study.factors,
        *("n", "Clipped updates (%)", "Largest gradient norm", "Loss spikes", "Last tenth: sd of loss"),
        *("Steps to target loss", "Train loss, last 100 steps", "Unweighted aux loss, last 100 steps"),
    )
    return Section(
        STABILITY,
        tables=(Table(columns, tuple(_stability_row(data, cell, std) for cell in data.cells)),),
        notes=(
            "Clipped updates, spikes and the sd of the last tenth are means over runs; the gradient norm is "
            "the largest of all runs.",
            "A spike is an update whose loss is above the running median by 6 median absolute deviations.",
            "Steps to target loss: the median of the runs that reached the declared training loss, and how "
            "many did; a dash where none did or none was declared.",
        ),
    )


def routing(analysis: Analysis) -> Section | None:
    """One row a condition: how sure the router is, and how much its noise moves."""
    data, std = analysis.data, analysis.std
    if not data.final["name"].isin(ROUTER).any():
        return None
    values = data.final.pivot_table(index="job_id", columns="name", values="value", dropna=False)
    rows = []
    for cell, runs in data.by_cell.items():
        done = runs[runs["status"] == "done"]
        shown = by_seed(values.reindex(index=done["job_id"], columns=list(ROUTER)), done["seed"])
        measures = (mean_spread(shown[name], 4, std, len(shown)) for name in ROUTER)
        rows.append((*condition(cell), done_of_all(runs), *measures))
    columns = ("Router entropy (nats)", "Mean top-1 probability", "Clean and noisy top-k agree")
    return Section(
        ROUTING,
        tables=(Table((*data.study.factors, "n", *columns), tuple(rows)),),
        notes=(
            "At the final evaluation, means over tokens and layers. Entropy is of the router's full softmax, "
            "without noise; it is ln E when the router has no preference, and 0 when it has only one.",
            "Agreement: the share of tokens' experts that stay chosen when noise is added to the logits, 1 "
            "where the noise is 0.",
        ),
    )


def _stability_row(data: StudyData, cell: Cell, std: Std) -> tuple[str, ...]:
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"]
    last_loss = by_seed(done[["train_loss_last_100"]], done["seed"])["train_loss_last_100"]
    return (
        *condition(cell),
        done_of_all(runs),
        mean(100 * done["clipped_share"], partial(number, decimals=1)),
        number(done["max_grad_norm"].max(), 2),
        mean(done["loss_spikes"], partial(number, decimals=1)),
        mean(done["train_loss_tail_sd"], partial(number, decimals=4)),
        _reached(done["steps_to_loss"]),
        mean_spread(last_loss, 4, std, len(last_loss)),
        mean(done["unweighted_aux_loss_last_100"], partial(number, decimals=4)),
    )


def _reached(steps: pd.Series) -> str:
    reached = finite(steps)
    return f"{number(float(np.median(reached)), 0)} ({reached.size}/{len(steps)})" if reached.size else DASH
