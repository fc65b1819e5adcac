"""The published study, read as an import leaves it, through the report: against its own tables."""

from __future__ import annotations

import csv
import math

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from runner.design.grid_file import load_grid
from tests import report_fixtures as made
from tests.report_reading import aggregate, fact, render, section, tables

# Section 7 of the published tutorial: noise, weight, best PPL, ±, expert usage CV, minutes.
TUTORIAL = [
    (0.0, 0.01, 130.23, 0.94, 0.0696, 1.6),
    (0.0, 0.0, 130.54, 1.02, 0.2064, 1.6),
    (0.1, 0.01, 131.38, 1.00, 0.0640, 1.6),
    (0.1, 0.0, 131.71, 1.09, 0.2279, 1.6),
    (0.5, 0.01, 144.37, 1.40, 0.0639, 1.6),
    (0.5, 0.0, 144.30, 0.54, 0.3345, 1.6),
]


def test_the_published_table_is_reproduced_with_the_population_sd(connection: sa.Connection) -> None:
    made.published_study(connection)
    rows = aggregate(render(connection, "published", std="population"))
    for noise, weight, mean, sd, cv, time in TUTORIAL:
        row = rows[noise, weight]
        shown_mean, shown_sd = map(float, row["Best Val PPL"].split(" ± "))
        # One unit of the last place: the CSV's values are themselves rounded, the tutorial's were not.
        assert shown_mean == pytest.approx(mean, abs=0.0101)
        assert shown_sd == pytest.approx(sd, abs=0.0001)
        assert float(row["Expert Usage CV"].split(" ± ")[0]) == pytest.approx(cv, abs=0.00001)
        assert float(row["Training (min)"]) == pytest.approx(time, abs=0.101)
        assert row["n"] == "3/3"


@pytest.mark.parametrize(("std", "divisor"), [("population", 3), ("sample", 2)])
def test_published_values_against_numpy_by_hand(connection: sa.Connection, std: str, divisor: int) -> None:
    made.published_study(connection)
    rows = aggregate(render(connection, "published", std=std))
    with made.PUBLISHED_CSV.open(newline="") as file:
        given = list(csv.DictReader(file))
    columns = {
        "Val loss": ("val_loss", 4),
        "Val PPL": ("val_perplexity", 2),
        "Best Val PPL": ("best_val_perplexity", 2),
        "Accuracy": ("val_accuracy", 4),
        "Expert Usage CV": ("expert_usage_cv", 4),
    }
    for (noise, weight), row in rows.items():
        mine = [
            g for g in given if (float(g["noise_std"]), float(g["load_balancing_weight"])) == (noise, weight)
        ]
        for label, (column, decimals) in columns.items():
            values = np.array([float(g[column]) for g in mine])
            sd = math.sqrt(((values - values.sum() / 3) ** 2).sum() / divisor)
            assert row[label] == f"{values.sum() / 3:.{decimals}f} ± {sd:.{decimals}f}"
        assert row["Bits per byte"] == row["Aux loss, last 100 steps"] == row["Peak memory (GB)"] == "–"


def test_published_contrasts_against_scipy(connection: sa.Connection) -> None:
    made.published_study(connection)
    table = tables(section(render(connection, "published"), "Paired contrasts"))[0]
    given = pd.read_csv(made.PUBLISHED_CSV).sort_values("seed")
    by_cell = {cell: rows["val_loss"].to_numpy() for cell, rows in given.groupby(list(made.FACTORS))}
    baseline = by_cell[0.0, 0.01]
    for row in table:
        noise, weight = (float(part.split("=")[1]) for part in row["Contrast"].split(", "))
        other = by_cell[noise, weight]
        reference = stats.ttest_rel(other, baseline)
        assert float(row["Difference"]) == pytest.approx((other - baseline).mean(), abs=0.00006)
        assert float(row["p"]) == pytest.approx(min(1, 5 * reference.pvalue), abs=0.00006)
    # "Load balancing slightly helps PPL" does not survive: the first row is the other weight alone.
    words = [row["First is"] for row in table]
    assert words == ["unclear", "worse", "unclear", "worse", "worse"]


def test_the_published_per_seed_tables_have_the_tutorials_form(connection: sa.Connection) -> None:
    made.published_study(connection)
    assert (
        "#### noise_std=0.0, load_balancing_weight=0.01\n"
        "| Seed | Val loss | Val PPL | Best Val PPL | Expert Usage CV |\n"
        "|---:|---:|---:|---:|---:|\n"
        "| 42 | 4.8656 | 129.75 | 129.75 | 0.0661 |\n"
        "| 43 | 4.8794 | 131.55 | 131.55 | 0.0867 |\n"
        "| 44 | 4.8629 | 129.40 | 129.40 | 0.0560 |\n"
    ) in render(connection, "published")


def test_imported_results_say_that_they_are(connection: sa.Connection) -> None:
    made.published_study(connection)
    text = render(connection)
    assert "Imported from published_results.csv" in text
    assert "Published protocol: its validation text is almost all in the training text" in text
    assert fact(text, "Exactness") == "unknown: computed elsewhere"
    assert "## Expert load by layer" not in text
    assert "## Routing" not in text
    assert "No measures of training are recorded" in text
    absent = fact(text, "Not recorded")
    assert absent == "model and training, parameters, training tokens, devices, code, packages, test split"
    assert text.count("not recorded") <= 3


