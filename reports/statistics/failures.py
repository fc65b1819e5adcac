"""Runs that diverged, counted and tested: a loss that does not exist is a result, not a gap.

Seeds are blocks here, too: in each the two sides of a contrast either diverged alike or one did more. For two
conditions that is McNemar's exact test on paired seeds; for averages of conditions it is the sign test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Failures:
    """How often the two sides of a contrast diverged, over the runs that have ended either way."""

    first: int
    """Diverged runs of the conditions with a positive weight,"""
    first_of: int
    second: int
    second_of: int
    more: int
    """Seeds in which the first side diverged more,"""
    fewer: int
    """and those in which the second did."""

    @property
    def balance(self) -> int:
        """1 where the first side diverged in more seeds, -1 where the second did, 0 where neither."""
        return int(self.more > self.fewer) - int(self.more < self.fewer)

    @property
    def any(self) -> bool:
        """Whether a run of either side diverged."""
        return self.first + self.second > 0

    @property
    def p(self) -> float:
        """Exact, two-sided: more seeds one way than a fair coin gives. NaN where no seed differs."""
        if not self.more + self.fewer:
            return math.nan
        return float(stats.binomtest(self.more, self.more + self.fewer).pvalue)


def count(diverged: npt.ArrayLike, ended: npt.ArrayLike, weights: npt.ArrayLike) -> Failures:
    """Count the failures of a contrast.

    Args:
        diverged: whether a run diverged. Shape: (S, C).
        ended: whether it diverged or left a result; what is still to run is neither. Shape: (S, C).
        weights: of the conditions in the contrast. Shape: (C,).
    """
    failed, over = np.asarray(diverged, dtype=bool), np.asarray(ended, dtype=bool)
    w = np.asarray(weights, dtype=float)
    plus, minus = w > 0, w < 0
    by_seed = (failed @ w)[over.all(axis=1)]
    return Failures(
        first=int(failed[:, plus].sum()),
        first_of=int(over[:, plus].sum()),
        second=int(failed[:, minus].sum()),
        second_of=int(over[:, minus].sum()),
        more=int((by_seed > _ROUNDING).sum()),
        fewer=int((by_seed < -_ROUNDING).sum()),
    )
