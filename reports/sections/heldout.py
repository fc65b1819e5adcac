"""The test split's scores, once they are revealed: by condition, beside the validation loss.

Until then reports/reading/series.py reads none of them, and the section says how they are revealed.
"""

from __future__ import annotations

import pandas as pd

from reports.reading.frames import StudyData
from reports.reading.rows import by_seed
from reports.reading.series import SCORES
from reports.reading.study import Cell
from reports.statistics.analysis import Analysis
from reports.statistics.inference import Std, mean_interval
from reports.tables import (
    Section,
    Table,
    condition,
    done_of_all,
    instant,
    interval,
    mean_spread,
)

HEADING = "Test split"
_DECIMALS = {"loss": 4, "perplexity": 2, "accuracy": 4, "bits_per_byte": 4}


def held_out(analysis: Analysis) -> Section | None:
    """The section; None for imported results."""
    data, std, study = analysis.data, analysis.std, analysis.study
    if study.imported_from is not None:
        return None
    if study.test_revealed_at is None:
        text = f"Sealed. python cli.py test --study {study.name} reveals it, for good, and records that."
        return Section(HEADING, (text,))
    when = f"Revealed {instant(study.test_revealed_at)}"
    when += f" by {data.revealed_by}." if data.revealed_by else "."
    if data.test.empty:
        return Section(HEADING, (when, "No finished run has test scores."))
    scores = data.test.pivot_table(index="job_id", columns="name", values="value", dropna=False)
    columns = (
        "n",
        "Test loss",
        "95 % interval",
        "Test PPL",
        "Accuracy",
        "Bits per byte",
        study.measure(study.outcome).label,
    )
    rows = tuple(_row(data, cell, scores.reindex(columns=list(SCORES)), std) for cell in data.cells)
    return Section(
        HEADING,
        (when,),
        (Table((*data.study.factors, *columns), rows),),
        (
            "Text that neither trained a run nor chose anything before that date. The primary metric "
            "stays the one that was declared; these scores confirm it or do not.",
            f"± is the {std} standard deviation over seeds, the interval Student's t.",
        ),
    )


def _row(data: StudyData, cell: Cell, scores: pd.DataFrame, std: Std) -> tuple[str, ...]:
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"]
    found = by_seed(scores.reindex(done["job_id"]), done["seed"])
    outcome = data.study.measure(data.study.outcome)
    validation = by_seed(done[[outcome.column]], done["seed"])[outcome.column]
    loss, *others = (mean_spread(found[name], _DECIMALS[name], std, len(found)) for name in SCORES)
    return (
        *condition(cell),
        done_of_all(runs),
        loss,
        interval(*mean_interval(found["loss"]), _DECIMALS["loss"]),
        *others,
        mean_spread(validation, outcome.decimals, std, len(validation)),
    )
