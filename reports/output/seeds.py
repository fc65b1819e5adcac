"""`power`: how many seeds a study needs for a stated difference or half-width, as text for a terminal.

The numbers: reports/statistics/power.py. The command that adds the seeds comes from the caller, who knows the
queue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from reports.reading.frames import StudyData, choose_study, load
from reports.reading.study import Target
from reports.reading.units import UnknownOption, describe_difference, parse_difference
from reports.sections.costs import seconds_a_seed
from reports.sections.power import count
from reports.statistics.analysis import Options, analyse, baseline_perplexity
from reports.statistics.looks import worth
from reports.statistics.power import MAX_SEEDS, Need, needs
from reports.statistics.sequential import Design
from reports.tables import DASH, number, plain
from runner.queue.where import counted

EFFECTS: tuple[float, ...] = (0.5, 1.0, 1.5)
"""True differences that looks are planned for where none is stated, in sd of the seeds' differences."""
_DECLARED = "Looks are declared before the first run: enqueue --looks, or [looks] in the grid file."


@dataclass(frozen=True)
class Plan:
    """What to say, and which seeds to add: `45..52`, empty where none is needed or none can be known."""

    study: str
    text: str
    seeds: str
    total: int = 0
    """How many there are then in all."""
    event: dict[str, Any] = field(default_factory=dict)
    """What the database keeps of it: the first stage, which decides how the final interval is computed."""


def plan(
    connection: sa.Connection,
    study: str | None,
    difference: str | None,
    half_width: str | None,
    metric: str | None = None,
) -> Plan:
    """Plan for one of the two: a difference to be found with 80 % power, or an interval's half-width.

    Raises:
        UnknownOption: neither or both, or one that cannot be read.
    """
    if (difference is None) == (half_width is None):
        raise UnknownOption("power: give --difference 0.5ppl or --half-width 0.005nats, one of them")
    data = load(connection, choose_study(connection, study)[0])
    analysis = analyse(data, Options(metric=metric))
    if data.study.looks:
        raise UnknownOption(f"power: {data.study.name} has looks, which say how many seeds it gets")
    target = analysis.target
    perplexity = baseline_perplexity(data, target.measure)
    option, written = ("--difference", difference) if difference else ("--half-width", half_width)
    value = parse_difference(option, str(written), target.measure, perplexity)
    asked = (value, None) if difference else (None, value)
    wanted = needs(analysis.judged, analysis.families, target, *asked)
    planned = _plan(data, target, wanted, describe_difference(value, target, perplexity), bool(difference))
    if not planned.seeds:
        return planned
    rule = "difference" if difference else "half-width"
    return replace(planned, event=_event(data, target.metric, rule, value, planned.total))


def plan_looks(
    connection: sa.Connection,
    study: str | None,
    seeds: tuple[int, ...],
    difference: str | None,
    metric: str | None = None,
) -> str:
    """What looks at these numbers of seeds would be worth for this study's claims, beside the fixed design.

    Effects are in sd of the seeds' differences; a stated difference becomes one by the largest sd observed.

    Raises:
        UnknownOption: a difference that cannot be read.
    """
    data = load(connection, choose_study(connection, study)[0])
    tests = max(1, len(data.study.claims))
    effects, stated = EFFECTS, ""
    if difference is not None:
        effect, described = _in_sd(data, difference, metric)
        effects, stated = (effect,), f" {described} is {effect:.2f} sd, by the largest sd observed."
    hours = seconds_a_seed(data) / 3600
    rows: list[tuple[str, ...]] = [("difference", "power", "fixed design", "seeds", "of", "hours", "of")]
    for each in (worth(Design(seeds), effect, tests) for effect in effects):
        took = [f"{count * hours:.2g}" if hours else DASH for count in (each.seeds, seeds[-1])]
        shares = (f"{each.power:.3f}", f"{each.fixed:.3f}", f"{each.seeds:.1f}", str(seeds[-1]))
        rows.append((f"{each.effect:.2f} sd", *shares, *took))
    shared = f", as one of {tests} claims that are open" if tests > 1 else ""
    at = ", ".join(map(str, seeds))
    head = f"{data.study.name}: looks at {at} seeds, for a claim of a direction{shared}.{stated}"
    return f"{head}\n\n{aligned(rows)}\n\nHours are one device's. {_DECLARED}"


