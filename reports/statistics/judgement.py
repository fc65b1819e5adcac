"""The verdict on every declared claim; together they are one family, and their intervals hold together.

Printed by reports/sections/findings.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from reports.reading.frames import StudyData
from reports.reading.looks import Outcome
from reports.reading.measures import Measure
from reports.reading.study import Study
from reports.statistics.anova import Effect, Variance, analyse
from reports.statistics.blocks import Blocks, Weights, blocks, usable
from reports.statistics.failures import Failures
from reports.statistics.families import difference, left_out
from reports.statistics.inference import NOTHING, Contrast, equivalence, family
from reports.statistics.words import Kind, Verdict, Word, verdict, word
from runner.queue.where import written


@dataclass(frozen=True)
class Judged:
    """A declared claim, its contrast, and the words for it."""

    name: str
    kind: Kind
    measure: Measure
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
    outcome: Outcome | None = None
    """As the last look left it, where the study has looks and one was made."""

    @property
    def metric(self) -> str:
        return self.measure.column


def judge(data: StudyData) -> list[Judged]:
    """The verdict on every declared claim, as one family; at the last look, where a study has looks."""
    names = {claim["metric"] for claim in data.study.claims}
    matrices = {name: blocks(data, name) for name in names if usable(data, name)}
    analyses = {name: analyse(data.study, matrix) for name, matrix in matrices.items()}
    claims = asked(data)
    if data.study.looks:
        return [
            _at_look(data, i, each, _qualifiers(each.claim, analyses.get(each.metric, "")))
            for i, each in enumerate(claims)
        ]
    found = family([each.contrast for each in claims])
    return [
        _judged(each, contrast, _qualifiers(each.claim, analyses.get(each.metric, "")))
        for each, contrast in zip(claims, found, strict=True)
    ]


def asked(data: StudyData) -> list[Asked]:
    """Every declared claim's comparison, not corrected for anything."""
    claims = data.study.claims
    names = {claim["metric"] for claim in claims}
    matrices = {name: blocks(data, name) for name in names if usable(data, name)}
    return [Asked.of(data.study, claim, matrices.get(claim["metric"])) for claim in claims]


def describe(claim: Mapping[str, Any]) -> str:
    """What a claim compares, in words."""
    text = f"{written(claim['compare'])} against {written(claim['against'])}"
    for factor, (first, second) in (claim.get("interaction") or {}).items():
        text = f"({text}) at {factor}={first} against the same at {factor}={second}"
    return text


@dataclass(frozen=True)
class Asked:
    """A claim's comparison before the correction."""

    claim: Mapping[str, Any]
    measure: Measure
    what: str
    weights: Weights
    contrast: Contrast
    ratio: bool
    margin: float
    """NaN where there is none."""
    failures: Failures
    to_come: int

    @property
    def metric(self) -> str:
        return str(self.claim["metric"])

    @property
    def kind(self) -> Kind:
        return cast(Kind, self.claim["kind"])

    @property
    def higher_is_better(self) -> bool:
        return self.measure.higher_is_better

    @staticmethod
    def of(study: Study, claim: Mapping[str, Any], matrix: Blocks | None) -> Asked:
        told = claim["compare"], claim["against"], claim.get("interaction")
        whole, margin = difference(study, *told), _margin(study, claim)
        known = study.measure(claim["metric"])
        if matrix is None:
            none = Failures(0, 0, 0, 0, 0, 0)
            return Asked(claim, known, describe(claim), whole, NOTHING, False, margin, none, 0)
        weights = difference(study, *told, without=matrix.empty())
        logarithms = matrix.logarithms() if known.ratio and math.isnan(margin) else None
        return Asked(
            claim,
            known,
            describe(claim) + left_out(study, whole, weights),
            weights,
            (logarithms or matrix).contrast(weights),
            logarithms is not None,
            math.nan if logarithms is not None else margin,
            matrix.failures(whole),
            matrix.to_come(whole),
        )


def _judged(asked: Asked, contrast: Contrast, depends_on: tuple[Effect, ...]) -> Judged:
    return Judged(
        name=str(asked.claim["name"]),
        kind=asked.kind,
        measure=asked.measure,
        what=asked.what,
        weights=asked.weights,
        margin=asked.margin,
        contrast=contrast,
        ratio=asked.ratio,
        failures=asked.failures,
        equivalence_p=equivalence(contrast, asked.margin),
        word=word(contrast, asked.margin, asked.measure.better, asked.failures),
        verdict=verdict(asked.kind, contrast, asked.margin, asked.higher_is_better, asked.failures),
        to_come=asked.to_come,
        depends_on=depends_on,
    )


def _at_look(data: StudyData, index: int, asked: Asked, depends_on: tuple[Effect, ...]) -> Judged:
    """A claim as the last look left it; before the first there are differences, and no intervals.

    What became of runs after the look that decided it changes nothing.
    """
    if not data.looks:
        contrast = replace(asked.contrast, low=math.nan, high=math.nan, p=math.nan)
        return _judged(replace(asked, to_come=data.seeds_to_come), contrast, depends_on)
    o = data.looks[-1].outcomes[index]
    contrast = Contrast(o.n, o.difference, o.sd, o.low, o.high, o.p, o.df, o.tests)
    told = replace(
        asked,
        to_come=data.seeds_to_come if o.open else 0,
        failures=replace(asked.failures, more=0, fewer=0) if o.look else asked.failures,
    )
    judged = _judged(told, contrast, depends_on)
    return replace(judged, equivalence_p=o.equivalence_p, failures=asked.failures, outcome=o)


def _qualifiers(claim: Mapping[str, Any], analysis: Variance | str) -> tuple[Effect, ...]:
    if isinstance(analysis, str):
        return ()
    compare, against, crossed = claim["compare"], claim["against"], set(claim.get("interaction") or {})
    changed = {factor for factor, level in compare.items() if against.get(factor) != level}
    return analysis.qualifiers(changed, crossed, {*compare, *crossed})


def _margin(study: Study, claim: Mapping[str, Any]) -> float:
    margin = claim.get("margin") or study.target(claim["metric"]).margin
    return math.nan if margin is None else float(margin)
