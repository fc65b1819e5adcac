"""Group-sequential designs: how strict each look at a growing study must be, so that all of them err at .05.

The spending functions are Lan and DeMets's (1983), over the fraction of the seeds; the boundaries come from
Armitage, McPherson and Rowe's (1969) recursion over independent increments (Jennison and Turnbull 2000,
chapter 19). A look is a paired t test at a nominal level. With few seeds successive t tests are not what the
recursion assumes, so that the levels that are used are fitted to the t tests themselves (`levels`). Held to
published tables in tests/statistics/test_sequential.py. What is made of them: reports/statistics/looks.py.
Shapes: K looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, special, stats

from reports.statistics.inference import ALPHA, Array

Spending = Literal["obrien-fleming", "pocock"]
PATHS = 2**19
"""Simulated studies without a difference that the levels are fitted to: at .05 their error is 0.0003."""
FEWEST_EXITS = 500
"""Fewer simulated studies than this fix no level; what is to be spent is then the level, and errs less."""
_SEED = 20_130_101
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(300)
_FAR = 40.0
"""Standard deviations beyond which no study ends."""


@dataclass(frozen=True)
class Design:
    """When a study is looked at, fixed before its first run."""

    seeds: tuple[int, ...]
    """How many there are at each look, growing; the last is the most. Shape: (K,)."""
    spending: Spending = "obrien-fleming"
    futility: float | None = None
    """A claim whose conditional power is below it gets no further seeds; None stops none for that."""

    @property
    def fractions(self) -> tuple[float, ...]:
        """Share of the seeds at each look. Shape: (K,)."""
        return tuple(count / self.seeds[-1] for count in self.seeds)


def spent(spending: Spending, fraction: float, alpha: float = ALPHA) -> float:
    """The share of studies without a difference that may have ended by then, two-sided (Lan, DeMets 1983)."""
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1) * fraction)
    return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(fraction)))


def boundaries(spending: Spending, fractions: Sequence[float], alpha: float = ALPHA) -> tuple[float, ...]:
    """The |z| at which a study ends at each look. Shapes: (K,) → (K,).

    Each is solved for, so that the studies which end there are what the spending function grants.
    """
    found: list[float] = []
    before = 0.0
    density = _Density.start()
    for fraction in fractions:
        granted = spent(spending, fraction, alpha)
        found.append(density.bound(fraction, granted - before))
        density = density.beyond(fraction, found[-1])
        before = granted
    return tuple(found)


@dataclass(frozen=True)
class _Density:
    """Where the studies are that go on: z × √fraction, which has independent increments."""

    fraction: float
    at: Array
    mass: Array

    @staticmethod
    def start() -> _Density:
        return _Density(0.0, np.zeros(1), np.ones(1))

    def _sd(self, fraction: float) -> float:
        """The standard deviation of each one's way to `fraction`."""
        return math.sqrt(fraction - self.fraction)

    def ends(self, fraction: float, bound: float) -> float:
        """The share that is beyond ± bound at `fraction`."""
        sd, end = self._sd(fraction), bound * math.sqrt(fraction)
        beyond = stats.norm.sf((end - self.at) / sd) + stats.norm.cdf((-end - self.at) / sd)
        return float(self.mass @ beyond)

    def bound(self, fraction: float, share: float) -> float:
        """The bound that ends this share of the studies."""
        if self.ends(fraction, _FAR) >= share or self.ends(fraction, 0.0) <= share:
            return _FAR if share < 0.5 else 0.0
        return float(optimize.brentq(lambda b: self.ends(fraction, b) - share, 0.0, _FAR, xtol=1e-10))

    def beyond(self, fraction: float, bound: float) -> _Density:
        """Those that are within ± bound at `fraction` and go on."""
        # Nobody is further out than eight standard deviations, wherever the bound is.
        sd, reach = self._sd(fraction), min(bound, 8.0) * math.sqrt(fraction)
        at = reach * _NODES
        density = stats.norm.pdf((at[:, None] - self.at) / sd) @ self.mass / sd
        return _Density(fraction, at, density * _WEIGHTS * reach)


def nominal(design: Design, alpha: float = ALPHA) -> tuple[float, ...]:
    """The two-sided level of each look where the sd is known. Shape: (K,)."""
    bounds = boundaries(design.spending, design.fractions, alpha)
    return tuple(float(2 * stats.norm.sf(bound)) for bound in bounds)


