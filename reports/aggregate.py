"""What came out: one row a condition, one table a condition with its seeds, and the worker's last words.

Means are over the finished runs of a condition; a value that was not recorded is a dash, never a zero.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from reports.frames import StudyData
from reports.statistics import Std, finite, mean_interval
from reports.study import Cell
from reports.tables import DASH, Section, Table, interval, mean_spread, minutes, number, plain, whole

GB = 1e9
"""Bytes in a GB, here and in the exported CSV."""


@dataclass(frozen=True)
class Measure:
    """A column of `results` that is shown as mean ± sd."""

    column: str
    label: str
    decimals: int


LOSS = Measure("val_loss", "Val loss", 4)
PERPLEXITY = Measure("val_perplexity", "Val PPL", 2)
LOAD = Measure("expert_usage_cv", "Expert Usage CV", 4)
MEASURES = (
    PERPLEXITY,
    Measure("best_val_perplexity", "Best Val PPL", 2),
    Measure("val_accuracy", "Accuracy", 4),
    Measure("val_bits_per_byte", "Bits per byte", 4),
    LOAD,
    Measure("aux_loss_last_100", "Aux loss, last 100 steps", 5),
)


def aggregate(data: StudyData, std: Std) -> Section:
    """The table that answers first: a row a condition, means over its seeds."""
    labels = (LOSS.label, "95 % interval", *(m.label for m in MEASURES))
    cost = ("Avg time (min)", "Tokens/s", "Peak memory (GB)")
    rows = tuple(_aggregate_row(data, cell, std) for cell in data.cells)
    return Section(
        "Results by condition",
        tables=(Table((*data.study.factors, "n", *labels, *cost), rows),),
        notes=(
            f"± is the {std} standard deviation over seeds; n is finished runs of all runs of the condition; "
            "(n=…) behind a value counts the runs that have it.",
            "The interval is Student's t for the mean of the loss, from the sample standard deviation.",
            "Lower is better for loss, PPL and bits per byte. A lower expert usage CV is a more even load.",
            "Time and tokens/s are means; peak memory is the largest of the condition, in 10^9 bytes.",
        ),
    )


def per_seed(data: StudyData) -> Section:
    """A table a condition in the published form: seed, best perplexity, expert usage CV."""
    tables = []
    for cell, runs in data.by_cell.items():
        rows = tuple(
            (str(run["seed"]), number(run["best_val_perplexity"], 2), number(run["expert_usage_cv"], 4))
            for run in runs.to_dict("records")
        )
        columns = ("Seed", "Best Val PPL", "Expert Usage CV")
        tables.append(Table(columns, rows, heading=data.study.label(cell)))
    return Section("Results by seed", tables=tuple(tables))


def done_of_all(runs: pd.DataFrame) -> str:
    """`2/3`: finished runs of all runs."""
    return f"{int((runs['status'] == 'done').sum())}/{len(runs)}"


def condition(cell: Cell) -> tuple[str, ...]:
    """The factors' values as table cells."""
    return tuple(str(value) for value in cell)


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


def _aggregate_row(data: StudyData, cell: Cell, std: Std) -> tuple[str, ...]:
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"]
    return (
        *condition(cell),
        done_of_all(runs),
        _shown(done, LOSS, std),
        interval(*mean_interval(done[LOSS.column]), LOSS.decimals),
        *(_shown(done, measure, std) for measure in MEASURES),
        _mean(done["training_seconds"], minutes),
        _mean(done["tokens_per_second"], whole),
        number(done["peak_memory_bytes"].max() / GB, 2),
    )


def _shown(done: pd.DataFrame, measure: Measure, std: Std) -> str:
    return mean_spread(done[measure.column], measure.decimals, std, len(done))


def _mean(values: pd.Series, shown: Callable[[float], str]) -> str:
    numbers = finite(values)
    return shown(float(numbers.mean())) if numbers.size else DASH


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
