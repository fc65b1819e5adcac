"""The noise floor: runs of one configuration and one seed, and how far apart they came out.

A grid with `repeats` makes such runs. Where they agree in every bit, a difference between conditions is the
conditions'; where they do not, a difference below the floor means nothing. Computed by
reports/statistics/repeats.py.
"""

from __future__ import annotations

from reports.reading.measures import LOAD, Measure
from reports.statistics.analysis import Analysis
from reports.statistics.repeats import Floor
from reports.tables import Section, Table

_SHOWN = 3
"""Measures of the table, beside the load."""


def noise_floor(analysis: Analysis) -> Section | None:
    """The section; None for a study without repeats."""
    measured = analysis.floors
    if not measured:
        return None
    study = analysis.study
    shown = (*study.results[:_SHOWN], *([study.measure(LOAD)] if LOAD in study.measures else []))
    rows = tuple(
        (
            analysis.study.label(floor.cell),
            str(floor.seed),
            str(len(floor.runs)),
            "yes" if floor.equal else "no",
            *(f"{floor.spread(measure.column):.3g}" for measure in shown),
        )
        for floor in measured
    )
    columns = ("condition", "seed", "runs", "bitwise equal", *(measure.label for measure in shown))
    return Section(
        "Noise floor",
        text=(_verdict(measured, study.measure(study.outcome)),),
        tables=(Table(columns, rows, align="lrrl" + "r" * len(shown)),),
        notes=(
            "A value is the greatest minus the least over the runs of one configuration and one seed; "
            "nothing was changed between them. Times, speeds and memory are not compared.",
            "Elsewhere the repeats of a seed are one observation, their mean; counts of runs and the load by "
            "layer take each.",
        ),
    )


def _verdict(measured: tuple[Floor, ...], measure: Measure) -> str:
    count = sum(len(floor.runs) for floor in measured)
    if all(floor.equal for floor in measured):
        return f"All {count} repeated runs are bitwise equal: the noise floor is zero."
    unit = f" {measure.unit}" if measure.unit else ""
    widest = max(floor.spread(measure.column) for floor in measured)
    return (
        f"The {count} repeated runs are not bitwise equal. They lie up to {widest:.3g}{unit} apart "
        f"in {measure.label.lower()}: a difference between conditions below that means nothing."
    )
