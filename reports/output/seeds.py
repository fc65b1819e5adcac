"""`power`: how many seeds a study needs for a stated difference or half-width, as text for a terminal.

The numbers: reports/statistics/power.py. The command that adds the seeds comes from the caller, who knows the
queue.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    wanted = needs(analysis.families, value if difference else None, value if half_width else None)
    return _plan(data, target, wanted, describe_difference(value, target, perplexity), bool(difference))


def _plan(data: StudyData, target: Target, wanted: list[Need], stated: str, is_difference: bool) -> Plan:
    name = data.study.name
    known = [need for need in wanted if need.seeds is not None]
    if not known:
        why = "no condition has two seeds in common with the baseline, or their differences do not vary"
        return Plan(name, f"{name}: {why}; run a few seeds first", "")
    most = max(known, key=lambda need: need.seeds or 0)
    seeds, there = most.seeds or 0, sorted(set(data.runs["seed"].tolist()) | set(data.study.seeds))
    rule = (
        f"{count(seeds)} seeds in all find a difference of {stated} in {target.metric} with 80 % power "
        "(two-sided paired t test at .05; Holm's correction asks for more)"
        if is_difference
        else f"{count(seeds)} seeds in all give a 95 % interval of half-width {stated} in {target.metric} "
        "(Stein's two-stage rule: N = max(n0, ceil((t · s0 / h)²)); the final interval keeps s0 and n0 - 1)"
    )
    lines = [f"{name}: {rule}.", "", _table(wanted), ""]
    lines.append(f"The contrast that varies most decides: {plain(most.label)}. {len(there)} seeds are there.")
    missing = seeds - len(there)
    if missing <= 0:
        lines.append("No seed is missing.")
        return Plan(name, "\n".join(lines), "")
    if seeds > MAX_SEEDS:
        lines.append("That is out of reach: state a larger difference.")
        return Plan(name, "\n".join(lines), "")
    lines.append(f"{missing} more seed{'s' * (missing != 1)}, decided now, before they run:")
    first = there[-1] + 1
    return Plan(name, "\n".join(lines), f"{first}..{first + missing - 1}" if missing > 1 else str(first))


def _table(wanted: list[Need]) -> str:
    rows = [("contrast", "n", "sd of differences", "seeds needed")]
    rows += [(plain(n.label), str(n.n), number(n.sd, 5), count(n.seeds)) for n in wanted[:60]]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines)
