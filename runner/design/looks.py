"""[looks] of a grid file: at which numbers of seeds a study is looked at, and stops when it knows.

    [looks]
    seeds = [3, 6, 10, 15]            # seeds at each look, the last is the most
    spending = "obrien-fleming"       # or pocock
    futility = 0.1                    # optional: stop a claim whose conditional power falls below it
    drop = true                       # false: conditions that no open claim needs get their seeds, too

The design is fixed when the study is made. What a look means: docs/method.md; how it is made:
runner/queue/looks.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, Strict

from model.config import ConfigError
from runner.design.checking import CLOSED, told

FEWEST_SEEDS = 3
"""At the first look: with fewer complete seeds no claim is decided."""
MOST_LOOKS = 20
Spending = Literal["obrien-fleming", "pocock"]
_GROWING = f"give 2 to {MOST_LOOKS} growing numbers from {FEWEST_SEEDS} on, as in [3, 6, 10, 15]"


def _growing(seeds: tuple[int, ...]) -> tuple[int, ...]:
    grows = all(after > before for before, after in itertools.pairwise(seeds))
    if not 2 <= len(seeds) <= MOST_LOOKS or seeds[0] < FEWEST_SEEDS or not grows:
        raise ConfigError(f"looks.seeds = {list(seeds)}: {_GROWING}")
    return seeds


@dataclass(frozen=True, kw_only=True)
class Looks:
    """When a study is looked at."""

    __pydantic_config__ = CLOSED
    seeds: Annotated[tuple[Annotated[int, Strict()], ...], told(_GROWING, within=1), AfterValidator(_growing)]
    """How many there are at each look."""
    spending: Annotated[Spending, told(f"choose one of {', '.join(get_args(Spending))}")] = "obrien-fleming"
    """How the error of .05 is spent over the looks (Lan and DeMets 1983)."""
    futility: Annotated[
        Annotated[float, Field(strict=True, gt=0, lt=1)] | None,
        told("must be a probability between 0 and 1", within=1),
    ] = None
    """A claim whose conditional power is below it gets no further seeds."""
    drop: Annotated[bool, Strict(), told("must be true or false")] = True
    """Conditions that no open claim needs get no further seeds."""

    def order(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """The study's seeds in their order: those that were given, then the numbers that follow."""
        further = itertools.count(max(seeds) + 1)
        return tuple(itertools.islice(itertools.chain(seeds, further), self.seeds[-1]))

    def plan(self, order: Sequence[int]) -> dict[str, Any]:
        """The design as the study's row keeps it."""
        return {
            "seeds": list(self.seeds),
            "order": list(order),
            "spending": self.spending,
            "futility": self.futility,
            "drop": self.drop,
        }


def parse_looks(text: str) -> tuple[int, ...]:
    """The numbers of `--looks 3,6,10,15`.

    Raises:
        ConfigError: not such a list.
    """
    if not re.fullmatch(r"\d{1,6}(,\s*\d{1,6})*", text.strip()):
        raise ConfigError(f"--looks {text}: write the seeds at each look, as in 3,6,10,15")
    return _growing(tuple(int(part) for part in text.split(",")))
