"""What a study that stops when it knows is worth: its error, its power and its seeds, by simulation.

    nice -n 5 python benchmarks/looks.py                       # a few minutes on one core
    python benchmarks/looks.py --replay   # finished studies, as if they had been looked at
    nice -n 10 python benchmarks/looks.py --price   # where the power goes, by a million paths a number

Every study is made of normal differences of runs and put through the report's own decision at each look
(reports/statistics/looks.py). ± is the Monte Carlo standard error. Seeded: the same numbers each time.
docs/method.md has the tables.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reports.output.looks import cases
from reports.reading.frames import StudyData, choose_study, load
from reports.reading.looks import Outcome
from reports.statistics import power
from reports.statistics.inference import ALPHA, Array, Contrast
from reports.statistics.looks import Case, decide, ending
from reports.statistics.sequential import (
    Design,
    Spending,
    boundaries,
    error,
    fitted,
    levels,
    nominal,
    t_reach,
    t_statistics,
)
from runner.design.grid_file import load_grid
from runner.design.importing import import_results
from runner.queue.schema import studies
from runner.queue.store import open_store, upgrade_store

PROJECT = Path(__file__).resolve().parents[1]
PLANS = {2: (5, 10), 3: (3, 6, 12), 4: (3, 6, 10, 15), 5: (3, 6, 9, 12, 15)}
"""Looks → seeds at each."""
SPENDING: tuple[Spending, ...] = ("obrien-fleming", "pocock")
EFFECTS = (0.5, 1.0, 1.5)
"""True differences in sd of the seeds' differences: small, middling and large."""


def study(
    random: np.random.Generator, design: Design, effects: Array, kind: str = "greater"
) -> tuple[list[Outcome], int]:
    """One study of as many claims, each another condition against the same baseline; its seeds at the end.

    Noise is that of a condition less that of the baseline, so that the claims go together as in a real study.
    """
    # Each run has a variance of 1/2, each difference one of 1.
    runs = random.normal(size=(design.seeds[-1], effects.size + 1)) / math.sqrt(2)
    differences = runs[:, 1:] - runs[:, :1] + effects
    outcomes: list[Outcome] = []
    for number, seeds in enumerate(design.seeds):
        seen = differences[:seeds]
        means, sds = seen.mean(axis=0).tolist(), seen.std(axis=0, ddof=1).tolist()
        cases = [
            # The interval and p that a look puts in place of nan and 1.
            Case(str(i), kind, Contrast(seeds, mean, sd, math.nan, math.nan, 1.0, seeds - 1), 1.0)  # type: ignore[arg-type]
            for i, (mean, sd) in enumerate(zip(means, sds, strict=True))
        ]
        outcomes = decide(design, number, cases, outcomes)
        if ending(outcomes, last=number + 1 == len(design.seeds)):
            return outcomes, seeds
    raise AssertionError("the last look is the end")


def few_seeds() -> None:
    """The error of levels for a known sd, and of the levels that are used, where seeds are few."""
    print("\n| spending | seeds at each look | levels for a known sd | levels fitted to t |")
    print("|:---|:---|---:|---:|")
    for spending in SPENDING:
        for seeds in ((3, 6, 9), (6, 9, 12), (3, 6, 10, 15), (6, 9, 12, 15), (3, 4, 5), (3, 4, 5, 6, 7)):
            design = Design(seeds, spending)
            found = [error(design, used)[-1] for used in (nominal(design), levels(design))]
            text = " | ".join(f"{share:.4f}" for share in found)
            print(f"| {spending} | {', '.join(map(str, seeds))} | {text} |", flush=True)


def familywise(studies: int) -> None:
    """How often any claim is decided although there is nothing to find."""
    print("\n| spending | looks | 1 claim | 3 claims | 6 claims |\n|:---|---:|---:|---:|---:|")
    for spending in SPENDING:
        for looks, seeds in PLANS.items():
            told = []
            for claims in (1, 3, 6):
                random = np.random.default_rng([looks, claims])
                wrong = 0
                for _ in range(studies):
                    outcomes, _ = study(random, Design(seeds, spending), np.zeros(claims))
                    wrong += any(outcome.look for outcome in outcomes)
                told.append(_share(wrong, studies))
            print(f"| {spending} | {looks} | {' | '.join(told)} |", flush=True)


