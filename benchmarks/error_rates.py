"""How often the report is wrong: simulated studies whose truth is known, put through the report's own
functions.

    nice -n 5 python benchmarks/error_rates.py                 # a few minutes on one core

Every line is a share of studies, with the Monte Carlo standard error of that share and what it should be.
Seeded: the same numbers each time. docs/method.md has the table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reports.statistics import failures, power
from reports.statistics.anova import repeated_measures
from reports.statistics.dose import fit
from reports.statistics.inference import Array, Contrast, family, weighted_contrast
from reports.statistics.words import Kind, direction, verdict, within

MARGIN = 0.005
Study = Callable[[np.random.Generator], bool]
"""One simulated study: whether the thing that the line counts happened."""


def contrasts(values: Array) -> list[Contrast]:
    """Each other condition against the first, as one family. Shape: (S, C)."""
    return family([weighted_contrast(values[:, [i, 0]], [1.0, -1.0]) for i in range(1, values.shape[1])])


def runs(random: np.random.Generator, seeds: int, means: Array) -> Array:
    """Losses with a seed effect ten times the noise, and noise that grows from condition to condition."""
    noise = 0.002 * np.linspace(1.0, 3.0, means.size)
    return means + 0.02 * random.normal(size=(seeds, 1)) + noise * random.normal(size=(seeds, means.size))


def false_direction(random: np.random.Generator) -> bool:
    return any(direction(c) for c in contrasts(runs(random, 5, np.zeros(7))))


def missed(random: np.random.Generator) -> bool:
    """An interval of the family that does not hold its difference, some of them 0 and some large."""
    means = np.array([0.0, 0.0, 0.001, 0.005, 0.02, 0.1, 0.0])
    found = contrasts(runs(random, 5, means))
    return any(not c.low <= m <= c.high for c, m in zip(found, means[1:], strict=True))


def false_negligible(random: np.random.Generator) -> bool:
    """Seven conditions whose difference is the margin itself."""
    means = np.array([0.0, *[MARGIN] * 7])
    return any(within(c, MARGIN) for c in contrasts(runs(random, 10, means) / 4 + 0.75 * means))


def false_verdict(random: np.random.Generator) -> bool:
    """Claims of every kind, each false by a hair or with nothing to find: any supported or refuted."""
    means = np.array([0.0, 0.0, MARGIN, MARGIN, -MARGIN, 0.0])
    kinds: tuple[Kind, ...] = ("greater", "equivalent", "not_worse", "equivalent", "less")
    found = contrasts(runs(random, 10, means))
    return any(verdict(k, c, MARGIN) != "OPEN" for k, c in zip(kinds, found, strict=True))


def false_slope(random: np.random.Generator) -> bool:
    """No response on average, but one that differs from seed to seed."""
    levels = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0])
    values = runs(random, 5, np.zeros(8)) + 0.01 * random.normal(size=(5, 1)) * levels
    found = fit("noise", levels, values, (1, 2, 3, 4, 5))
    return min(found.line.p, found.bend.p) < 0.05


def false_effect(name: int) -> Study:
    """An effect of a 3 × 2 design at p below .05; nothing is there but unequal variances."""

    def study(random: np.random.Generator) -> bool:
        # The first factor's effect differs from seed to seed, the interaction's does not.
        values = runs(random, 10, np.zeros(6)) + 0.01 * random.normal(size=(10, 3)).repeat(2, axis=1)
        return repeated_measures(values, {"a": 3, "b": 2}).effects[name].p < 0.05

    return study


def false_failures(random: np.random.Generator) -> bool:
    """Both conditions diverge in three of ten seeds: McNemar's test below .05."""
    diverged = random.random((20, 2)) < 0.3
    return failures.count(diverged, np.ones((20, 2), dtype=bool), [1, -1]).p < 0.05


