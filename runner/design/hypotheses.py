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

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints

from model.fields import ConfigError
from runner.design.checking import CLOSED, told
from runner.design.levels import Level, check_level
from runner.design.program import Program

Kind = Literal["less", "greater", "equivalent", "not_worse"]
"""compare - against is below 0, above 0, within ± the margin, or no worse than the margin."""
MAX_CLAIMS = 50
"""Claims of one grid; more are refused: each makes all the others harder to support (Bonferroni)."""
Levels = dict[str, Level]
"""Factor → level."""
Margin = Annotated[
    float,
    Field(strict=True, gt=0, allow_inf_nan=False),
    told("must be a number above 0, in the metric's unit"),
]
_PAIR = "as in { load_balancing_weight = [0.0, 0.01] }"
_Pair = Annotated[tuple[Level, Level], told(f"give two levels, {_PAIR}", within=1)]
NAMED = 6
"""Measures that a message names: the language model has 28."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One expectation: `metric` at `compare` minus at `against`; how that difference should be."""

    __pydantic_config__ = CLOSED
    name: Annotated[
        str,
        StringConstraints(min_length=1, max_length=200, pattern=r"^[^\p{C}\p{Zl}\p{Zp}]*$"),
        told("say in one line of up to 200 letters what is claimed"),
    ]
    kind: Annotated[Kind, told(f"choose one of {', '.join(get_args(Kind))}")]
    metric: str = ""
    """A measure of the program; the grid's primary metric if the file names none."""
    compare: Annotated[Levels, Field(min_length=1), told("name a level, as in { noise_std = 0.5 }")]
    against: Annotated[Levels, told("name a level, as in { noise_std = 0.5 }")] = field(default_factory=dict)
    """The grid's baseline if the file names none."""
    interaction: Annotated[
        dict[str, _Pair], Field(max_length=1), told(f"name one factor and two levels, {_PAIR}")
    ] = field(default_factory=dict)
    """{factor: (first, second)}: the claim is about the difference at first minus that at second."""
    margin: Margin | None = None
    """In the metric's unit; the study's margin if None."""


def completed(
    claims: Sequence[Hypothesis],
    factors: Mapping[str, Sequence[Any]],
    baseline: Mapping[str, Any],
    margins: Mapping[str, float],
    primary: str,
    program: Program,
) -> tuple[Hypothesis, ...]:
    """The claims with the grid's baseline and primary metric where they name none, held to its factors.

    Raises:
        ConfigError: names the claim, the key, the value and the remedy.
    """
    if len(claims) > MAX_CLAIMS:
        raise ConfigError(f"claims: {len(claims)}, more than {MAX_CLAIMS}; keep those that matter")
    names: set[str] = set()
    found = []
    for number, claim in enumerate(claims, start=1):
        where = f"claims {number}"
        standard = {factor: level for factor, level in baseline.items() if factor in claim.compare}
        whole = replace(claim, metric=claim.metric or primary, against=claim.against or standard)
        _check(where, whole, factors, program)
        # A primary loss has a margin by default: ln 1.005 nats, half a percent of the perplexity.
        first = program.measures[0]
        held = whole.margin is not None or whole.metric in {*margins, *([first.name] * first.exponential)}
        if whole.kind in ("equivalent", "not_worse") and not held:
            raise ConfigError(
                f"{where}: {whole.kind} on {whole.metric} needs a margin; "
                f"add margin here, or {whole.metric} under [margins]"
            )
        if whole.name in names:
            raise ConfigError(f"{where}: name = {whole.name!r} is another claim's name too; rename one")
        names.add(whole.name)
        found.append(whole)
    return tuple(found)


def check_metric(said: str, metric: str, program: Program) -> None:
    """Refuse a metric that the program does not measure.

    Raises:
        ConfigError: begins with `said`, and names the measure that may be meant, or the first that there are.
    """
    measures = [measure.name for measure in program.measures]
    if metric not in measures:
        close = difflib.get_close_matches(metric, measures, n=1)
        more = f" and {len(measures) - NAMED} more" if len(measures) > NAMED else ""
        all_of_them = f"choose one of {', '.join(measures[:NAMED])}{more}"
        raise ConfigError(f"{said}: " + (f"did you mean {close[0]}?" if close else all_of_them))


def _check(where: str, claim: Hypothesis, factors: Mapping[str, Sequence[Any]], program: Program) -> None:
    check_metric(f"{where}: metric = {claim.metric!r}", claim.metric, program)
    if not claim.against:
        raise ConfigError(f"{where}: against = {{}}: name a level, as in {{ noise_std = 0.5 }}")
    for key, levels in (("compare", claim.compare), ("against", claim.against)):
        for factor, level in levels.items():
            check_level(f"{where}: {key}.{factor}", factor, level, factors)
    if claim.compare.keys() != claim.against.keys():
        names, others = ", ".join(claim.compare), ", ".join(claim.against)
        raise ConfigError(f"{where}: compare names {names}, against {others}; name the same factors")
    if claim.compare == claim.against:
        raise ConfigError(f"{where}: compare and against are the same; change a level")
    for factor, pair in claim.interaction.items():
        here = f"{where}: interaction.{factor}"
        if pair[0] == pair[1]:
            raise ConfigError(f"{here} = {list(pair)!r}: give two levels, {_PAIR}")
        for level in pair:
            check_level(here, factor, level, factors)
        if factor in claim.compare:
            raise ConfigError(f"{here}: compare names this factor already; take another one")