def strong(studies: int) -> None:
    """Half of six claims are true: how often another is decided; and margins that are just missed."""
    print("\n| 4 looks at 3, 6, 10, 15 seeds | share |\n|:---|---:|")
    cases: Sequence[tuple[str, str, Array]] = (
        ("6 claims, 3 of them true by 1.5 sd: any of the others decided", "greater", np.repeat([0, 1.5], 3)),
        ("6 claims of equivalence, each off by the margin (1 sd): any supported", "equivalent", np.ones(6)),
        ("6 claims of not worse, each worse by the margin: any supported", "not_worse", np.ones(6)),
    )
    for what, kind, effects in cases:
        random = np.random.default_rng(7)
        wrong = 0
        for _ in range(studies):
            outcomes, _ = study(random, Design(PLANS[4]), effects, kind)
            null = [o for o, effect in zip(outcomes, effects, strict=True) if not effect or kind != "greater"]
            wrong += any(o.look and (kind == "greater" or o.verdict == "SUPPORTED") for o in null)
        print(f"| {what} | {_share(wrong, studies)} |", flush=True)


def worth(studies: int) -> None:
    """Power against the fixed design of the same size, and the seeds that it takes; one claim."""
    print("\n| spending | looks at | effect, sd | power | fixed design | seeds | of |")
    print("|:---|:---|---:|---:|---:|---:|---:|")
    for spending in SPENDING:
        for seeds in (PLANS[3], PLANS[4], PLANS[5]):
            for effect in EFFECTS:
                random = np.random.default_rng(int(10 * effect))
                found = [study(random, Design(seeds, spending), np.array([effect])) for _ in range(studies)]
                right = sum(outcomes[0].verdict == "SUPPORTED" for outcomes, _ in found)
                taken = sum(count for _, count in found) / studies
                fixed = power.power("greater", effect, math.nan, seeds[-1])
                text = f"{_share(right, studies)} | {fixed:.4f} | {taken:.1f} | {seeds[-1]}"
                at = ", ".join(map(str, seeds))
                print(f"| {spending} | {at} | {effect} | {text} |", flush=True)


def price(paths: int) -> None:
    """Power lost to looking: for a known sd, by integration; for t tests at such levels, and at fitted."""
    kinds = "sd known | t, levels for a known sd | their error | t, levels fitted to t"
    print(f"\n| looks at | effect, sd | claims open | lost, points: {kinds} |")
    print("|:---|---:|---:|---:|---:|---:|---:|")
    for seeds in (PLANS[3], PLANS[4], PLANS[5]):
        design, at = Design(seeds), ", ".join(map(str, seeds))
        for effect in EFFECTS[:2]:
            t = t_statistics(np.random.default_rng(int(10 * effect)), seeds, paths, effect)
            for claims in (1, 3, 6):  # Holm's first step: a claim is tested at .05 / claims
                alpha = ALPHA / claims
                known = known_power(seeds[-1:], (float(stats.norm.isf(alpha / 2)),), effect)
                known -= known_power(seeds, boundaries(design.spending, design.fractions, alpha), effect)
                fixed = power.power("greater", effect, math.nan, seeds[-1], claims)
                ways = (nominal(design, alpha), levels(design, alpha))
                strict, fit = (fixed - ended(seeds, t, used)[0] for used in ways)
                wrong = claims * error(design, nominal(design, alpha))[-1]
                text = f"{100 * known:.2f} | {100 * strict:.2f} | {wrong:.4f} | {100 * fit:.2f}"
                print(f"| {at} | {effect} | {claims} | {text} |", flush=True)


def spendings(paths: int) -> None:
    """What other ways to spend .05 over five looks lose and take, at levels fitted to t; one claim."""
    print("\n| spent by a share f of the seeds, five looks | effect, sd | lost, points | seeds |")
    print("|:---|---:|---:|---:|")
    design = Design(PLANS[5])
    for effect in EFFECTS[:2]:
        t = t_statistics(np.random.default_rng(int(10 * effect)), design.seeds, paths, effect)
        fixed = power.power("greater", effect, math.nan, design.seeds[-1])
        used = {"obrien-fleming's type": levels(design)}
        for exponent in (3, 4, 5, 6):
            granted = [ALPHA * fraction**exponent for fraction in design.fractions]
            used[f".05 f^{exponent}"] = fitted(design.seeds, granted)
        for name, each in used.items():
            right, taken = ended(design.seeds, t, each)
            print(f"| {name} | {effect} | {100 * (fixed - right):.2f} | {taken:.2f} |", flush=True)