def found(kind: Kind, effect: float, margin: float, tests: int) -> tuple[Study, float]:
    """A claim with the seeds that the plan asks for: whether it is supported; and the power promised."""
    seeds = power.seeds_needed(1.0, effect, tests=tests, kind=kind, margin=margin) or 0

    def study(random: np.random.Generator) -> bool:
        contrast = weighted_contrast(random.normal(effect, 1.0, (seeds, 1)), [1.0]).corrected(tests)
        return verdict(kind, contrast, margin) == "SUPPORTED"

    return study, power.power(kind, effect, margin, seeds, tests)


def stein(random: np.random.Generator) -> tuple[bool, float]:
    """Five seeds, then as many as Stein's rule asks for: does the final interval miss; its half-width."""
    first = random.normal(size=5)
    total = power.stein_seeds(float(first.std(ddof=1)), 5, 0.5) or 0
    values = np.concatenate([first, random.normal(size=total - 5)])
    contrast = weighted_contrast(values[:, None], [1.0], np.arange(total) < 5)
    return not contrast.low <= 0 <= contrast.high, (contrast.high - contrast.low) / 2


def pilot(random: np.random.Generator) -> bool:
    """Five seeds, then as many as their sd asks for; the test takes the sd of those that were added."""
    first = random.normal(size=5)
    total = max(5, power.seeds_needed(float(first.std(ddof=1)), 0.5, there=5) or 0)
    values = np.concatenate([first, random.normal(size=total - 5)])
    return bool(direction(weighted_contrast(values[:, None], [1.0], np.arange(total) >= 5)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=10_000, help="simulated studies a line")
    studies = parser.parse_args().studies
    lines: list[tuple[str, Study, str]] = [
        ("a family of 6: a direction where there is none", false_direction, "at most .05"),
        ("a family of 6: an interval that misses its difference", missed, "at most .05"),
        ("7 differences of exactly the margin: any called negligible", false_negligible, "at most .05"),
        ("5 claims of four kinds, none decidable: any verdict", false_verdict, "at most .05"),
        ("dose: a line or a bend where seeds differ about none", false_slope, "at most .05"),
        ("analysis of variance: factor of 3 levels, unequal variances", false_effect(0), "at most .05"),
        ("analysis of variance: factor of 2 levels", false_effect(1), "at most .05"),
        ("analysis of variance: interaction", false_effect(2), "at most .05"),
        ("failures: as many on both sides", false_failures, "at most .05"),
        ("more seeds, planned by the sd of 5: a direction where there is none", pilot, "at most .05"),
    ]
    for kind, effect, margin, tests in (
        ("greater", 0.8, math.nan, 1),
        ("greater", 1.5, math.nan, 6),
        ("not_worse", 0.0, 1.0, 6),
        ("equivalent", 0.0, 1.0, 1),
        ("equivalent", 0.2, 1.0, 6),
    ):
        study, promised = found(kind, effect, margin, tests)  # type: ignore[arg-type]
        lines.append((f"power: {kind}, {effect} sd, {tests} in the family", study, f"{promised:.4f}"))
    print(f"| of {studies:,} simulated studies | share | ± | should be |\n|:---|---:|---:|---:|")
    for number, (what, study, wanted) in enumerate(lines):
        random = np.random.default_rng(number)
        _row(what, sum(study(random) for _ in range(studies)) / studies, studies, wanted)
    random = np.random.default_rng(99)
    misses, widths = zip(*(stein(random) for _ in range(studies)), strict=True)
    _row("Stein's two stages: the final interval misses", sum(misses) / studies, studies, ".05")
    print(f"\nStein's two stages: the widest half-width is {max(widths):.4f}, where 0.5 was asked for.")


def _row(what: str, share: float, studies: int, wanted: str) -> None:
    print(f"| {what} | {share:.4f} | {math.sqrt(share * (1 - share) / studies):.4f} | {wanted} |", flush=True)


if __name__ == "__main__":
    main()
