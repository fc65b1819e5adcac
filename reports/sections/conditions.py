"""What came out: one row a condition, one table a condition with its seeds, and the worker's last words.

Means are over the finished runs of a condition; a value that was not recorded is a dash, never a zero.
"""

from __future__ import annotations

import re
import textwrap

import pandas as pd

from reports.reading.frames import StudyData
from reports.reading.measures import (
    ACCURACY,
    AUX_LOSS,
    BEST_PERPLEXITY,
    BITS,
    LOAD,
    LOSS,
    PERPLEXITY,
    Measure,
)
from reports.reading.study import Cell
from reports.sections.load import dead
from reports.statistics.analysis import Analysis
from reports.statistics.inference import Std, mean_interval
from reports.statistics.load import RunLoad
from reports.tables import (
    Section,
    Table,
    condition,
    done_of_all,
    interval,
    mean,
    mean_spread,
    minutes,
    number,
    plain,
    whole,
)

GB = 1e9
"""Bytes in a GB, here and in the exported CSV."""


MEASURES = (PERPLEXITY, BEST_PERPLEXITY, ACCURACY, BITS, LOAD, AUX_LOSS)


RESULTS = "Results by condition"

MOST_UNFINISHED = 30
"""Runs without a result, in the whole study, that the tables by seed still show as rows of dashes."""


def aggregate(analysis: Analysis) -> Section:
    """The table that answers first: a row a condition, means over its seeds."""
    data, std, loads = analysis.data, analysis.std, analysis.loads
    labels = (LOSS.label, "95 % interval", *(m.label for m in MEASURES))
    load = ("Mean layer CV", "MaxVio", "Dead experts")
    cost = ("Avg time (min)", "Tokens/s", "Peak memory (GB)")
    rows = tuple(_aggregate_row(data, cell, std, loads) for cell in data.cells)
    return Section(
        RESULTS,
        tables=(Table((*data.study.factors, "n", *labels, *load, *cost), rows),),
        notes=(
            f"± is the {std} standard deviation over seeds; n is finished runs of all runs of the condition; "
            "(n=…) behind a value counts the runs that have it.",
            "The interval is Student's t for the mean of the loss, from the sample standard deviation.",
            "Lower is better for loss, PPL and bits per byte. Best Val PPL is the lowest of a run's "
            "evaluations, and biased low; the final loss is primary.",
            "Expert Usage CV is of the counts summed over layers, mean layer CV of each layer's own; lower "
            "is a more even load. MaxVio is max / mean - 1, the mean over layers. Dead experts are counted "
            "over all layers and runs.",
            "Time and tokens/s are means; peak memory is the largest of the condition, in 10^9 bytes.",
        ),
    )


def per_seed(analysis: Analysis) -> Section:
    """A table a condition in the published form: seed, best perplexity, expert usage CV."""
    data = analysis.data
    left_out = len(data.runs) - len(data.done)
    if left_out <= MOST_UNFINISHED:
        left_out = 0
    tables = []
    for cell, of_cell in data.by_cell.items():
        runs = of_cell[of_cell["status"] == "done"] if left_out else of_cell
        if runs.empty:
            continue
        rows = tuple(
            (str(run["seed"]), number(run["best_val_perplexity"], 2), number(run["expert_usage_cv"], 4))
            for run in runs.to_dict("records")
        )
        columns = ("Seed", "Best Val PPL", "Expert Usage CV")
        tables.append(Table(columns, rows, heading=data.study.label(cell)))
    notes = (f"The {left_out:,} runs without a result are left out.",) if left_out else ()
    return Section("Results by seed", tables=tuple(tables), notes=notes)


def summary(data: StudyData, std: Std = "sample", width: int = 80) -> str:
    """Means and standard deviations by condition as plain text, at most `width` columns wide."""
    measures = (LOSS, PERPLEXITY, LOAD)
    head = [plain(name) for name in (*data.study.factors, "n", *(measure.label for measure in measures))]
    rows = [[plain(text) for text in _summary_row(data, cell, measures, std)] for cell in data.cells]
    title = f"{data.study.name}: mean ± {std} sd over seeds, {done_of_all(data.runs)} runs done"
    lines = textwrap.wrap(plain(title), width)
    table = _narrow_table(head, rows)
    if max(map(len, table)) <= width:
        return "\n".join([*lines, *table])
    for cell, row in zip(data.cells, rows, strict=True):
        lines += textwrap.wrap(plain(data.study.label(cell)), width)
        lines += [f"  {name}  {value}" for name, value in list(zip(head, row, strict=True))[len(cell) :]]
    return "\n".join(lines)


def _aggregate_row(data: StudyData, cell: Cell, std: Std, loads: dict[int, RunLoad]) -> tuple[str, ...]:
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"]
    found = [loads[job] for job in done["job_id"] if job in loads]
    return (
        *condition(cell),
        done_of_all(runs),
        _shown(done, LOSS, std),
        interval(*mean_interval(done[LOSS.column]), LOSS.decimals),
        *(_shown(done, measure, std) for measure in MEASURES),
        mean_spread([float(run.cv.mean()) for run in found], 4, std, len(done)),
        mean([float(run.violation.mean()) for run in found], number),
        dead(found),
        mean(done["training_seconds"], minutes),
        mean(done["tokens_per_second"], whole),
        number(done["peak_memory_bytes"].max() / GB, 2),
    )


def _shown(done: pd.DataFrame, measure: Measure, std: Std) -> str:
    return mean_spread(done[measure.column], measure.decimals, std, len(done))


def _summary_row(data: StudyData, cell: Cell, measures: tuple[Measure, ...], std: Std) -> tuple[str, ...]:
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"]
    return (*condition(cell), done_of_all(runs), *(_shown(done, measure, std) for measure in measures))


def _narrow_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Right-aligned columns; a heading is broken behind _ and spaces where that makes it narrower."""
    pieces = [re.findall(r"[^_ ]*[_ ]?", name)[:-1] for name in head]
    columns = list(zip(*rows, strict=True)) or [()] * len(head)
    widths = [max(map(len, [*column, *split])) for column, split in zip(columns, pieces, strict=True)]
    heads = [_stacked(split, width) for split, width in zip(pieces, widths, strict=True)]
    tallest = max(map(len, heads))
    heads = [[""] * (tallest - len(lines)) + lines for lines in heads]
    table = [*zip(*heads, strict=True), *rows]
    return ["  ".join(t.rjust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in table]


def _stacked(pieces: list[str], width: int) -> list[str]:
    lines = [""]
    for piece in pieces:
        if len(lines[-1] + piece) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines if line]
