"""Repeated-measures analysis of variance of the complete blocks: each effect against its own error.

Every seed has all conditions, so an effect's error is how much that effect itself differs from seed to seed
(its seed × effect term), as in statsmodels' AnovaRM; one residual for all effects would lend an effect that
varies much the small error of one that does not. Beyond two levels the degrees of freedom are Greenhouse and
Geisser's (1959), which asks no equal variances. The check of the paired contrasts, and what says whether a
main effect depends on another factor.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from scipy import linalg, stats

from reports.reading.study import Study
from reports.statistics.blocks import Blocks
from reports.statistics.inference import ALPHA, ROUNDING, Array, unrounded
from runner.queue.where import counted

MAX_CONDITIONS = 256
"""A design beyond it is not a factorial that anyone reads."""


@dataclass(frozen=True)
class Effect:
    """A row of the table: a factor or an interaction; `factors` names which."""

    factors: tuple[str, ...]
    sum_squares: float
    df: int
    error_sum: float
    """Of its seed × effect term."""
    error_df: int
    epsilon: float
    """Greenhouse and Geisser's: 1 where the effect's contrasts vary alike, 1 / df at worst."""
    f: float
    p: float
    """From `f` with epsilon × df and epsilon × error_df; NaN where the error is 0."""


@dataclass(frozen=True)
class Variance:
    """The analysis of S complete blocks of C conditions."""

    effects: tuple[Effect, ...]
    block_sum: float
    seeds: int
    conditions: int

    @property
    def residual_sum(self) -> float:
        return sum(effect.error_sum for effect in self.effects)

    @property
    def residual_df(self) -> int:
        return sum(effect.error_df for effect in self.effects)

    @property
    def residual(self) -> float:
        """Variance of a run around its seed and condition: the error terms, pooled."""
        return self.residual_sum / self.residual_df

    @property
    def seed(self) -> float:
        """Variance between seeds: (mean square of blocks - residual) / conditions, at least 0."""
        square = self.block_sum / (self.seeds - 1)
        excess = unrounded(square - self.residual, np.array([square, self.residual]))
        return max(0.0, excess / self.conditions)

    def qualifiers(self, changed: Set[str], crossed: Set[str], named: Set[str]) -> tuple[Effect, ...]:
        """The interactions with p below .05 that qualify a comparison, the smallest p first.

        Args:
            changed: the factors whose levels are compared.
            crossed: factors at two levels of which the comparisons are held against each other.
            named: those and all whose level is given; over every other factor the comparison is an average,
                and what is averaged is not one thing where an interaction with that factor is there.
        """
        found = [
            effect
            for effect in self.effects
            if effect.p < ALPHA
            and changed & set(effect.factors)
            and crossed <= set(effect.factors)
            and not set(effect.factors) <= named
        ]
        return tuple(sorted(found, key=lambda effect: effect.p))


def analyse(study: Study, matrix: Blocks) -> Variance | str:
    """The analysis, or the reason why there is none."""
    cells = study.cells()
    varied = [factor for factor, levels in study.factors.items() if len(levels) > 1]
    if len(cells) < 2 or not varied:
        return "one condition: there is nothing to analyse"
    if len(cells) > MAX_CONDITIONS:
        return f"{len(cells)} conditions, more than {MAX_CONDITIONS}"
    empty = [cell for cell in cells if cell not in matrix.columns or np.isnan(matrix.column(cell)).all()]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        return f"no run of {study.label(empty[0])}{more} has a result"
    seeds, values = matrix.complete(cells)
    if len(seeds) < 2:
        return f"{counted(len(seeds), 'seed')} with every condition finished; two are needed"
    rounding = ROUNDING * np.abs(values).max()
    if np.ptp(values, axis=1).max() <= rounding:
        return "the conditions are equal within every seed: there is no variance to explain"
    left = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    if np.abs(left).max() <= rounding:
        return "every seed has the same differences: there is no error to hold them against"
    sizes = {factor: len(study.factors[factor]) for factor in varied}
    return repeated_measures(values, sizes)


def repeated_measures(values: Array, sizes: dict[str, int]) -> Variance:
    """All main effects and interactions. Shape of values: (S, C), complete, the first factor outermost."""
    seeds, conditions = values.shape
    terms = [t for size in range(1, len(sizes) + 1) for t in itertools.combinations(sizes, size)]
    means = values.mean(axis=1)
    block_sum = conditions * float(((means - means.mean()) ** 2).sum())
    return Variance(tuple(_effect(values, sizes, t) for t in terms), block_sum, seeds, conditions)


def _effect(values: Array, sizes: dict[str, int], factors: tuple[str, ...]) -> Effect:
    # Orthonormal contrasts of the effect: Helmert's rows for its own factors, the mean over the others.
    parts = [linalg.helmert(n) if f in factors else np.full((1, n), n**-0.5) for f, n in sizes.items()]
    scores = values @ functools.reduce(np.kron, parts).T  # (S, df): each seed's own effect
    seeds, df = scores.shape
    centred = scores - scores.mean(axis=0)
    total = seeds * float((scores.mean(axis=0) ** 2).sum())
    error, error_df = float((centred**2).sum()), df * (seeds - 1)
    # Squares of no more than the rounding of every value: an effect, or an error, that is not there.
    rounding = values.size * (ROUNDING * np.abs(values).max()) ** 2
    total = total if total > rounding else 0.0
    if error <= rounding:
        return Effect(factors, total, df, error, error_df, 1.0, math.nan, math.nan)
    covariance = centred.T @ centred
    epsilon = float(np.trace(covariance) ** 2 / (df * (covariance**2).sum()))
    f = total / df / (error / error_df)
    p = float(stats.f.sf(f, epsilon * df, epsilon * error_df))
    return Effect(factors, total, df, error, error_df, epsilon, f, p)
