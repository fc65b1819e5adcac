"""What came out: quality and load with a row a condition, and a table a condition with its seeds.

Means are over the finished runs of a condition; a value that was not recorded is a dash, never a zero.
"""

from __future__ import annotations

import pandas as pd

from reports.reading.frames import StudyData
from reports.reading.measures import AUX_LOSS, LOAD, Measure
from reports.reading.rows import by_seed, recorded
from reports.reading.series import LOSS_SE
from reports.reading.study import Cell, Study
from reports.sections.load import dead
from reports.statistics.analysis import Analysis
from reports.statistics.inference import Std, finite, mean_interval
from reports.statistics.load import RunLoad
from reports.tables import (
    Section,
    Table,
    condition,
    done_of_all,
    interval,
    listed,
    mean,
    mean_spread,
    number,
)
from runner.queue.where import counted

RESULTS, LOADS, SEEDS = "Results by condition", "Expert load by condition", "Results by seed"
_BY_SEED = 3
"""Measures of the tables by seed, beside the load."""

MOST_UNFINISHED = 30
"""Runs without a result, in the whole study, that the tables by seed still show as rows of dashes."""


def aggregate(analysis: Analysis) -> Section:
    """Quality: a row a condition, means over its seeds."""
    data, std = analysis.data, analysis.std
    first, *others = data.study.results
    columns = (first.label, "95 % interval", *(measure.label for measure in others))
    rows = tuple(_quality_row(data, cell, std) for cell in data.cells)
    return Section(
        RESULTS,
        tables=(Table((*data.study.factors, "n", *columns), rows),),
        notes=(
            f"± is the {std} standard deviation over seeds, repeats of a seed averaged first; n is finished "
            "runs of all runs of the condition; (n=…) behind a value counts the seeds that have it.",
            f"The interval is Student's t for the mean of {first.label.lower()}, from the sample standard "
            "deviation.",
            *_directions(data.study),
            *_sampling_error(data),
        ),
    )


def _directions(study: Study) -> tuple[str, ...]:
    """Which way is better, and what of the values is biased."""
    told = []
    for way in ("lower", "higher"):
        names = [_inline(measure.label) for measure in study.results if measure.better == way]
        told += [f"{way.capitalize()} is better for {listed(names)}."] if names else []
    if "best_val_perplexity" in study.measures:
        told.append(
            "Best Val PPL is the lowest of a run's evaluations, and biased low; the final loss is primary."
        )
    return (" ".join(told),) if told else ()


def _inline(label: str) -> str:
    """A label within a sentence: `val loss`, `val PPL`."""
    return f"{label[:1].lower()}{label[1:]}"


def _sampling_error(data: StudyData) -> tuple[str, ...]:
    """How much a run's loss owes to which windows were held out; nothing where that is not recorded."""
    final = data.final
    errors = finite(
        final.loc[(final["name"] == LOSS_SE) & final["job_id"].isin(data.done["job_id"]), "value"]
    )
    if not errors.size:
        return ()
    return (
        f"The held-out text is a sample, too: a run's val loss has a standard error of "
        f"{number(float(errors.mean()), 4)} nats per token over its windows (the mean of "
        f"{counted(errors.size, 'run')}). All conditions share that text, so it says how far "
        "the losses would move together on another one; it is not the interval over seeds.",
    )


def load(analysis: Analysis) -> Section | None:
    """How evenly the experts were loaded: a row a condition, each measure taken in a run."""
    data, std, loads = analysis.data, analysis.std, analysis.loads
    if not loads and not recorded(data.done, [LOAD]):
        return None
    labels = [data.study.measure(name).label for name in (LOAD, AUX_LOSS)]
    columns = (labels[0], "Mean layer CV", "MaxVio", "Dead experts", labels[1])
    rows = tuple(_load_row(data, cell, std, loads) for cell in data.cells)
    return Section(
        LOADS,
        tables=(Table((*data.study.factors, "n", *columns), rows),),
        notes=(
            "Lower is a more even load. Expert Usage CV is of the counts summed over layers, which can "
            "cancel; mean layer CV is the mean of the layers' own. MaxVio is max / mean - 1, the mean over "
            "layers. Dead experts are counted over all layers and runs.",
        ),
    )


def per_seed(analysis: Analysis) -> Section:
    """A table a condition: val loss, then the published columns, best perplexity and expert usage CV."""
    data = analysis.data
    left_out = len(data.runs) - len(data.done)
    if left_out <= MOST_UNFINISHED:
        left_out = 0
    tables, study = [], data.study
    shown = (*study.results[:_BY_SEED], *([study.measure(LOAD)] if LOAD in study.measures else []))
    for cell, of_cell in data.by_cell.items():
        runs = of_cell[of_cell["status"] == "done"] if left_out else of_cell
        if runs.empty:
            continue
        values = zip(*(runs[measure.column] for measure in shown), strict=True)
        rows = tuple(
            (str(seed), *(number(value, m.decimals) for value, m in zip(row, shown, strict=True)))
            for seed, row in zip(runs["seed"], values, strict=True)
        )
        columns = ("Seed", *(measure.label for measure in shown))
        tables.append(Table(columns, rows, heading=data.study.label(cell)))
    notes = (f"The {left_out:,} runs without a result are left out.",) if left_out else ()
    return Section(SEEDS, tables=tuple(tables), notes=notes)


def _quality_row(data: StudyData, cell: Cell, std: Std) -> tuple[str, ...]:
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"]
    loss, *others = data.study.results
    values = by_seed(done[[measure.column for measure in data.study.results]], done["seed"])
    return (
        *condition(cell),
        done_of_all(runs),
        _shown(values, loss, std),
        interval(*mean_interval(values[loss.column]), loss.decimals),
        *(_shown(values, measure, std) for measure in others),
    )


def _load_row(data: StudyData, cell: Cell, std: Std, loads: dict[int, RunLoad]) -> tuple[str, ...]:
    runs = data.by_cell[cell]
    done = runs[runs["status"] == "done"]
    found = [loads[job] for job in done["job_id"] if job in loads]
    of_layers = {job: float(loads[job].cv.mean()) for job in done["job_id"] if job in loads}
    told = done.reindex(columns=[LOAD, AUX_LOSS]).assign(layers=done["job_id"].map(of_layers).astype(float))
    values = by_seed(told, done["seed"])
    return (
        *condition(cell),
        done_of_all(runs),
        _shown(values, data.study.measure(LOAD), std),
        mean_spread(values["layers"], 4, std, len(values)),
        mean([float(run.violation.mean()) for run in found], number),
        dead(found),
        _shown(values, data.study.measure(AUX_LOSS), std),
    )


def _shown(values: pd.DataFrame, measure: Measure, std: Std) -> str:
    return mean_spread(values[measure.column], measure.decimals, std, len(values))
