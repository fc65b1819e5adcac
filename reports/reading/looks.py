"""What a look at a growing study leaves of each claim; what it decides: reports/statistics/looks.py."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """A claim as a look left it; NaN where there is no number."""

    name: str
    n: int
    """Seeds that have every condition of it."""
    difference: float
    sd: float
    df: int
    low: float
    """Ends of the repeated interval: at the look's level, corrected for `tests` claims."""
    high: float
    p: float
    """Against no difference, corrected for the looks and for `tests` claims."""
    equivalence_p: float
    """Against a difference of the margin, corrected alike."""
    level: float
    """The two-sided level of the look's t test."""
    tests: int
    """Claims that were open when it was tested (Holm)."""
    verdict: str
    look: int
    """Which look decided it, from 1; 0 while it is open."""
    power: float
    """While it is open: the chance that the last look decides it, if the difference is what it seems."""
    futile: bool
    """That chance is below the design's limit: it alone is no reason for further seeds."""

    @property
    def open(self) -> bool:
        """Whether it is a reason for further seeds."""
        return not self.look and not self.futile

    def plain(self) -> dict[str, Any]:
        """As it is stored: JSON has no NaN and no infinity."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }
