"""Two studies side by side: what matches, what differs, numbers by scipy."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import sqlalchemy as sa
from scipy import stats

from model.config import ConfigError
from reports.output.compare import compare_studies
from tests import report_fixtures as made
from tests.report_reading import section, tables


def test_published_against_ours(connection: sa.Connection) -> None:
    made.published_study(connection)
    made.finished_study(connection, "ours")
    text = compare_studies(connection, "published", "ours")
    assert compare_studies(connection, "published", "ours") == text
    assert "The texts are not the same" in text
    assert "The protocols differ (published, sound)" in text
    assert "python cli.py compare published ours > comparison.md" in text
    with made.PUBLISHED_CSV.open(newline="") as file:
        given = list(csv.DictReader(file))
    rows = tables(section(text, "Conditions side by side"))[0]
    assert len(rows) == 6
    for row, cell in zip(rows, made.cells(made.FACTORS), strict=True):
        theirs = [float(g["val_loss"]) for g in given if all(float(g[k]) == v for k, v in cell.items())]
        ours = [made.loss_of(cell, seed) for seed in made.SEEDS]
        assert row["Val loss, published"] == f"{np.mean(theirs):.4f} ± {np.std(theirs, ddof=1):.4f}"
        assert row["Val loss, ours"] == f"{np.mean(ours):.4f} ± {np.std(ours, ddof=1):.4f}"
        reference = stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval(0.95)
        assert row["95 % interval"] == f"{reference.low:.4f} to {reference.high:.4f}"
        assert row["Bits per byte, published"] == "–"
    effects = tables(section(text, "Effects side by side"))[0]
    assert len(effects) == 5
    first = [
        made.loss_of(made.cells(made.FACTORS)[1], s) - made.loss_of(made.cells(made.FACTORS)[0], s)
        for s in made.SEEDS
    ]
    assert effects[0]["Difference, ours"] == f"{np.mean(first):+.4f}"


def test_short_against_long_says_what_differs(connection: sa.Connection) -> None:
    made.finished_study(connection, "short")
    long = made.add_study(connection, "long")
    for cell in made.cells(made.FACTORS)[:2]:
        config = made.configuration(cell, 42)
        config["train"]["steps"] = 4000
        made.add_result(connection, made.add_job(connection, long, cell, 42, config=config), val_loss=4.0)
    text = compare_studies(connection, "short", "long")
    differing = {row[""]: (row["short"], row["long"]) for row in tables(section(text, "What differs"))[0]}
    assert differing["train.steps"] == ("400", "4000")
    assert differing["seeds"] == ("42, 43, 44", "42")
    assert "protocol" not in differing
    assert "> **Note:**" not in text
    assert tables(section(text, "Conditions side by side"))[0][0]["n, long"] == "1/1"


def test_factors_match_by_their_last_part(connection: sa.Connection) -> None:
    for name, factor in (("one", "noise_std"), ("two", "routing.noise_std")):
        study = made.add_study(connection, name, grid={"factors": {factor: [0.0, 0.5]}, "baseline": {}})
        made.add_result(connection, made.add_job(connection, study, {factor: 0.5}, 42))
    rows = tables(section(compare_studies(connection, "one", "two"), "Conditions side by side"))[0]
    assert [row["Condition"] for row in rows] == ["noise_std=0.0", "noise_std=0.5"]


def test_nothing_in_common_is_said(connection: sa.Connection) -> None:
    made.finished_study(connection, "one")
    made.add_study(connection, "two", grid={"factors": {"top_k": [1, 2]}, "baseline": {}})
    assert "No condition of one has the same" in compare_studies(connection, "one", "two")
    with pytest.raises(ConfigError, match="'three'"):
        compare_studies(connection, "one", "three")


def test_a_study_with_itself(connection: sa.Connection) -> None:
    made.finished_study(connection)
    text = compare_studies(connection, "factorial", "factorial")
    assert "the configurations are the same" in text
