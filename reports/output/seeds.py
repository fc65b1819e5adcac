"""`power`: how many seeds a study needs for a stated difference or half-width, as text for a terminal.

The numbers: reports/statistics/power.py. The command that adds the seeds comes from the caller, who knows the
queue.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from reports.reading.frames import StudyData, choose_study, load
from reports.reading.study import Target
from reports.reading.units import UnknownOption, describe_difference, parse_difference
from reports.sections.power import count
from reports.statistics.analysis import Options, analyse, baseline_perplexity
from reports.statistics.power import MAX_SEEDS, Need, needs
from reports.tables import number, plain


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
        NoSuchStudy: there is none of that name.
        UnknownOption: neither or both, or one that cannot be read.
    """
    if (difference is None) == (half_width is None):
        raise UnknownOption("power: give --difference 0.5ppl or --half-width 0.005nats, one of them")
    data = load(connection, choose_study(connection, study)[0])
    analysis = analyse(data, Options(metric=metric))
    target = analysis.target
    perplexity = baseline_perplexity(data)
    option, written = ("--difference", difference) if difference else ("--half-width", half_width)
    value = parse_difference(option, str(written), target.metric, perplexity)
    asked = (value, None) if difference else (None, value)
    wanted = needs(analysis.judged, analysis.families, target, *asked)
    planned = _plan(data, target, wanted, describe_difference(value, target, perplexity), bool(difference))
    if not planned.seeds:
        return planned
    rule = "difference" if difference else "half-width"
    return replace(planned, event=_event(data, target.metric, rule, value, planned.total))


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
    lines.append(f"{missing} more seed{'s' * (missing != 1)}, decided now, before they run:")
    first = there[-1] + 1
    more = f"{first}..{first + missing - 1}" if missing > 1 else str(first)
    return Plan(name, "\n".join(lines), more, total=seeds)


def _table(wanted: list[Need]) -> str:
    rows = [("comparison", "should be", "n", "sd of differences", "of", "seeds needed")]
    rows += [
        (plain(n.label), n.kind.replace("_", " "), str(n.n), number(n.sd, 5), str(n.tests), count(n.seeds))
        for n in wanted[:60]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines)
