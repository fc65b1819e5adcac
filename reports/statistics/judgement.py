"""The verdict on every declared claim; together they are one family, and their intervals hold together.

Printed by reports/sections/findings.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from reports.reading.frames import StudyData
from reports.reading.measures import measure
from reports.reading.study import Study
from reports.statistics.anova import Effect, Variance, analyse
from reports.statistics.blocks import Blocks, Weights, blocks, usable
from reports.statistics.failures import Failures
from reports.statistics.families import difference, left_out
from reports.statistics.inference import NOTHING, Contrast, equivalence, family
from reports.statistics.words import Kind, Verdict, Word, verdict, word


@dataclass(frozen=True)
class Judged:
    """A declared claim, its contrast, and the words for it."""

    name: str
    kind: Kind
    metric: str
    what: str
    """The comparison in words: `noise_std=0.5 against noise_std=0.0`."""
    weights: Weights
    margin: float
    """NaN where the metric has none."""
    contrast: Contrast
    """Corrected for the claims that can be tested; of logarithms where `ratio`."""
    ratio: bool
    """The metric is compared as a ratio: a measure of load, whose spread grows with its size."""
    failures: Failures
    equivalence_p: float
    """Below .05 where the interval is inside the margin."""
    word: Word
    """What the first side is against the second."""
    verdict: Verdict
    to_come: int
    """Seeds that are still to run: until then the verdict is provisional."""
    depends_on: tuple[Effect, ...]
    """Interactions that qualify an effect which the claim averages over another factor."""


def judge(data: StudyData) -> list[Judged]:
    """The verdict on every declared claim, as one family."""
    claims = data.study.claims
    names = {claim["metric"] for claim in claims}
    matrices = {name: blocks(data, name) for name in names if usable(data, name)}
    analyses = {name: analyse(data.study, matrix) for name, matrix in matrices.items()}
    asked = [_Asked.of(data.study, claim, matrices.get(claim["metric"])) for claim in claims]
    corrected = family([each.contrast for each in asked])
    return [
        _judged(data.study, claim, each, contrast, analyses.get(claim["metric"], ""))
        for claim, each, contrast in zip(claims, asked, corrected, strict=True)
    ]


def describe(claim: Mapping[str, Any]) -> str:
    """What a claim compares, in words."""
    text = f"{_levels(claim['compare'])} against {_levels(claim['against'])}"
    for factor, (first, second) in (claim.get("interaction") or {}).items():
        text = f"({text}) at {factor}={first} against the same at {factor}={second}"
    return text


@dataclass(frozen=True)
class _Asked:
    """A claim's comparison before the correction."""

    what: str
    weights: Weights
    contrast: Contrast
    ratio: bool
    failures: Failures
    to_come: int

    @staticmethod
    def of(study: Study, claim: Mapping[str, Any], matrix: Blocks | None) -> _Asked:
        told = claim["compare"], claim["against"], claim.get("interaction")
        whole = difference(study, *told)
        if matrix is None:
            return _Asked(describe(claim), whole, NOTHING, False, Failures(0, 0, 0, 0, 0, 0), 0)
        weights = difference(study, *told, without=matrix.empty())
        what = describe(claim) + left_out(study, whole, weights)
        ratio = measure(claim["metric"]).ratio and math.isnan(_margin(study, claim))
        logarithms = matrix.logarithms() if ratio else None
        contrast = (logarithms or matrix).contrast(weights)
        failures, to_come = matrix.failures(whole), matrix.to_come(whole)
        return _Asked(what, weights, contrast, logarithms is not None, failures, to_come)


def _judged(
    study: Study, claim: Mapping[str, Any], asked: _Asked, contrast: Contrast, analysis: Variance | str
) -> Judged:
    margin = math.nan if asked.ratio else _margin(study, claim)
    kind, higher = cast(Kind, claim["kind"]), measure(claim["metric"]).higher_is_better
    return Judged(
        name=str(claim["name"]),
        kind=kind,
        metric=str(claim["metric"]),
        what=asked.what,
        weights=asked.weights,
        margin=margin,
        contrast=contrast,
        ratio=asked.ratio,
        failures=asked.failures,
        equivalence_p=equivalence(contrast, margin),
        word=word(contrast, margin, higher, asked.failures),
        verdict=verdict(kind, contrast, margin, higher, asked.failures),
        to_come=asked.to_come,
        depends_on=_qualifiers(claim, analysis),
    )


def _qualifiers(claim: Mapping[str, Any], analysis: Variance | str) -> tuple[Effect, ...]:
    if isinstance(analysis, str):
        return ()
    compare, against, crossed = claim["compare"], claim["against"], set(claim.get("interaction") or {})
    changed = {factor for factor, level in compare.items() if against.get(factor) != level}
    return analysis.qualifiers(changed, crossed, {*compare, *crossed})


def _margin(study: Study, claim: Mapping[str, Any]) -> float:
    margin = claim.get("margin") or study.target(claim["metric"]).margin
    return math.nan if margin is None else float(margin)


def _levels(levels: Mapping[str, Any]) -> str:
    return ", ".join(f"{factor}={level}" for factor, level in levels.items())
