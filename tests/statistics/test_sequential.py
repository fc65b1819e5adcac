"""Boundaries against published tables, levels of t tests against simulation, and what a look decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.looks import ended, known_power, study
from reports.statistics import power, sequential
from reports.statistics.failures import Failures
from reports.statistics.inference import Contrast, weighted_contrast
from reports.statistics.looks import Case, conditional_power, decide, ending, worth
from reports.statistics.sequential import Design, boundaries, levels

EQUAL = {looks: tuple((i + 1) / looks for i in range(looks)) for looks in (2, 3, 4, 5, 10)}
FOUR = Design((3, 6, 10, 15))


def crossing(bounds: Sequence[float], fractions: Sequence[float], drift: float = 0.0) -> tuple[float, ...]:
    """The share of studies that end at each look; `drift` is the mean of z at the last one."""
    density, found = sequential._Density.start(), []
    for bound, fraction in zip(bounds, fractions, strict=True):
        density = replace(density, at=density.at + drift * (fraction - density.fraction))
        found.append(density.ends(fraction, bound))
        density = density.beyond(fraction, bound)
    return tuple(found)


# Jennison and Turnbull (2000), tables 2.1 and 2.3: the constants of Pocock's and O'Brien and Fleming's tests.
@pytest.mark.parametrize(
    ("looks", "alpha", "pocock", "obrien_fleming"),
    [
        (2, 0.05, 2.178, 1.977),
        (3, 0.05, 2.289, 2.004),
        (4, 0.05, 2.361, 2.024),
        (5, 0.05, 2.413, 2.040),
        (10, 0.05, 2.555, 2.087),
        (2, 0.01, 2.772, 2.580),
        (5, 0.01, 2.986, 2.621),
    ],
)
def test_the_classic_boundaries_have_their_error(
    looks: int, alpha: float, pocock: float, obrien_fleming: float
) -> None:
    fractions = EQUAL[looks]
    flat = [pocock] * looks
    falling = [obrien_fleming / math.sqrt(fraction) for fraction in fractions]
    for bounds in (flat, falling):
        assert sum(crossing(bounds, fractions)) == pytest.approx(alpha, rel=0.004)


def test_the_classic_boundaries_have_their_power() -> None:
    """Jennison and Turnbull (2000), tables 2.2 and 2.4: sizes for a power of .9, against the fixed one."""
    fixed = stats.norm.isf(0.025) + stats.norm.isf(0.1)
    for bounds, ratio in (
        ([2.413] * 5, 1.207),
        ([2.040 / math.sqrt(f) for f in EQUAL[5]], 1.026),
    ):
        found = sum(crossing(bounds, EQUAL[5], drift=fixed * math.sqrt(ratio)))
        assert found == pytest.approx(0.9, abs=0.001)


# What gsDesign, rpact and ldbounds print for Lan and DeMets's functions, two-sided .05, equal steps.
@pytest.mark.parametrize(
    ("spending", "published"),
    [
        ("obrien-fleming", (2.9626, 1.9686)),
        ("obrien-fleming", (3.7103, 2.5114, 1.9930)),
        ("obrien-fleming", (4.3326, 2.9631, 2.3590, 2.0141)),
        ("obrien-fleming", (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ("pocock", (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_the_spending_boundaries_are_the_published_ones(
    spending: sequential.Spending, published: tuple[float, ...]
) -> None:
    assert boundaries(spending, EQUAL[len(published)]) == pytest.approx(published, abs=2e-4)


@pytest.mark.parametrize("spending", ["obrien-fleming", "pocock"])
def test_all_of_the_error_is_spent_at_the_last_look(spending: sequential.Spending) -> None:
    for alpha in (0.05, 0.05 / 6):
        assert sequential.spent(spending, 1.0, alpha) == pytest.approx(alpha)
        ends = crossing(boundaries(spending, FOUR.fractions, alpha), FOUR.fractions)
        granted = [sequential.spent(spending, fraction, alpha) for fraction in FOUR.fractions]
        assert np.cumsum(ends) == pytest.approx(granted, abs=1e-7)


@pytest.mark.slow
def test_many_seeds_have_the_levels_of_a_known_sd() -> None:
    design = Design((300, 600, 900), "pocock")
    assert levels(design) == pytest.approx(sequential.nominal(design), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(3, 6, 9), (6, 9, 12), (3, 4, 5), (3, 6, 10, 15)])
@pytest.mark.parametrize("spending", ["obrien-fleming", "pocock"])
def test_few_seeds_spend_what_is_granted_at_every_look(
    seeds: tuple[int, ...], spending: sequential.Spending
) -> None:
    """2 and 5 degrees of freedom at the first look; other simulated studies than those of the fit."""
    design, paths = Design(seeds, spending), 200_000
    t = sequential.t_statistics(np.random.default_rng(1), seeds, paths)
    p = np.stack([sequential.t_p(t[:, i], n - 1) for i, n in enumerate(seeds)], axis=1)
    ended = np.logical_or.accumulate(p < np.asarray(levels(design)), axis=1).mean(axis=0)
    granted = np.array([sequential.spent(spending, fraction) for fraction in design.fractions])
    room = 4 * np.sqrt(granted * (1 - granted) / paths)
    assert np.all(ended <= granted + room)
    assert ended[-1] == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_simulated_t_tests_are_those_of_simulated_seeds(effect: float) -> None:
    """Seed by seed, and in one step a block: how often the first, the second, or both say something."""
    seeds, paths = (3, 7), 40_000
    values = np.random.default_rng(1).normal(effect, 1.0, (paths, 7))
    plain = np.stack([stats.ttest_1samp(values[:, :n], 0.0, axis=1).pvalue for n in seeds], axis=1)
    t = sequential.t_statistics(np.random.default_rng(2), seeds, paths, effect)
    quick = np.stack([sequential.t_p(t[:, i], n - 1) for i, n in enumerate(seeds)], axis=1)
    shares = [(*(p < 0.1).mean(axis=0), (p < 0.1).all(axis=1).mean()) for p in (plain, quick)]
    assert shares[1] == pytest.approx(shares[0], abs=0.01)


# --- what a look decides ----------------------------------------------------------------------------------


def contrast(difference: float, n: int = 6, sd: float = 1.0) -> Contrast:
    """A contrast with exactly that difference and sd."""
    values = np.linspace(-1, 1, n)
    values = values / values.std(ddof=1) * sd + difference
    return weighted_contrast(values[:, None], [1.0])


def case(difference: float, **values: Any) -> Case:
    told = {"name": "a", "kind": "greater", "margin": math.nan, **values}
    return Case(contrast=contrast(difference, told.pop("n", 6)), **told)


@pytest.mark.slow
def test_a_claim_is_decided_where_its_interval_says_so() -> None:
    """At the level itself the interval ends at 0, and the corrected p is .05."""
    level = levels(FOUR)[1]
    edge = sequential.t_reach(level, 5) / math.sqrt(6)
    for difference, decided in ((1.01 * edge, 2), (0.99 * edge, 0)):
        (outcome,) = decide(FOUR, 1, [case(difference)])
        assert outcome.look == decided
        assert (outcome.low > 0) == (outcome.p < 0.05) == bool(decided)
        assert outcome.high - outcome.low == pytest.approx(2 * edge, rel=1e-6)


def test_what_is_decided_leaves_its_share_to_the_rest() -> None:
    """Holm: with the first claim decided at .025, the second has .05, and it would not have done at .025."""
    half, whole = (levels(FOUR, alpha)[2] for alpha in (0.025, 0.05))
    edges = [sequential.t_reach(level, 9) / math.sqrt(10) for level in (half, whole)]
    between = sum(edges) / 2
    together = decide(FOUR, 2, [case(2.0, n=10), case(between, n=10)])
    assert [outcome.tests for outcome in together] == [2, 1]
    assert [outcome.verdict for outcome in together] == ["SUPPORTED", "SUPPORTED"]
    unsure = decide(FOUR, 2, [case(0.0, n=10), case(between, n=10)])
    assert [outcome.tests for outcome in unsure] == [2, 2]
    assert not any(outcome.look for outcome in unsure)


def test_a_decision_stands_and_the_same_seeds_are_not_tested_twice() -> None:
    (first,) = decide(FOUR, 1, [case(3.0)])
    assert (first.verdict, first.look) == ("SUPPORTED", 2)
    assert decide(FOUR, 2, [case(0.0, n=10)], [first]) == [first]

    level = levels(FOUR)[1]
    (waiting,) = decide(FOUR, 1, [case(0.95 * sequential.t_reach(level, 5) / math.sqrt(6))])
    assert not waiting.look
    again = case(waiting.difference)
    assert decide(FOUR, 3, [again], [waiting]) == [waiting]  # all further runs failed: nothing new to test
    assert decide(FOUR, 3, [replace(again, contrast=contrast(waiting.difference, 15))], [waiting])[0].look


@pytest.mark.parametrize(
    ("kind", "difference", "verdict"),
    [
        ("greater", -3.0, "REFUTED"),
        ("less", -3.0, "SUPPORTED"),
        ("equivalent", 0.0, "SUPPORTED"),
        ("equivalent", 9.0, "REFUTED"),
        ("not_worse", -3.0, "SUPPORTED"),
        ("not_worse", 9.0, "REFUTED"),
    ],
)
def test_every_kind_of_claim_is_read_off_its_interval(kind: str, difference: float, verdict: str) -> None:
    (outcome,) = decide(FOUR, 2, [case(difference, kind=kind, margin=4.0, n=10)])
    assert outcome.verdict == verdict
    if kind == "equivalent" and verdict == "SUPPORTED":
        assert outcome.equivalence_p < 0.05
        assert -4.0 < outcome.low < outcome.high < 4.0


def test_a_side_that_diverged_more_leaves_a_claim_open() -> None:
    uneven = Failures(3, 6, 0, 6, 3, 0)
    (outcome,) = decide(FOUR, 2, [case(0.0, kind="equivalent", margin=4.0, n=10, failures=uneven)])
    assert (outcome.verdict, outcome.look) == ("OPEN", 0)


@pytest.mark.parametrize("kind", ["greater", "equivalent", "not_worse"])
def test_conditional_power_is_how_often_the_last_look_decides(kind: str) -> None:
    """Seeds that are still to come, simulated with the mean and the sd that were seen."""
    asked = case(0.7, kind=kind, margin=1.2, n=10)
    first = np.linspace(-1, 1, 10)
    first = first / first.std(ddof=1) + 0.7
    random, decided, times = np.random.default_rng(5), 0, 2_000
    level = levels(FOUR)[-1]
    for _ in range(times):
        values = np.concatenate([first, random.normal(0.7, 1.0, 5)])
        half = sequential.t_reach(level, 14) * values.std(ddof=1) / math.sqrt(15)
        low, high = values.mean() - half, values.mean() + half
        decided += {
            "greater": low > 0 or high < 0,
            "equivalent": (low > -1.2 and high < 1.2) or low > 1.2 or high < -1.2,
            "not_worse": high < 1.2 or low > 1.2,
        }[kind]
    # The formula takes the final sd for known.
    assert conditional_power(FOUR, 2, asked, 1) == pytest.approx(decided / times, abs=0.06)


def test_futility_stops_what_is_not_worth_it_and_binds_nobody() -> None:
    design = replace(FOUR, futility=0.1)
    (outcome,) = decide(design, 2, [case(0.0, n=10)])
    assert outcome.power < 0.1
    assert outcome.futile
    assert not outcome.open
    assert ending([outcome], last=False).startswith("the open claim is unlikely")
    assert not ending(decide(FOUR, 2, [case(0.0, n=10)]), last=False)
    # Further seeds that came for another claim may still decide it.
    (later,) = decide(design, 3, [case(2.0, n=15)], [outcome])
    assert later.verdict == "SUPPORTED"


@pytest.mark.parametrize("claims", [1, 3])
def test_studies_without_a_difference_decide_something_in_a_twentieth(claims: int) -> None:
    """A small part of benchmarks/looks.py: within four standard errors, of which .05 itself is no part."""
    random, studies = np.random.default_rng(claims), 300
    wrong = sum(
        any(outcome.look for outcome in study(random, FOUR, np.zeros(claims))[0]) for _ in range(studies)
    )
    assert wrong / studies < 0.05 + 4 * math.sqrt(0.05 * 0.95 / studies)


def test_what_looks_are_worth_is_what_the_studies_come_to() -> None:
    """Against studies that were put through the report's own decisions, one by one."""
    random, studies = np.random.default_rng(2), 400
    found = [study(random, FOUR, np.array([1.2])) for _ in range(studies)]
    planned = worth(FOUR, 1.2)
    right = sum(outcomes[0].verdict == "SUPPORTED" for outcomes, _ in found) / studies
    assert planned.power == pytest.approx(right, abs=0.03)
    assert planned.seeds == pytest.approx(sum(seeds for _, seeds in found) / studies, abs=0.6)
    assert planned.power < planned.fixed < planned.power + 0.03
    assert worth(FOUR, 1.2, tests=6).power < planned.power