@lru_cache(maxsize=4096)
def levels(design: Design, alpha: float = ALPHA) -> tuple[float, ...]:
    """The two-sided level at which each look's paired t test is made. Shape: (K,).

    Fitted to the t tests of simulated studies in which nothing differs (seeded), so that those which end by
    a look are the share that is granted, however few seeds there are. Normal differences are assumed, as by
    every t test; their sd is not.
    """
    return fitted(design.seeds, [spent(design.spending, fraction, alpha) for fraction in design.fractions])


def fitted(seeds: tuple[int, ...], granted: Sequence[float]) -> tuple[float, ...]:
    """Levels at which these shares of studies without a difference have ended by each look. Shape: (K,)."""
    p, alive, before, found = _p_values(seeds), np.ones(PATHS, dtype=bool), 0.0, []
    for look, share in enumerate(granted):
        room = int(share * PATHS) - (PATHS - int(alive.sum()))
        if look == 0 or room < FEWEST_EXITS:
            level = share - before
        else:
            level = float(np.partition(p[alive, look], room)[room])
        found.append(level)
        alive &= p[:, look] >= level
        before = share
    return tuple(found)


def error(design: Design, used: Sequence[float], paths: int = PATHS) -> tuple[float, ...]:
    """The share of simulated studies without a difference that have ended by each look. Shapes: (K,) → (K,).

    Args:
        used: the two-sided level of each look's paired t test.
        paths: how many of the simulated studies are asked.
    """
    below = _p_values(design.seeds)[:paths] < np.asarray(used)
    return tuple(float(share) for share in np.logical_or.accumulate(below, axis=1).mean(axis=0))


def adjusted(design: Design, look: int, p: float, tests: int = 1) -> float:
    """The p of a look's t test, corrected for the looks and for `tests` claims: below .05 where it decides.

    The smallest error of the whole study, over all claims and looks, at which this look would decide
    (Jennison and Turnbull 2000, section 9.3, for repeated p values).

    Args:
        look: from 0.
    """
    if math.isnan(p):
        return math.nan
    alphas, at = _ladder(design, look, tests)
    if p >= math.exp(at[-1]):
        return 1.0
    return min(1.0, tests * math.exp(float(np.interp(math.log(max(p, 1e-300)), at, alphas))))


@lru_cache(maxsize=512)
def _ladder(design: Design, look: int, tests: int) -> tuple[Array, Array]:
    """Errors of a whole study, and the level of one look at each; logarithms of both. Shapes: (A,), (A,).

    The error that decides, .05 / tests, is one of them: what is read off between is never on its wrong side.
    """
    alphas = np.array(sorted({ALPHA / tests, *np.geomspace(1e-6, 0.9, 16).tolist()}))
    at = np.array([levels(design, float(alpha))[look] for alpha in alphas])
    return np.log(alphas), np.log(np.maximum.accumulate(np.maximum(at, 1e-300)))


@lru_cache(maxsize=8)
def _p_values(seeds: tuple[int, ...]) -> Array:
    """The two-sided p of the paired t test at each look, where nothing differs. Shape: (PATHS, K)."""
    found = t_statistics(np.random.default_rng(_SEED), seeds, PATHS)
    return np.stack([t_p(found[:, look], count - 1) for look, count in enumerate(seeds)], axis=1)


def t_statistics(random: np.random.Generator, seeds: Sequence[int], paths: int, effect: float = 0.0) -> Array:
    """Paired t statistics of growing studies, at each look. Shape: (paths, K).

    Args:
        effect: the true difference in sd of the seeds' differences.
    """
    total, squares, before, found = np.zeros(paths), np.zeros(paths), 0, []
    for count in seeds:
        new = count - before
        mean = effect + random.standard_normal(paths) / math.sqrt(new)
        # The squares within the new block are independent of its mean.
        squares += new * mean**2 + (random.chisquare(new - 1, paths) if new > 1 else 0.0)
        total += new * mean
        before = count
        variance = (squares - total**2 / count) / (count - 1)
        found.append(total / np.sqrt(count * variance))
    return np.stack(found, axis=1)


def t_p(t: Array, df: int) -> Array:
    """Two-sided p values of t statistics. Any shape."""
    p: Array = 2 * special.stdtr(df, -np.abs(t))
    return p


def t_reach(level: float, df: int) -> float:
    """Standard errors from an estimate to the end of its two-sided interval of that level."""
    return float(-special.stdtrit(df, level / 2)) if level > 0 else math.inf
