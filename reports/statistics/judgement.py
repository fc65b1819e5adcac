"""The verdict on every declared claim; together the claims are one family, with Holm's correction over all.

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
from reports.statistics.blocks import Weights, blocks, usable
from reports.statistics.families import difference
from reports.statistics.inference import Contrast, Kind, Verdict, claim_p, equivalence, holm, verdict


@dataclass(frozen=True)
class Judged:
    """A declared claim, its contrast, and the word for it."""

    name: str
    kind: str
    metric: str
    what: str
    """The comparison in words: `noise_std=0.5 - noise_std=0.0`."""
    weights: Weights
    margin: float
    contrast: Contrast
    p: float
    """Of the test that the claim's kind asks for, before the correction."""
    holm_p: float
    equivalence_p: float
    """Of the TOST, not corrected: what EQUIVALENT rests on where the claim was another one."""
    verdict: Verdict


def judge(data: StudyData) -> list[Judged]:
    """The verdict on every declared claim, as one family."""
    claims = data.study.claims
    weights = [_weights(data.study, claim) for claim in claims]
    found = [_contrast(data, c["metric"], w) for c, w in zip(claims, weights, strict=True)]
    margins = [_margin(data.study, claim) for claim in claims]
    both = [
        claim_p(_kind(claim), contrast, margin, measure(claim["metric"]).higher_is_better)
        for claim, contrast, margin in zip(claims, found, margins, strict=True)
    ]
    same = [equivalence(contrast, margin) for contrast, margin in zip(found, margins, strict=True)]
    corrected, opposite = holm([p for p, _ in both]), holm([p for _, p in both])
    return [
        Judged(
            name=str(claim["name"]),
            kind=str(claim["kind"]),
            metric=str(claim["metric"]),
            what=describe(claim),
            weights=weights[i],
            margin=margins[i],
            contrast=found[i],
            p=both[i][0],
            holm_p=float(corrected[i]),
            equivalence_p=same[i],
            verdict=verdict(_kind(claim), found[i], float(corrected[i]), same[i], float(opposite[i])),
        )
        for i, claim in enumerate(claims)
    ]


def describe(claim: Mapping[str, Any]) -> str:
    """What a claim compares, in words."""
    text = f"{_levels(claim['compare'])} against {_levels(claim['against'])}"
    for factor, (first, second) in (claim.get("interaction") or {}).items():
        text = f"({text}) at {factor}={first} against the same at {factor}={second}"
    return text


def _weights(study: Study, claim: Mapping[str, Any]) -> Weights:
    return difference(study, claim["compare"], claim["against"], claim.get("interaction"))


def _contrast(data: StudyData, metric: str, weights: Weights) -> Contrast:
    if not usable(data, metric):
        return Contrast(0, *[math.nan] * 5)
    return blocks(data, metric).contrast(weights)


def _margin(study: Study, claim: Mapping[str, Any]) -> float:
    margin = claim.get("margin") or study.target(claim["metric"]).margin
    return math.nan if margin is None else float(margin)


def _kind(claim: Mapping[str, Any]) -> Kind:
    return cast(Kind, claim["kind"])


def _levels(levels: Mapping[str, Any]) -> str:
    return ", ".join(f"{factor}={level}" for factor, level in levels.items())
