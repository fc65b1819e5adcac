"""A report of another program than the language model: what it measures comes from the study's row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from reports.figures.comparison import pictures
from reports.figures.layout import read_curves
from reports.output.compare import compare_studies
from reports.output.export import export
from reports.output.files import first_screen, gather, produce
from reports.output.runs import run_pages
from reports.output.seeds import plan
from reports.reading.frames import choose_study, load
from reports.reading.units import UnknownOption
from reports.sections.behaviour import STABILITY
from reports.statistics.analysis import Options, analyse
from runner.queue import schema
from runner.queue.series import chosen
from runner.queue.store import Store
from tests import report_fixtures as made
from tests.conftest import PROJECT, environment
from tests.report_reading import render, section, tables

MEASURES: list[dict[str, Any]] = [
    {"name": "test_loss", "better": "lower", "decimals": 4},
    {"name": "test_accuracy", "better": "higher", "decimals": 3, "unit": "share"},
]
RATES, SEEDS = (0.03, 0.1, 0.3), range(4)
OF_A_LANGUAGE_MODEL = ("perplexity", "ppl", "expert", "corpus", "token", "router", "text")


def loss_of(rate: float, seed: int, effect: float = 0.5) -> float:
    return 1 + effect * abs(rate - 0.1) + 0.01 * seed + 0.001 * ((seed * 7 + int(rate * 10)) % 5) * rate


def accuracy_of(rate: float, seed: int) -> float:
    return 0.8 - abs(rate - 0.1) / 4 + 0.001 * ((seed * 3 + int(rate * 10)) % 4)


def add_study(
    connection: sa.Connection, name: str, effect: float = 0.5, primary: str = "", **facts: str
) -> None:
    grid = {
        "question": "Which step size?",
        "factors": {"lr": list(RATES)},
        "baseline": {"lr": 0.1},
        "primary": primary,
        "margins": {},
        "seeds": list(SEEDS),
    }
    study = made.add_study(connection, name, grid=grid)
    program = {
        "path": "my_study.py",
        "hash": "ab",
        "measures": MEASURES,
        "keys": {"lr": "float", "seed": "int"},
    }
    connection.execute(
        sa.update(schema.studies)
        .where(schema.studies.c.id == study)
        .values(program=json.dumps(program), facts=json.dumps(facts))
    )
    for rate in RATES:
        for seed in SEEDS:
            job = made.add_job(connection, study, {"lr": rate}, seed, config={"lr": rate, "seed": seed})
            made.add_attempt(connection, job)
            connection.execute(
                sa.insert(schema.results).values(job_id=job, attempt=1, recorded_at=made.START + job)
            )
            values = {"test_loss": loss_of(rate, seed, effect), "test_accuracy": accuracy_of(rate, seed)}
            rows = [{"job_id": job, "name": name, "value": value} for name, value in values.items()]
            connection.execute(sa.insert(schema.measures), rows)


def test_the_report_has_its_measures_and_nothing_of_a_language_model(connection: sa.Connection) -> None:
    add_study(connection, "mine", data="digits")
    text = render(connection)
    assert "lr=0.1 has the lowest test_loss, 1.01" in text
    rows = tables(section(text, "Results by condition"))[0]
    assert [row["test_accuracy"] for row in rows] == ["0.784 ± 0.001", "0.801 ± 0.001", "0.751 ± 0.001"]
    assert "- **data:** digits" in text
    assert "Primary metric:** test_loss (lower is better); margin of equivalence none" in text
    assert not [word for word in OF_A_LANGUAGE_MODEL if f" {word}" in text.lower()]
    higher = first_screen(connection, "mine")
    assert "worse" in higher


def test_the_direction_is_the_rows(connection: sa.Connection) -> None:
    add_study(connection, "mine")
    text = render(connection, metric="test_accuracy").replace("\u00a0", " ")
    assert "lr=0.1 has the highest test_accuracy, 0.801, and is the baseline." in text
    assert "0.03 is worse by 2.2 % and 0.3 is worse by 6.2 %" in text
    with pytest.raises(UnknownOption, match="choose one of test_loss, test_accuracy"):
        render(connection, metric="val_loss")


@pytest.mark.slow
def test_the_page_the_plan_and_the_comparison(connection: sa.Connection) -> None:
    add_study(connection, "mine")
    add_study(connection, "other", 0.2)
    options = Options(format="html")
    page = produce(gather(connection, "mine", options), options, PROJECT / "none")["report.html"].decode()
    assert "test_accuracy (share)" not in page
    assert "nats" not in page
    assert "if it is 0.05 in test_loss" in plan(connection, "mine", "0.05", None).text
    with pytest.raises(UnknownOption, match="test_loss has its own unit"):
        plan(connection, "mine", "0.5percent", None)
    text = compare_studies(connection, "mine", "other")
    assert "Of 3 conditions" in text
    assert "% of PPL" not in text
    made.finished_study(connection, "language")
    columns = export(connection, "mine").decode().splitlines()[0].split(",")
    assert columns[:4] == ["seed", "lr", "test_loss", "test_accuracy"]
    assert not {"val_loss", "noise_std", "corpus"} & set(columns)


Logged = dict[str, tuple[str, ...]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("primary", "logged", "axes", "told"),
    [
        ("test_loss", {"train": ("error",)}, ["Training error"], "Error over training steps: thin"),
        ("test_loss", {"val": ("error",)}, ["Held-out error"], "The held-out error, as the runs logged it."),
        (
            "test_accuracy",  # its own name before loss, and its unit for what ends it
            {"train": ("accuracy", "tokens_per_second"), "val": ("loss", "test_accuracy")},
            ["Training accuracy\n(share)", "Held-out test_accuracy\n(share)"],
            "Above, the training accuracy of each update; below, the held-out test_accuracy of each",
        ),
        (
            "test_accuracy",
            {"train": ("accuracy", "loss"), "val": ("loss", "other")},
            ["Training loss", "Held-out loss"],
            "Above, the training loss of each update; below, the held-out loss of each evaluation.",
        ),
    ],
)
def test_the_curves_are_of_what_the_program_logs(
    connection: sa.Connection, primary: str, logged: Logged, axes: list[str], told: str
) -> None:
    add_study(connection, "mine", primary=primary)
    for split, names in logged.items():
        for name in names:
            for step in (1, 2):
                made.add_metric(connection, 1, name, len(name) / step, step=step, split=split)
    data = load(connection, choose_study(connection)[0])
    curves = read_curves(connection, data)
    (learning,) = pictures(curves, analyse(data, Options()))[STABILITY]
    assert [each.get_ylabel() for each in learning.draw().axes if each.get_ylabel()] == axes
    assert told in learning.caption
    run = next(page.picture for page in run_pages(curves, data, PROJECT / "none") if page.job == 1)
    assert run is not None
    (drawn,) = run.draw().axes
    series = [each.replace("\n", " ").partition(" ")[2] for each in axes]
    assert drawn.get_ylabel() == series[0][0].upper() + series[0][1:]
    # Two series would want two axes: a run's figure has the second only where it is the first's.
    assert len(drawn.lines) == series.count(series[0])
    assert ("and held-out" in run.caption) == (len(drawn.lines) == 2)


def test_no_candidate_is_the_alphabets_first_and_never_the_speed() -> None:
    assert chosen(["tokens_per_second", "z", "b"], "test_loss") == "b"
    assert chosen(["tokens_per_second"], "test_loss") == ""


BARE = """
import sys
LACKING = {"torch", "transformers", "triton", "tokenizers", "datasets", "safetensors", "huggingface_hub"}
LACKING |= {"pyarrow", "psycopg", "statsmodels", "sklearn", "tensorboard", "selenium"}

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LACKING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())
import cli
for words in sys.argv[1:]:
    sys.argv = ["cli.py", *words.split()]
    try:
        cli.main()
    except SystemExit as leaving:
        print("\\nCODE", leaving.code, words, flush=True)
"""


@pytest.mark.slow
def test_reading_needs_no_torch_and_what_does_says_so(store: Store, tmp_path: Path) -> None:
    store.write(lambda c: (add_study(c, "mine"), add_study(c, "other", 0.2)))
    read = ("status", "show 1", "digest", "report", "report --format html", "export", "compare mine other")
    read += ("power --study mine --difference 0.1",)
    lacking = ("export --format parquet", "enqueue --grid factorial --scale smoke --corpus bundled")
    done = subprocess.run(
        [sys.executable, "-c", BARE, *read, *lacking],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stdout.splitlines() if line.startswith("CODE")]
    assert codes == [*(f"CODE 0 {words}" for words in read), *(f"CODE 69 {words}" for words in lacking)]
    assert "error: pyarrow is not installed: `pip install -r requirements.txt`" in done.stderr
    assert "error: tokenizers is not installed: " in done.stderr