def wide() -> dict[tuple[float, float], pd.Series]:
    """Condition → published losses by seed."""
    given = pd.read_csv(made.PUBLISHED_CSV).sort_values("seed")
    return {cell: rows["val_loss"].to_numpy() for cell, rows in given.groupby(list(made.FACTORS))}


def test_every_published_contrast_against_statsmodels(connection: sa.Connection) -> None:
    made.published_study(connection)
    loss = wide()
    noise = {level: (loss[level, 0.01] + loss[level, 0.0]) / 2 for level in (0.0, 0.1, 0.5)}
    weight = {level: (loss[0.0, level] + loss[0.1, level] + loss[0.5, level]) / 3 for level in (0.01, 0.0)}
    effect = {w: {n: loss[n, w] - loss[0.0, w] for n in (0.1, 0.5)} for w in (0.01, 0.0)}
    found = tables(section(render(connection, "published"), "Paired contrasts"))
    expected = [
        [noise[0.1] - noise[0.0], noise[0.5] - noise[0.0], noise[0.5] - noise[0.1]],
        [weight[0.0] - weight[0.01]],
        [
            *(loss[b, w] - loss[a, w] for w in (0.01, 0.0) for a, b in ((0.0, 0.1), (0.0, 0.5), (0.1, 0.5))),
            *(loss[n, 0.0] - loss[n, 0.01] for n in (0.0, 0.1, 0.5)),
        ],
        [
            effect[0.0][0.1] - effect[0.01][0.1],
            effect[0.0][0.5] - effect[0.01][0.5],
            (effect[0.0][0.5] - effect[0.0][0.1]) - (effect[0.01][0.5] - effect[0.01][0.1]),
        ],
    ]
    margin = math.log(1.005)
    for rows, differences in zip(found[1:], expected, strict=True):
        tests = [stats.ttest_1samp(difference, 0) for difference in differences]
        adjusted = multipletests([test.pvalue for test in tests], method="bonferroni")[1]
        for row, difference, test, corrected in zip(rows, differences, tests, adjusted, strict=True):
            low, high = test.confidence_interval(1 - 0.05 / len(tests))
            assert row["Difference"] == f"{difference.mean():+.4f}"
            assert float(row["% of PPL"]) == pytest.approx(100 * math.expm1(difference.mean()), abs=0.0051)
            assert row["sd of differences"] == f"{difference.std(ddof=1):.4f}"
            assert row["95 % interval, together"] == f"{low:.4f} to {high:.4f}"
            assert float(row["p"]) == pytest.approx(corrected, abs=0.00006)
            tost = min(1, 2 * len(tests) * ttost_paired(difference, np.zeros(3), -margin, margin)[0])
            assert float(row["Equivalence p"]) == pytest.approx(tost, abs=0.00006)


def test_the_published_claims_are_held_to_the_research_plan(connection: sa.Connection) -> None:
    claims = load_grid("factorial").describe()["claims"]
    # The published tables have the CV over all layers alone.
    given = {"expert_usage_cv_layer_mean": "expert_usage_cv"}
    claims = [{**claim, "metric": given.get(claim["metric"], claim["metric"])} for claim in claims]
    made.published_study(connection, claims=claims)
    text = render(connection, "published")
    first, rows = tables(text)[0], tables(section(text, "Findings"))[0]
    loss = wide()
    cv = pd.read_csv(made.PUBLISHED_CSV).pivot(
        index="seed", columns=list(made.FACTORS), values="expert_usage_cv"
    )
    noise = {level: (loss[level, 0.01] + loss[level, 0.0]) / 2 for level in (0.0, 0.1, 0.5)}
    balanced = sum(loss[level, 0.01] - loss[level, 0.0] for level in noise) / 3
    even = sum(np.log(cv[level, 0.01]) - np.log(cv[level, 0.0]) for level in noise) / 3
    little = (loss[0.1, 0.0] - loss[0.0, 0.0]) - (loss[0.1, 0.01] - loss[0.0, 0.01])
    high = (loss[0.5, 0.0] - loss[0.1, 0.0]) - (loss[0.5, 0.01] - loss[0.1, 0.01])
    differences = [noise[0.0] - noise[0.1], noise[0.5] - noise[0.0], even, balanced, little, high]
    for shown, row, difference in zip(first, rows, differences, strict=True):
        test = stats.ttest_1samp(difference, 0)
        low, high = test.confidence_interval(1 - 0.05 / 6)
        assert float(row["p"]) == pytest.approx(min(1, 6 * test.pvalue), abs=0.00006), row["Claim"]
        if row["Metric"] == "val_loss":
            assert shown["95 % interval, together"] == f"{low:.4f} to {high:.4f}"
            assert (shown["Verdict"] == "OPEN") == (low < 0 < high), row["Claim"]
        else:  # a ratio
            assert shown["Difference"] == f"expert_usage_cv × {math.exp(difference.mean()):.3f}"
    # High noise harms, and load balancing evens out the load; that it helps the perplexity does not follow.
    words = {row["Claim"]: row["Verdict"] for row in first}
    assert words["High noise harms"] == "SUPPORTED"
    assert words["The load-balancing loss helps the perplexity"] == "OPEN"
    assert stats.ttest_1samp(balanced, 0).pvalue == pytest.approx(0.70, abs=0.02)


@pytest.mark.slow
def test_findings_without_claims_say_that_none_was_declared(connection: sa.Connection) -> None:
    made.published_study(connection)
    found = section(render(connection), "Findings")
    assert "No claims were declared with this study." in found
    assert "**Question.**" not in render(connection)
    assert "load_balancing_weight 0.0 - 0.01: unclear, val_loss +0.0015" in found