def _in_sd(data: StudyData, difference: str, metric: str | None) -> tuple[float, str]:
    """A stated difference in the largest sd of the seeds' differences, and in words."""
    analysis = analyse(data, Options(metric=metric))
    perplexity = baseline_perplexity(data, analysis.metric)
    value = parse_difference("--difference", difference, analysis.metric, perplexity)
    found = needs(analysis.judged, analysis.families, analysis.target, value, None)
    sd = max((need.sd for need in found if need.sd > 0), default=math.nan)
    if math.isnan(sd):
        raise UnknownOption(f"power: {data.study.name} has no sd yet; run seeds, or leave out --difference")
    return value / sd, describe_difference(value, analysis.target, perplexity)


def _event(data: StudyData, metric: str, rule: str, value: float, total: int) -> dict[str, Any]:
    """The seeds that have results now; those of Stein's first stage stay the first."""
    seeds = sorted(set(data.done["seed"].tolist()))
    before = [p for p in data.plans if p.metric == metric and p.rule == rule == "half-width"]
    return {
        "study_id": data.study.id,
        "metric": metric,
        "rule": rule,
        "value": value,
        "seeds": list(before[0].seeds) if before else seeds,
        "total": total,
    }


def _plan(data: StudyData, target: Target, wanted: list[Need], stated: str, is_difference: bool) -> Plan:
    name = data.study.name
    known = [need for need in wanted if need.seeds is not None]
    if not known:
        why = "no comparison has two seeds with all its conditions, or their differences do not vary"
        return Plan(name, f"{name}: {why}; run a few seeds first", "")
    most = max(known, key=lambda need: need.seeds or 0)
    seeds, there = most.seeds or 0, sorted(set(data.runs["seed"].tolist()) | set(data.study.seeds))
    rule = (
        f"{count(seeds)} seeds in all support each claim that is true with 80 % power: of a difference, if "
        f"it is {stated} in {target.metric}; equivalent and not worse, if there is none"
        if is_difference
        else f"{count(seeds)} seeds in all give intervals of half-width {stated} in {target.metric} "
        "(Stein's two-stage rule: N = max(n0, ceil((t · s0 / h)²)); the final interval keeps s0 and n0 - 1)"
    )
    lines = [f"{name}: {rule}.", "", _table(wanted), ""]
    lines.append(f"What needs most decides: {plain(most.label)}. {len(there)} seeds are there.")
    missing = seeds - len(there)
    if missing <= 0:
        lines.append("No seed is missing.")
        return Plan(name, "\n".join(lines), "")
    if seeds > MAX_SEEDS:
        lines.append("That is out of reach: state a larger difference.")
        return Plan(name, "\n".join(lines), "")
    if is_difference:
        lines.append("The final intervals take their sd from the added seeds: this plan used the others'.")
    lines.append(f"{counted(missing, 'more seed')}, decided now, before they run:")
    first = there[-1] + 1
    more = f"{first}..{first + missing - 1}" if missing > 1 else str(first)
    return Plan(name, "\n".join(lines), more, total=seeds)


def _table(wanted: list[Need]) -> str:
    rows = [("comparison", "should be", "n", "sd of differences", "of", "seeds needed")]
    rows += [
        (plain(n.label), n.kind.replace("_", " "), str(n.n), number(n.sd, 5), str(n.tests), count(n.seeds))
        for n in wanted[:60]
    ]
    return aligned(rows)


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as columns of text, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines)
