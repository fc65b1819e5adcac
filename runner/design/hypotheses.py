"""Hypotheses: what a study expects, declared as [[claims]] in its grid file before the first run.

A `[[claims]]` entry compares the runs at some levels with the runs at others; factors that it does not
name are averaged over, seed by seed. Checked here, kept in the study's row, judged by
reports/sections/findings.py.

    compare = { noise_std = 0.5 }, against = { noise_std = 0.0 }      a level against another
    compare = { noise_std = 0.5, load_balancing_weight = 0.0 }        a condition; without `against`, the
                                                                      grid's baseline takes its place
    interaction = { load_balancing_weight = [0.0, 0.01] }             beside the two: does the difference
                                                                      depend on that factor?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.config import ConfigError
from runner.queue.schema import results

KINDS = ("less", "greater", "equivalent", "not_worse")
"""compare - against is below 0, above 0, within ± the margin, or no worse than the margin."""
METRICS = tuple(c.name for c in results.c if c.name not in ("job_id", "attempt", "recorded_at", "exact"))
MAX_CLAIMS = 50
"""Claims of one grid; more are refused: each makes all the others harder to support (Holm)."""
_KEYS = ("name", "kind", "metric", "compare", "against", "interaction", "margin")
Levels = dict[str, Any]


@dataclass(frozen=True)
class Hypothesis:
    """One expectation: `metric` at `compare` minus at `against`; how that difference should be."""

    name: str
    kind: str
    metric: str
    compare: Levels
    against: Levels
    interaction: dict[str, tuple[Any, Any]]
    """{factor: (first, second)}: the claim is about the difference at first minus that at second."""
    margin: float | None
    """In the metric's unit; None takes the study's."""

    def describe(self) -> dict[str, Any]:
        """What the study's row keeps of it."""
        return asdict(self)


def parse_claims(
    entries: Any,
    factors: Mapping[str, Sequence[Any]],
    baseline: Mapping[str, Any],
    margins: Mapping[str, float],
    primary: str,
) -> tuple[Hypothesis, ...]:
    """The claims of a grid file, held to its factors.

    Raises:
        ConfigError: names the claim, the key, the value and the remedy.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError("claims: must be a list of tables, [[claims]]")
    if len(entries) > MAX_CLAIMS:
        raise ConfigError(f"claims: {len(entries)}, more than {MAX_CLAIMS}; keep those that matter")
    claims: list[Hypothesis] = []
    for number, entry in enumerate(entries, start=1):
        claim = _claim(f"claims {number}", entry, factors, baseline, primary)
        _need_margin(f"claims {number}", claim, margins)
        if claim.name in {other.name for other in claims}:
            raise ConfigError(f"claims {number}: name = {claim.name!r} stands there twice; rename one")
        claims.append(claim)
    return tuple(claims)


def parse_margins(table: Mapping[str, Any]) -> dict[str, float]:
    """The margins of a grid file, by metric.

    Raises:
        ConfigError: one is not a number above 0.
    """
    for metric, value in table.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ConfigError(f"margins.{metric} = {value!r}: must be a number above 0, in the metric's unit")
    return {metric: float(value) for metric, value in table.items()}


def _claim(
    where: str,
    entry: Mapping[str, Any],
    factors: Mapping[str, Sequence[Any]],
    baseline: Mapping[str, Any],
    primary: str,
) -> Hypothesis:
    for key in sorted(entry.keys() - set(_KEYS)):
        raise ConfigError(f"{where}: {key!r}: no such key; keys: {', '.join(_KEYS)}")
    name = entry.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
        raise ConfigError(f"{where}: name = {name!r}: say in one line of up to 200 letters what is claimed")
    metric = _one_of(f"{where}: metric", entry.get("metric", primary), METRICS)
    compare = _levels(f"{where}: compare", entry.get("compare"), factors)
    standard = {factor: level for factor, level in baseline.items() if factor in compare}
    against = _levels(f"{where}: against", entry.get("against", standard), factors)
    if compare.keys() != against.keys():
        raise ConfigError(
            f"{where}: compare names {_names(compare)}, against {_names(against)}; name the same factors"
        )
    if compare == against:
        raise ConfigError(f"{where}: compare and against are the same; change a level")
    return Hypothesis(
        name=name,
        kind=_one_of(f"{where}: kind", entry.get("kind"), KINDS),
        metric=metric,
        compare=compare,
        against=against,
        interaction=_interaction(f"{where}: interaction", entry.get("interaction", {}), factors, compare),
        margin=_margin(f"{where}: margin", entry.get("margin")),
    )


def _one_of(where: str, value: Any, options: Sequence[str]) -> str:
    if value not in options:
        raise ConfigError(f"{where} = {value!r}: choose one of {', '.join(options)}")
    return str(value)


def _levels(where: str, value: Any, factors: Mapping[str, Sequence[Any]]) -> Levels:
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{where} = {value!r}: name a level, as in {{ noise_std = 0.5 }}")
    for factor, level in value.items():
        _check_level(f"{where}.{factor}", factor, level, factors)
    return dict(value)


def _check_level(where: str, factor: str, level: Any, factors: Mapping[str, Sequence[Any]]) -> None:
    if factor not in factors:
        raise ConfigError(f"{where}: not a factor of this grid; factors: {', '.join(factors) or 'none'}")
    if level not in factors[factor]:
        levels = ", ".join(map(str, factors[factor]))
        raise ConfigError(f"{where} = {level!r}: not one of the factor's levels, {levels}")


def _interaction(
    where: str, value: Any, factors: Mapping[str, Sequence[Any]], compare: Levels
) -> dict[str, tuple[Any, Any]]:
    example = "as in { load_balancing_weight = [0.0, 0.01] }"
    if not isinstance(value, dict) or len(value) > 1:
        raise ConfigError(f"{where} = {value!r}: name one factor and two levels, {example}")
    for factor, pair in value.items():
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise ConfigError(f"{where}.{factor} = {pair!r}: give two levels, {example}")
        for level in pair:
            _check_level(f"{where}.{factor}", factor, level, factors)
        if factor in compare:
            raise ConfigError(f"{where}.{factor}: compare names this factor already; take another one")
    return {factor: (pair[0], pair[1]) for factor, pair in value.items()}


def _margin(where: str, value: Any) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{where} = {value!r}: must be a number above 0, in the metric's unit")
    return float(value)


def _need_margin(where: str, claim: Hypothesis, margins: Mapping[str, float]) -> None:
    # val_loss has a margin by default: ln 1.005 nats, half a percent of the perplexity.
    if claim.kind in ("equivalent", "not_worse") and claim.margin is None:
        if claim.metric in margins or claim.metric == "val_loss":
            return
        raise ConfigError(
            f"{where}: {claim.kind} on {claim.metric} needs a margin; "
            f"add margin here, or {claim.metric} under [margins]"
        )


def _names(levels: Levels) -> str:
    return ", ".join(levels)
