"""Which seeds a grid runs, and how often each: the words of a grid file and of `--seeds`, checked."""

from __future__ import annotations

import re
from typing import Any

from model.config import ConfigError, RunConfig

MAX_JOBS = 200_000
"""Runs of one grid, and seeds of one --seeds; more is refused as a slip, before it fills the disk."""
MAX_REPEATS = 1_000


def parse_seeds(text: str) -> tuple[int, ...]:
    """`42..51`, `42,43,50` or a mixture.

    Raises:
        ConfigError: not such a list, a seed twice, or too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("..")
        if not re.fullmatch(r"\d{1,10}", first) or not re.fullmatch(r"\d{0,10}", last):
            raise ConfigError(f"--seeds {text}: write 42..51 or 42,43,44")
        span = range(int(first), int(last or first) + 1)
        if not span or len(span) > MAX_JOBS:
            raise ConfigError(f"--seeds {text}: {part} holds {len(span):,} seeds; write first..last")
        seeds += span
    return checked_seeds(seeds)


def checked_seeds(values: Any) -> tuple[int, ...]:
    """At least one seed, each once.

    Raises:
        ConfigError: it is not such a list.
    """
    if not isinstance(values, list) or not values:
        raise ConfigError(f"seeds = {values!r}: must list at least one seed")
    seen: set[int] = set()
    for seed in values:
        RunConfig(seed=seed)
        if seed in seen:
            raise ConfigError(f"seeds: {seed} stands there twice; remove one")
        seen.add(seed)
    return tuple(values)


def checked_repeats(value: Any) -> int:
    """How many runs of each cell and seed.

    Raises:
        ConfigError: not a whole number from 1 on.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_REPEATS:
        raise ConfigError(f"repeats = {value!r}: must be a whole number between 1 and {MAX_REPEATS:,}")
    return value