def test_what_looks_cost_is_counted_as_the_recursion_and_the_plan_have_it() -> None:
    """What benchmarks/looks.py --price makes its tables of."""
    bounds = boundaries(FOUR.spending, FOUR.fractions)
    drift = 0.8 * math.sqrt(FOUR.seeds[-1])
    assert known_power(FOUR.seeds, bounds, 0.8) == pytest.approx(sum(crossing(bounds, FOUR.fractions, drift)))
    assert known_power(FOUR.seeds, bounds, 0.0) == pytest.approx(0.025)
    t = sequential.t_statistics(np.random.default_rng(3), FOUR.seeds, 40_000, 1.2)
    right, seeds = ended(FOUR.seeds, t, levels(FOUR))
    assert right == pytest.approx(worth(FOUR, 1.2).power, abs=0.01)
    assert seeds == pytest.approx(worth(FOUR, 1.2).seeds, abs=0.1)


def test_power_is_that_of_the_fixed_design_and_seeds_are_fewer() -> None:
    random, studies = np.random.default_rng(1), 400
    found = [study(random, FOUR, np.array([1.0])) for _ in range(studies)]
    right = sum(outcomes[0].verdict == "SUPPORTED" for outcomes, _ in found) / studies
    assert right == pytest.approx(power.power("greater", 1.0, math.nan, 15), abs=0.04)
    assert sum(seeds for _, seeds in found) / studies < 13
