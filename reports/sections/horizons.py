"""Horizons: in a study that varies its training steps, whether what a factor does holds at each length.

A reversal is a difference of differences: the signs at two horizons alone are not one. Made from the same
paired contrasts as the families (reports/statistics/families.py); printed only where `steps` is a factor.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from reports.reading.frames import StudyData
from reports.statistics.analysis import Analysis
from reports.statistics.blocks import Blocks
from reports.statistics.families import baseline_cell, difference, pairs_of
from reports.statistics.inference import Contrast, family, finite
from reports.statistics.words import FEWEST, direction
from reports.tables import (
    DASH,
    Section,
    Table,
    interval,
    number,
    probability,
    signed,
    whole,
)

HEADING = "Horizons"
_REVERSED, _OPPOSITE = "opposite, SUPPORTED", "opposite, OPEN"


def horizons(analysis: Analysis) -> Section | None:
    """What each horizon saw, and every difference between levels at the shortest and at the longest."""
    data, target = analysis.data, analysis.target
    name = steps_factor(data)
    if name is None or analysis.blocks is None:
        return None
    lengths = sorted(data.study.factors[name])
    seen = Table(
        (
            name,
            "n",
            "Tokens seen",
            "Unique tokens",
            "Epochs",
            data.study.measure(data.study.outcome).label,
            "Train loss, last 100 steps",
        ),
        tuple(_seen(data, name, length) for length in lengths),
    )
    rows = _differences(analysis, analysis.blocks, name, lengths[0], lengths[-1])
    columns = (
        *("Contrast", f"At {lengths[0]}", "95 % interval", f"At {lengths[-1]}", "95 % interval"),
        *("Later - earlier", "95 % interval", "p", "Sign"),
    )
    compared = Table(columns, rows, "l" + "r" * 7 + "l", f"Differences in {target.metric} by horizon")
    return Section(HEADING, (_sentence(rows),), (seen, compared) if rows else (seen,), _notes())


def steps_factor(data: StudyData) -> str | None:
    """The factor that is the training steps, where it varies."""
    varied = (factor for factor, levels in data.study.factors.items() if len(levels) > 1)
    return next((factor for factor in varied if factor in ("steps", "train.steps")), None)


def _seen(data: StudyData, name: str, length: Any) -> tuple[str, ...]:
    at = [data.study.values(cell).get(name) == length for cell in data.done["cell"]]
    done = data.done[np.array(at, dtype=bool)]

    def mean(column: str) -> float:
        numbers = finite(done.get(column, []))
        return float(numbers.mean()) if numbers.size else math.nan

    seen, unique = mean("tokens_seen"), mean("unique_tokens")
    return (
        *(str(length), str(len(done)), whole(seen), whole(unique)),
        number(seen / unique, 1) if unique else DASH,
        *(number(mean(data.study.outcome), 4), number(mean("train_loss_last_100"), 4)),
    )


def _differences(
    analysis: Analysis, matrix: Blocks, name: str, short: Any, long: Any
) -> tuple[tuple[str, ...], ...]:
    """A row a difference of levels."""
    data, study = analysis.data, analysis.study
    standard = study.values(baseline_cell(data)[0])
    asked = [
        (factor, later, earlier)
        for factor, levels in study.factors.items()
        if factor != name and len(levels) > 1
        for later, earlier in pairs_of(levels, standard[factor])
    ]
    found = [_three(data, matrix, name, short, long, *each) for each in asked]
    decimals = analysis.metric.decimals
    # Each of the three columns is a family: opposite needs the first two at once, so no one of them more.
    columns = [family(column) for column in zip(*found, strict=True)]
    rows = []
    for (factor, later, earlier), *three in zip(asked, *columns, strict=True):
        shown = itertools.chain.from_iterable(
            (signed(c.difference, decimals), interval(c.low, c.high, decimals)) for c in three
        )
        rows.append((f"{factor} {later} - {earlier}", *shown, probability(three[2].p), _sign(*three)))
    return tuple(rows)


def _three(
    data: StudyData, matrix: Blocks, name: str, short: Any, long: Any, factor: str, later: Any, earlier: Any
) -> tuple[Contrast, Contrast, Contrast]:
    """later - earlier at the short horizon, at the long one, and the second minus the first."""
    study = data.study
    one, two = (
        difference(study, {factor: later, name: at}, {factor: earlier, name: at}) for at in (short, long)
    )
    change = difference(study, {factor: later}, {factor: earlier}, {name: (long, short)})
    return matrix.contrast(one), matrix.contrast(two), matrix.contrast(change)


def _sign(short: Contrast, long: Contrast, change: Contrast) -> str:
    if math.isnan(short.difference) or math.isnan(long.difference):
        return DASH
    if short.difference * long.difference >= 0:
        return "the same"
    apart = all(contrast.n >= FEWEST and direction(contrast) for contrast in (short, long, change))
    return _REVERSED if apart else _OPPOSITE


def _sentence(rows: tuple[tuple[str, ...], ...]) -> str:
    if not rows:
        return "No other factor varies: there is no difference to follow from one horizon to the other."
    reversed_ones = [row[0] for row in rows if row[-1] == _REVERSED]
    if reversed_ones:
        return f"SUPPORTED: opposite effects at the two horizons. {'; '.join(reversed_ones)}."
    opposite = [row[0] for row in rows if row[-1] == _OPPOSITE]
    if opposite:
        return f"OPEN: opposite signs at the two horizons, but no more. {'; '.join(opposite)}."
    return "No difference has opposite signs at the two horizons."


def _notes() -> tuple[str, ...]:
    return (
        "Each horizon is a run of its own, with a schedule of its length. Differences are paired by seed and "
        "averaged over the other factors; the intervals of a column hold together.",
        "Later - earlier is the difference of the differences, longest horizon minus shortest. Opposite is "
        "SUPPORTED where all three intervals exclude 0.",
        "Tokens seen, epochs and losses are means over the finished runs of a horizon; a run of fewer than "
        "100 steps has its mean training loss over all of them.",
    )
