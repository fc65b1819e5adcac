"""Analysis of variance of the complete blocks: sums of squares, F, p, and the components of the variance.

A randomised complete block design: factors and their two-way interactions, the seed as block, type II sums
of squares (statsmodels). The seed and residual variance components are those of its mean squares. Printed by
reports/sections/anova.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from reports.reading.study import Study
from reports.statistics.blocks import Blocks
from reports.statistics.inference import ROUNDING, Array, unrounded

MAX_CONDITIONS = 256
"""The fit takes the cube of the conditions; a design beyond it is not a factorial that anyone reads."""


@dataclass(frozen=True)
class Effect:
    """A row of the table: a factor or an interaction; `factors` names which."""

    factors: tuple[str, ...]
    sum_squares: float
    df: int
    f: float
    p: float


@dataclass(frozen=True)
class Variance:
    """The analysis of S complete blocks of C conditions."""

    effects: tuple[Effect, ...]
    block: Effect
    residual_sum: float
    residual_df: int
    seeds: int
    conditions: int

    @property
    def residual(self) -> float:
        """Variance of a run around its seed and condition: the residual mean square."""
        return self.residual_sum / self.residual_df

    @property
    def seed(self) -> float:
        """Variance between seeds: (mean square of blocks - residual) / conditions, at least 0."""
        square = self.block.sum_squares / self.block.df
        excess = unrounded(square - self.residual, np.array([square, self.residual]))
        return max(0.0, excess / self.conditions)


def analyse(study: Study, matrix: Blocks) -> Variance | str:
    """The analysis, or the reason why there is none."""
    cells = study.cells()
    varied = [factor for factor, levels in study.factors.items() if len(levels) > 1]
    if len(cells) < 2 or not varied:
        return "one condition: there is nothing to analyse"
    if len(cells) > MAX_CONDITIONS:
        return f"{len(cells)} conditions, more than {MAX_CONDITIONS}"
    if set(cells) - set(matrix.cells):
        return "a condition has no runs"
    seeds, values = matrix.complete(cells)
    if len(seeds) < 2:
        return f"{len(seeds)} seed{'s' * (len(seeds) != 1)} with every condition finished; two are needed"
    rounding = ROUNDING * np.abs(values).max()
    left = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    if np.ptp(values, axis=1).max() <= rounding:
        return "the conditions are equal within every seed: there is no variance to explain"
    if np.abs(left).max() <= rounding:
        return "every seed has the same differences: there is no residual to hold them against"
    return _fit(study, varied, values)


def _fit(study: Study, varied: list[str], values: Array) -> Variance:
    """Type II sums of squares. Shape of values: (S, C), complete."""
    # Two seconds of imports that no other table needs.
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    seeds, conditions = values.shape
    means = values.mean(axis=1, keepdims=True)
    levels = [study.values(cell) for cell in study.cells()] * seeds
    frame = pd.DataFrame({f"f{i}": [str(v[name]) for v in levels] for i, name in enumerate(varied)})
    # Complete blocks are orthogonal to the factors: taking each seed's mean out leaves the same sums of
    # squares as a column a seed would, and ten thousand runs fit as fast as eighteen.
    frame["y"] = (values - means).ravel()
    terms = [(i,) for i in range(len(varied))] + list(itertools.combinations(range(len(varied)), 2))
    formula = "y ~ " + " + ".join(":".join(f"C(f{i})" for i in term) for term in terms)
    sums = anova_lm(ols(formula, frame).fit(), typ=2)["sum_sq"].to_numpy()
    dfs = [math.prod(len(study.factors[varied[i]]) - 1 for i in term) for term in terms]
    rest, rest_df = float(sums[-1]), (seeds * conditions - 1) - sum(dfs) - (seeds - 1)
    block_sum = conditions * float(((means - means.mean()) ** 2).sum())

    rounding = values.size * (ROUNDING * np.abs(values).max()) ** 2

    def effect(factors: tuple[str, ...], total: float, df: int) -> Effect:
        # Squares of no more than the rounding of every value: an effect that is not there.
        total = total if total > rounding else 0.0
        f = total / df / (rest / rest_df)
        return Effect(factors, total, df, f, float(stats.f.sf(f, df, rest_df)))

    found = [
        effect(tuple(varied[i] for i in t), float(s), d)
        for t, s, d in zip(terms, sums[:-1], dfs, strict=True)
    ]
    return Variance(tuple(found), effect(("seed",), block_sum, seeds - 1), rest, rest_df, seeds, conditions)
