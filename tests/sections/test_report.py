"""reports/output/report.py on studies of one's own: banner, tables, and what is wrong with a study."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from reports.output.report import NotUniform
from reports.reading.units import UnknownOption
from reports.tables import instant, interval, signed
from runner.design.enqueue import enqueue
from runner.design.grid_file import load_grid, parse_grid
from runner.queue import jobs, schema
from runner.queue.store import Store
from tests import report_fixtures as made
from tests.report_reading import aggregate, fact, render, section, tables

SNAPSHOT = Path(__file__).resolve().parents[1] / "data" / "report.md"
ONE_CELL: dict[str, Any] = {"factors": {}, "baseline": {}}


def test_the_banner_of_a_complete_study(connection: sa.Connection) -> None:
    made.finished_study(connection)
    text = render(connection)
    assert "**Question.** Does routing noise help?\n" in text
    assert fact(text, "Design").endswith("× seeds {42, 43, 44}: 6 conditions, 18 runs")
    assert fact(text, "Runs").startswith("18 of 18 done.")
    assert "no loss compares with Cosmopedia" in fact(text, "Corpus")
    assert fact(text, "Parameters").startswith(
        "29,507,328 in total, 24,788,736 truly active per token, 20,070,144 outside experts"
    )
    assert fact(text, "Parameters").endswith("the same in every cell")
    assert fact(text, "Training tokens") == "4,915,200 seen, of 500,000 unique (9.8 epochs)"
    assert fact(text, "Devices").startswith("Test CPU; precision fp32; threads 2")
    assert fact(text, "Exactness") == "every result is exact"
    assert "> **Note:**" not in text


def test_the_aggregate_table_against_numpy_by_hand(connection: sa.Connection) -> None:
    made.finished_study(connection)
    for (noise, weight), row in aggregate(render(connection)).items():
        cell = {"noise_std": noise, "load_balancing_weight": weight}
        losses = np.array([made.loss_of(cell, seed) for seed in made.SEEDS])
        sd = np.sqrt(((losses - losses.mean()) ** 2).sum() / 2)
        assert row["Val loss"] == f"{losses.mean():.4f} ± {sd:.4f}"
        reach = 4.302652729911275 * sd / math.sqrt(3)
        assert row["95 % interval"] == f"{losses.mean() - reach:.4f} to {losses.mean() + reach:.4f}"
        assert row["Best Val PPL"].startswith(f"{np.exp(losses - 0.01).mean():.2f} ±")
        assert (row["Training (min)"], row["Tokens/s"], row["Peak memory (GB)"]) == ("1.6", "51,200", "3.00")


@pytest.mark.slow
def test_the_sampling_error_of_the_text_is_said_beside_the_loss(connection: sa.Connection) -> None:
    made.finished_study(connection)
    assert "standard error" not in render(connection)
    for job in range(1, 19):
        made.add_metric(connection, job, "loss_se", 0.01 * job)
        made.add_metric(connection, job, "loss_se", 9.0, step=200)
    said = section(render(connection), "Results by condition")
    assert "standard error of 0.0950 nats per token over its windows (the mean of 18 runs)" in said
    assert "it is not the interval over seeds" in said


def test_the_load_tables_against_numpy_by_hand(connection: sa.Connection) -> None:
    made.finished_study(connection)
    conditions, layers = tables(section(render(connection), "Expert load by layer"))
    counts = np.array([made.layer_counts(seed) for seed in made.SEEDS], dtype=float)  # (S, L, E)
    cvs = counts.std(axis=2) / counts.mean(axis=2)
    summed = counts.sum(axis=1)
    row = conditions[0]
    assert row["Global CV"].startswith(f"{(summed.std(axis=1) / summed.mean(axis=1)).mean():.4f} ±")
    assert row["Mean layer CV"].startswith(f"{cvs.mean():.4f} ±")
    assert row["Largest layer CV"] == f"{cvs.max():.4f}"
    assert row["Dead experts"] == "0 of 24"
    assert len(layers) == 12
    assert layers[1]["Layer"] == "1"
    assert layers[1]["CV"] == f"{cvs[:, 1].mean():.4f} ± {cvs[:, 1].std(ddof=1):.4f}"
    violations = counts[:, 1].max(axis=1) / counts[:, 1].mean(axis=1) - 1
    assert layers[1]["MaxVio"] == f"{violations.mean():.3f}"


def test_an_expert_without_a_row_is_dead(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid=ONE_CELL)
    job = made.add_job(connection, study, {}, 42)
    made.add_result(connection, job)
    made.add_counts(connection, job, [[5, 5], [5, 5]])  # the configuration has four experts a layer
    _, layers = tables(section(render(connection), "Expert load by layer"))
    assert [row["Dead experts"] for row in layers] == ["2 of 4", "2 of 4"]


def test_the_stability_table(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"noise_std": [0.1]}, "baseline": {}})
    for seed, steps, norm in ((42, 100, 2.0), (43, None, 9.0), (44, 140, 3.0)):
        job = made.add_job(connection, study, {"noise_std": 0.1}, seed)
        made.add_result(connection, job, steps_to_loss=steps, max_grad_norm=norm, loss_spikes=seed - 42)
    (row,) = tables(section(render(connection), "Training stability"))[0]
    assert row["Steps to target loss"] == "120 (2/3)"
    assert row["Largest gradient norm"] == "9.00"
    assert row["Loss spikes"] == "1.0"
    assert row["Clipped updates (%)"] == "25.0"


@pytest.mark.slow
def test_a_report_of_many_cancelled_runs_is_short(store: Store) -> None:
    """Each run that is missing is counted, and not given a line in every table."""
    factors = {"noise_std": [0.0, 0.1], "top_k": [1, 2]}
    grid = parse_grid({"name": "many", "factors": factors, "seeds": list(range(500))})
    store.write(lambda c: enqueue(c, "many", grid))
    store.write(lambda c: jobs.cancel_all(c, range(1, 2001)))
    with store.read() as connection:
        text = render(connection)
    assert "2000 cancelled" in fact(text, "Runs")
    assert "And 1970 more" in section(text, "Runs without a result")
    assert "The 2,000 runs without a result are left out." in section(text, "Results by seed")
    assert len(text.splitlines()) < 300


def test_unfinished_studies_say_what_is_missing(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    text = render(connection)
    assert "Unfinished: 7 of 18 runs have no result" in text
    assert "11 of 18 done; 3 failed (diverged 3); 1 running; 3 queued." in fact(text, "Runs")
    rows = aggregate(text)
    assert rows[0.1, 0.0]["n"] == "2/3"
    assert rows[0.5, 0.01]["n"] == "0/3"
    assert {v for k, v in rows[0.5, 0.01].items() if k not in (*made.FACTORS, "n")} == {"–"}
    missing = tables(section(text, "Runs without a result"))[0]
    assert len(missing) == 7
    assert (missing[0]["Status"], missing[0]["Last cause"], missing[0]["Message"]) == (
        "failed",
        "diverged",
        "loss is nan",
    )
    assert "| 44 | – | – | – | – |" in section(text, "Results by seed")
    contrasts = tables(section(text, "Paired contrasts"))[0]
    assert {row["n"] for row in contrasts} == {"3", "2", "0"}
    # One condition is queued, the other diverged with every seed: that is not the same.
    assert [(row["First is"], row["Diverged"]) for row in contrasts if row["n"] == "0"] == [
        ("unclear (PROVISIONAL)", "–"),
        ("unclear", "3/3 against 0/3"),
    ]


def test_runs_that_the_grid_wants_and_nobody_enqueued(connection: sa.Connection) -> None:
    made.finished_study(connection, grid={"seeds": [42, 43, 44, 45]})
    assert "6 of the grid never enqueued" in fact(render(connection), "Runs")


@pytest.mark.slow
def test_runs_that_other_studies_have_too_are_named(connection: sa.Connection) -> None:
    made.finished_study(connection)
    assert "Shared runs" not in render(connection)
    more = made.add_study(connection, "more", grid={"seeds": [42, 43]})
    third = made.add_study(connection, "third")
    for number, cell in enumerate(made.cells(made.FACTORS)):
        made.finish(connection, more, cell, 42)
        if number < 2:
            made.finish(connection, third, cell, 44)
    named = "of its 18 runs have the configuration of runs in study"
    assert fact(render(connection, "factorial"), "Shared runs") == (
        f"6 {named} more, 2 {named} third; same configuration, same seed: no independent evidence"
    )
    assert fact(render(connection, "third"), "Shared runs").startswith("2 of its 2 runs")


def test_what_is_mixed_is_named(connection: sa.Connection) -> None:
    study = made.add_study(connection)
    for cell in made.cells(made.FACTORS):
        for seed in made.SEEDS:
            made.finish(connection, study, cell, seed)
    other = {**made.PROVENANCE, "git_dirty": True, "packages": {"torch": "2.11.0", "numpy": "2.4.6"}}
    connection.execute(
        sa.update(schema.attempts).where(schema.attempts.c.job_id <= 4).values(provenance=json.dumps(other))
    )
    connection.execute(sa.update(schema.results).where(schema.results.c.job_id == 9).values(exact=0))
    text = render(connection)
    assert "> **Note:** Mixed: runs differ in git_dirty, packages.torch;" in text
    assert "Mixed: packages.torch: 2.11.0 (4 runs), 2.13.0 (14 runs)." in section(text, "Provenance")
    assert "Mixed: git_dirty: false (14 runs), true (4 runs)." in text
    assert "packages.numpy" not in text
    assert "uncommitted changes in 4 runs" in fact(text, "Code")
    assert fact(text, "Exactness").startswith("1 of 18 results are not exact")


def test_a_run_that_was_resumed_elsewhere_names_both_places(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid=ONE_CELL)
    for seed, resumed in ((42, 40), (43, None)):
        job = made.add_job(connection, study, {}, seed, attempt=2)
        first = {**made.PROVENANCE, "host": "there"}
        made.add_attempt(connection, job, 1, outcome="lost", cause="lost", provenance=first)
        made.add_attempt(connection, job, 2, resumed_from_step=resumed)
        made.add_result(connection, job, attempt=2)
    # The second run began afresh, so that its first attempt left nothing in the result.
    assert "Mixed: host: here (1 run), there then here (1 run)." in render(connection)


def test_runs_that_were_told_different_things_are_named(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid=ONE_CELL)
    for seed, steps in ((42, 400), (43, 4000)):
        config = made.configuration({}, seed)
        config["train"]["steps"] = steps
        made.add_result(connection, made.add_job(connection, study, {}, seed, config=config))
    text = render(connection)
    assert "Mixed: train.steps: 400 (1 run), 4000 (1 run)." in text
    assert "steps varies" in fact(text, "Model and training")


def test_a_factor_with_a_dotted_name_varies_by_design(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"train.steps": [400, 800]}, "baseline": {}})
    for steps in (400, 800):
        config = made.configuration({}, 42)
        config["train"]["steps"] = steps
        made.add_job(connection, study, {"train.steps": steps}, 42, "queued", config=config)
    assert "Mixed" not in render(connection)


def test_parameters_that_differ_between_cells_are_not_called_the_same(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"top_k": [1, 2]}, "baseline": {}})
    for top_k, active in ((1, 22_000_000), (2, 24_000_000)):
        config = made.configuration({}, 42)
        config["model"]["top_k"] = top_k
        job = made.add_job(connection, study, {"top_k": top_k}, 42, config=config)
        made.add_result(connection, job, parameters_active=active)
    text = render(connection)
    assert fact(text, "Parameters").startswith("not the same in every cell")
    assert "Mixed: model.top_k" not in text  # it varies by design


def test_sizes_that_differ_between_conditions_are_a_range(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid={"factors": {"train.steps": [100, 1000]}, "baseline": {}})
    for steps in (100, 1000):
        for seed in (42, 43):
            job = made.add_job(connection, study, {"train.steps": steps}, seed)
            made.add_result(connection, job, tokens_seen=2048 * steps, parameters_total=8_460_000)
    said = fact(render(connection), "Scale")
    assert "8.46 M parameters and 205 k to 2.05 M training tokens a run" in said


def test_scaled_and_published_studies_are_marked(connection: sa.Connection) -> None:
    made.finished_study(connection, grid={"scale": "smoke"}, protocol="published")
    text = render(connection)
    assert fact(text, "Scale").startswith("smoke: ")
    assert fact(text, "Scale").endswith("far below the scale of the question")
    assert "> **Note:** Published protocol: its validation text is almost all in the training text" in text
    assert "the split is drawn from the run's seed" in fact(text, "Known defects of the protocol").lower()


def test_values_that_are_not_finite_are_named_and_in_no_mean(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid=ONE_CELL)
    for seed in made.SEEDS:
        job = made.add_job(connection, study, {}, seed)
        broken = seed == 44
        perplexity = math.inf if broken else 90.0
        made.add_result(connection, job, val_perplexity=perplexity, val_accuracy=None if broken else 0.25)
        if broken:
            made.add_metric(connection, job, "accuracy", None, nonfinite="nan")
    text = render(connection)
    assert "Not finite, so in no mean: job 3 (all runs, seed 44): accuracy nan, val_perplexity inf." in text
    (row,) = tables(section(text, "Results by condition"))[0]
    assert row["Val PPL"] == "90.00 ± 0.00 (n=2)"
    assert row["Accuracy"] == "0.2500 ± 0.0000 (n=2)"


def test_a_run_under_way_may_be_not_finite_without_being_named(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid=ONE_CELL)
    job = made.add_job(connection, study, {}, 42, "running")
    made.add_metric(connection, job, "loss", None, nonfinite="nan")
    assert "Not finite" not in render(connection)


def test_the_newest_record_of_any_table_dates_the_report(connection: sa.Connection) -> None:
    study = made.add_study(connection, grid=ONE_CELL)
    job = made.add_job(connection, study, {}, 42, "running")
    assert fact(render(connection), "Database").endswith(instant(made.START + 1))
    made.add_attempt(connection, job, outcome=None, started_at=made.START + 70, ended_at=None)
    assert fact(render(connection), "Database").endswith(instant(made.START + 70))
    connection.execute(sa.update(schema.studies).values(test_revealed_at=made.START + 80))
    assert fact(render(connection), "Database").endswith(instant(made.START + 80))
    assert fact(render(connection), "Test split") == f"revealed {instant(made.START + 80)}"


def test_two_runs_of_one_seed_in_one_cell_make_no_pair(connection: sa.Connection) -> None:
    made.finished_study(connection)
    cell = made.cells(made.FACTORS)[0]
    told = made.configuration(cell, 42)
    told["train"]["steps"] = 800
    made.add_result(connection, made.add_job(connection, 1, cell, 42, config=told))
    table = tables(section(render(connection), "Paired contrasts"))[0]
    assert [row["n"] for row in table] == ["2", "3", "3", "3", "3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (
            {"noise_std": 0.5, "load_balancing_weight": 0.0},
            "Baseline: noise_std=0.5, load_balancing_weight=0.0.",
        ),
        ({"noise_std": 0.5}, "the one declared is not one condition: this is the first of the grid"),
        ({}, "none was declared: this is the first of the grid"),
    ],
)
def test_the_baseline_is_the_declared_one(
    connection: sa.Connection, baseline: dict[str, float], said: str
) -> None:
    made.finished_study(connection, grid={"baseline": baseline})
    assert said in section(render(connection), "Paired contrasts")


@pytest.mark.slow
def test_another_metric_and_margin_are_asked_for_and_said(connection: sa.Connection) -> None:
    made.finished_study(connection)
    text = render(connection, metric="expert_usage_cv", margin="0.02")
    compared = "expert_usage_cv, margin 0.02 (given on the command line, not declared)"
    assert fact(text, "Compared here") == f"{compared}; asked for on the command line"
    assert "Difference: first - second in expert_usage_cv, paired by seed." in text
    assert "Equivalence p is for ±0.02, given on the command line, not declared" in text
    assert "--metric expert_usage_cv --margin 0.02 > experiment_results.md" in text
    row = tables(section(text, "Paired contrasts"))[0][3]
    cv = [made.loss_of(made.cells(made.FACTORS)[i], seed) / 40 for i in (4, 2) for seed in made.SEEDS]
    assert float(row["Difference"]) == pytest.approx(np.mean(cv[:3]) - np.mean(cv[3:]), abs=0.00006)
    assert "Compared here" not in render(connection)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "nope"}, "--metric nope: not among the recorded results; choose one of val_loss, "),
        ({"metric": "seed"}, "--metric seed: not among"),
        ({"margin": "1"}, "--margin 1: of what? write 1nats, 1ppl, 1percent"),
    ],
)
def test_bad_options_are_one_line(connection: sa.Connection, options: dict[str, str], said: str) -> None:
    made.finished_study(connection)
    with pytest.raises(UnknownOption, match=re.escape(said)):
        render(connection, **options)


@pytest.mark.slow
def test_strict_refuses_what_is_mixed_or_not_exact(connection: sa.Connection) -> None:
    made.finished_study(connection)
    assert render(connection, strict=True).splitlines()[0] == "# Study factorial"
    connection.execute(sa.update(schema.results).where(schema.results.c.job_id == 9).values(exact=0))
    with pytest.raises(NotUniform, match="study factorial: not uniform: 1 results are not exact") as refusal:
        render(connection, strict=True)
    assert refusal.value.exit_code == 65
    other = {**made.PROVENANCE, "host": "there"}
    attempts = sa.update(schema.attempts).where(schema.attempts.c.job_id == 1)
    connection.execute(attempts.values(provenance=json.dumps(other)))
    with pytest.raises(NotUniform, match=r"host: here \(17 runs\), there \(1 run\) \(and 1 more\)"):
        render(connection, strict=True)


def test_what_was_declared_stands_in_the_banner(connection: sa.Connection) -> None:
    declared = {"name": "a", "kind": "less", "metric": "val_loss", "compare": {}, "against": {}}
    made.finished_study(connection, grid={"claims": [declared]})
    declared_line = fact(render(connection), "Declared before the runs")
    assert "margins and 1 claim, in the grid factorial, 2023-11-14 22:13:20 UTC" in declared_line


def test_the_router_and_the_load_stand_in_the_tables(connection: sa.Connection) -> None:
    made.curved_study(connection)
    text = render(connection)
    row = tables(section(text, "Routing"))[0][0]
    assert row["Router entropy (nats)"] == f"{0.502:.4f} ± {0.001:.4f}"  # jobs 1, 2 and 3
    assert row["Clean and noisy top-k agree"].startswith("0.7020")
    counts = np.array([made.layer_counts(seed) for seed in made.SEEDS], dtype=float)
    found = aggregate(text)[0.0, 0.01]
    assert found["MaxVio"] == f"{(counts.max(axis=2) / counts.mean(axis=2) - 1).mean():.4f}"
    assert found["Mean layer CV"].startswith(f"{(counts.std(axis=2) / counts.mean(axis=2)).mean():.4f}")
    assert found["Dead experts"] == "0 of 24"


def test_timings_and_failures(connection: sa.Connection) -> None:
    made.unfinished_study(connection)
    for name, value in {"evaluation_seconds": 6.0, "compile_seconds": 12.0, "waiting_seconds": 0.0}.items():
        there = sa.select(schema.results.c.job_id, sa.literal(name), sa.literal(value))
        connection.execute(schema.measures.insert().from_select(["job_id", "name", "value"], there))
    text = render(connection)
    timing = tables(section(text, "Timings and cost"))[0][0]
    assert (timing["Training (min)"], timing["Evaluation (min)"]) == ("1.6", "0.10")
    assert timing["Hours in all"] == f"{3 * (96 + 6 + 12) / 3600:.2f}"
    assert f"{11 * 114 / 3600:.2f} hours of device time for the 11 finished runs" in text
    failed, lost = tables(section(text, "Failures and retries"))[0]
    assert (failed["Outcome"], failed["Cause"], failed["Attempts"], failed["Charged"]) == (
        *("failed", "diverged", "3", "3"),
    )
    assert (lost["Cause"], lost["Runs"], lost["Last message"]) == ("lost", "1", "lease expired")
    assert "0 of 11 finished runs needed more than one" in text


@pytest.mark.slow
@pytest.mark.numerical
def test_the_whole_page_is_what_it_was(connection: sa.Connection) -> None:
    """A change of the report's text is seen here: read the difference, then make the file again.

    python -m tests.sections.test_report writes it.
    """
    assert snapshot(connection) == SNAPSHOT.read_text()


def snapshot(connection: sa.Connection) -> str:
    claims = [dict(claim) for claim in load_grid("factorial").describe()["claims"]]
    made.curved_study(connection, grid={"claims": claims})
    job = made.add_job(connection, 1, made.cells(made.FACTORS)[0], 45, "failed")
    made.add_attempt(connection, job, outcome="failed", cause="oom", message="out of memory", charged=1)
    return render(connection)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, made.opened(Path(folder)) as opened:
        SNAPSHOT.write_text(snapshot(opened))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((0.00312, "+0.0031"), (0.00003, "+0.00003"), (-0.0000004, "-0.0000004"), (0.0, "0.0000")),
        *((-4e-16, "0.0000"), (math.nan, "–"), (-math.inf, "-inf")),
    ],
)
def test_a_difference_shows_its_sign_or_is_nothing(value: float, shown: str) -> None:
    assert signed(value, 4) == shown
    assert interval(value, 1.0, 4) == ("–" if math.isnan(value) else f"{shown.lstrip('+')} to 1.0000")


def test_named_levels_are_explained_and_not_called_a_mixture(connection: sa.Connection) -> None:
    levels = {
        "none": {"load_balancing_weight": 0.0},
        "bias": {"load_balancing_weight": 0.0, "bias_rate": 0.01},
    }
    grid = {"factors": {"balancing": list(levels)}, "levels": {"balancing": levels}}
    study = made.add_study(connection, grid={**grid, "baseline": {"balancing": "none"}})
    for name, values in levels.items():
        for seed in made.SEEDS:
            config = made.configuration(values, seed)
            job = made.add_job(connection, study, {"balancing": name}, seed, config=config)
            made.add_attempt(connection, job)
            made.add_result(connection, job, val_loss=4.5 + 0.01 * seed + 0.1 * (name == "bias"))
    text = render(connection)
    told = "none: load_balancing_weight 0.0; bias: load_balancing_weight 0.0, bias_rate 0.01"
    assert fact(text, "Levels of balancing") == told
    assert "Mixed:" not in text
    assert "balancing=bias" in section(text, "Paired contrasts")
    render(connection, strict=True)