def ended(seeds: Sequence[int], t: Array, used: Sequence[float]) -> tuple[float, float]:
    """The share of studies, t of shape (paths, K), that end on the true side, and the seeds they take."""
    reach = np.array([t_reach(level, n - 1) for level, n in zip(used, seeds, strict=True)])
    crossed = np.abs(t) > reach
    first = np.where(crossed.any(axis=1), crossed.argmax(axis=1), len(seeds) - 1)
    right = np.take_along_axis(t, first[:, None], axis=1)[:, 0] > reach[first]
    return float(right.mean()), float(np.asarray(seeds)[first].mean())


def known_power(seeds: Sequence[int], bounds: Sequence[float], effect: float) -> float:
    """The chance to end on the true side where the sd is known: the recursion over sums of differences."""
    nodes, weights = np.polynomial.legendre.leggauss(300)
    at, mass, before, right = np.zeros(1), np.ones(1), 0, 0.0
    for n, bound in zip(seeds, bounds, strict=True):
        sd, mean, end = math.sqrt(n - before), at + effect * (n - before), bound * math.sqrt(n)
        right += float(mass @ stats.norm.sf((end - mean) / sd))
        low, high = max(-end, -12 * math.sqrt(n)), min(end, effect * n + 12 * math.sqrt(n))
        at, half = (low + high) / 2 + (high - low) / 2 * nodes, (high - low) / 2
        mass = stats.norm.pdf((at[:, None] - mean) / sd) @ mass / sd * weights * half
        before = n
    return right


def replay() -> None:
    """At which look each claim of a finished study would have been decided: its first seeds, then more."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, database, plan in (
            ("published", _published(Path(temporary)), (3, 6, 10, 15)),
            ("factorial-smoke", _kept(Path(temporary)), (3, 6, 10)),
        ):
            with (store := open_store(str(database))).read() as connection:
                data = load(connection, choose_study(connection, name)[0])
            store.close()
            found = [_looked(data, Design(plan, spending)) for spending in SPENDING]
            print(f"\n| {name}, looks at {', '.join(map(str, plan))} | {' | '.join(SPENDING)} |")
            print("|:---|---:|---:|")
            for each in zip(*found, strict=True):
                told = (f"{one.verdict} at {one.n}" if one.look else f"open at {one.n}" for one in each)
                print(f"| {each[0].name} | {' | '.join(told)} |")


def _looked(data: StudyData, design: Design) -> list[Outcome]:
    """The claims as the last look that the study has seeds for left them."""
    outcomes: list[Outcome] = []
    seeds = sorted(set(data.runs["seed"].tolist()))
    for number, count in enumerate(design.seeds):
        if count > len(seeds):
            break
        seen = replace(data, runs=data.runs[data.runs["seed"].isin(seeds[:count])])
        outcomes = decide(design, number, cases(seen), outcomes)
        if ending(outcomes, last=False):
            break
    return outcomes


def _published(folder: Path) -> Path:
    """The published results, with the claims of the grid that repeats that study."""
    path, table = folder / "published.db", PROJECT / "tests" / "data" / "published_results.csv"
    store = open_store(str(path), create=True)
    store.write(lambda c: import_results(c, table, "published", "published"))
    claims = load_grid("factorial-published").describe()["claims"]
    with_claims = sa.func.json_set(studies.c.grid, "$.claims", sa.func.json(json.dumps(claims)))
    store.write(lambda c: c.execute(sa.update(studies).values(grid=with_claims)))
    store.close()
    return path


def _kept(folder: Path) -> Path:
    path = folder / "kept.db"
    packed = PROJECT / "docs" / "results" / "factorial-smoke" / "study.db.xz"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    upgrade_store(str(path))
    return path


def _share(count: int, studies: int) -> str:
    share = count / studies
    return f"{share:.4f} ± {math.sqrt(share * (1 - share) / studies):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=10_000, help="simulated studies a number")
    parser.add_argument(
        "--replay", action="store_true", help="two finished studies, instead of simulated ones"
    )
    parser.add_argument("--price", action="store_true", help="where the power goes that looks cost")
    options = parser.parse_args()
    if options.replay:
        replay()
        return
    if options.price:
        price(1_000_000)
        spendings(1_000_000)
        return
    studies = options.studies
    print(f"{studies:,} simulated studies a number; the error may be {ALPHA} at most.")
    few_seeds()
    familywise(studies)
    strong(studies)
    worth(studies)


if __name__ == "__main__":
    main()
