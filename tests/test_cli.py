"""The command line as a user meets it: one line for a mistake, a documented exit code, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from runner.queue import jobs, schema
from runner.queue.store import Store, open_store
from runner.view.command import run_folder
from tests import warm
from tests.conftest import PROJECT, TEXT, environment, row, rows

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("enqueue --grid nope", 65, "no such grid or file; shipped grids"),
        ("enqueue --grid factorial --set top_k=9", 65, "model.top_k = 9"),
        ("enqueue --grid factorial --set noise_std=nan", 65, "a factor of this grid"),
        ("enqueue --grid factorial --seeds 1,1", 65, "twice"),
        ("enqueue --grid factorial --study ../x", 65, "'../x'"),
        ("enqueue --grid factorial --study a|b<script>", 65, "letters, digits"),
        ("enqueue --grid factorial --corpus none.jsonl", 65, "none.jsonl"),
        ("enqueue --grid factorial --scale large", 2, "large"),
        ("enqueue --grid factorial --tokenizer none --corpus bundled", 65, "none"),
        ("work", 69, "no database there"),
        ("work --device tpu", 2, "cuda:0"),
        ("work --devices cuda:0,all", 2, "cuda:0,cuda:2"),
        ("work --runs-dir s3://bucket/runs", 2, "object stores"),
        ("work --time-limit soon", 2, "9m"),
        ("status", 69, "python cli.py enqueue --grid factorial"),
        ("report", 69, "no database there"),
        ("report --std both", 2, "both"),
        ("show 1", 69, "no database there"),
        ("export --format exe", 2, "csv"),
        ("import none.csv --study x", 65, "none.csv"),
        ("status --db /nowhere/at/all.db", 69, "no database there"),
        ("enqueue --grid factorial --corpus bundled --db /nowhere/at/all.db", 69, "/nowhere/at/all.db"),
    ],
)
def test_mistake_gets_one_line_and_its_exit_code(
    cli: Cli, tmp_path: Path, arguments: str, code: int, said: str
) -> None:
    done = cli(*arguments.split())
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if code == 65:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    database = tmp_path / "jobs.db"
    if database.exists():  # made for an import that was then refused: empty
        assert rows(open_store(str(database)), "jobs") == []


def test_unknown_job_or_study_names_what_there_is(cli: Cli, tiny_grid: Path) -> None:
    assert cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled").returncode == 0
    for command in (("show", "99"), ("retry", "99"), ("cancel", "99")):
        done = cli(*command)
        assert (done.returncode, "Traceback" in done.stderr) == (65, False)
        assert "99" in done.stderr
    done = cli("report", "--study", "none")
    assert (done.returncode, "tiny" in done.stderr) == (65, True)


def test_dry_run_shows_the_jobs_and_writes_nothing(cli: Cli, tmp_path: Path, tiny_grid: Path) -> None:
    done = cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled", "--dry-run")
    assert done.returncode == 0
    assert "4 jobs" in done.stdout
    told = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert told["the grid"].split("  ")[1].strip().startswith("model.d_model 16, model.n_layers 1,")
    assert "2,560 training tokens a run, 0.427 epochs of 6,000; 10,240 in all" in done.stdout
    assert "cost not known: no run of that size has finished" in " ".join(done.stdout.split())
    assert not (tmp_path / "jobs.db").exists()


def test_corpus_is_chosen_at_enqueue_and_frozen_in_every_job(
    cli: Cli, tmp_path: Path, tiny_grid: Path
) -> None:
    auto = cli("enqueue", "--grid", str(tiny_grid))
    assert auto.returncode == 0
    assert "corpus: bundled, because" in auto.stderr  # no hub here: said, not hidden
    store = open_store(str(tmp_path / "jobs.db"))
    facts = json.loads(row(store, "studies")["facts"])
    assert (facts["corpus"], len(facts["corpus_id"])) == ("bundled", 64)
    assert all(facts["corpus_id"] in job["config"] for job in rows(store, "jobs"))
    assert cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled").stdout.startswith(
        "tiny: 0 queued, 4"
    )


def test_own_text_becomes_a_study_of_its_own(cli: Cli, tmp_path: Path, tiny_grid: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(
            f"Story {number}. " + "The night is long and the fan is loud. " * 40
        )
    mine = ("--grid", str(tiny_grid), "--corpus", "texts")
    assert cli("enqueue", *mine, "--study", "stories").returncode == 0
    assert cli("work", "--jobs", "1").returncode == 0
    clash = cli("enqueue", *mine, "--study", "stories", "--tokenizer", "bundled-4096")
    assert (clash.returncode, "--study NAME" in clash.stderr) == (65, True)
    (texts / "40.txt").write_text("One story more, since yesterday. " * 50)
    assert cli("work", "--jobs", "1").returncode == 0
    store = open_store(str(tmp_path / "jobs.db"))
    assert [job["status"] for job in rows(store, "jobs")][:2] == ["done", "failed"]
    assert row(store, "attempts", job_id=2)["cause"] == "bad_config"  # another text under the old name


def test_published_results_print_their_published_table(cli: Cli, tmp_path: Path) -> None:
    source = Path(__file__).parent / "data" / "published_results.csv"
    assert cli("import", str(source), "--study", "published").stdout == "published: 18 results imported\n"
    report = cli("report", "--study", "published", "--std", "population")
    assert report.returncode == 0, report.stderr
    for shown in ("130.23 ± 0.94", "130.54 ± 1.02", "144.37 ± 1.40", "0.0696", "0.3345"):
        assert shown in report.stdout
    exported = cli("export", "--study", "published")
    assert exported.stdout.splitlines()[0].startswith("seed,noise_std,load_balancing_weight,val_loss")
    assert len(exported.stdout.splitlines()) == 19


def test_too_little_text_is_said_at_enqueue(cli: Cli, tmp_path: Path, tiny_grid: Path) -> None:
    (tmp_path / "short.txt").write_text("Once upon a time there was a very short story.")
    done = cli("enqueue", "--grid", str(tiny_grid), "--corpus", "short.txt")
    assert (done.returncode, "Traceback" in done.stderr) == (65, False)
    assert not (tmp_path / "jobs.db").exists()


def test_environment_names_the_database(cli: Cli, tmp_path: Path, tiny_grid: Path) -> None:
    other = tmp_path / "other.db"
    cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled", "--db", f"sqlite:///{other}")
    assert other.exists()
    assert cli("status", "--db", str(other)).returncode == 0
    assert cli("status").returncode == 69
    assert cli("db", "upgrade", "--db", str(other)).stdout.startswith(f"schema {schema.HEAD}")


def test_run_folder_that_cannot_be_made_is_named(cli: Cli, tmp_path: Path, tiny_grid: Path) -> None:
    assert cli("enqueue", "--grid", str(tiny_grid), "--corpus", "bundled").returncode == 0
    (tmp_path / "taken").write_text("")
    done = cli("work", "--runs-dir", "taken")
    assert (done.returncode, done.stdout) == (73, "")
    [line] = done.stderr.splitlines()
    assert "taken" in line


@pytest.mark.slow
def test_the_run_folder_lies_beside_its_database(queued: Store, lease: jobs.Lease, tmp_path: Path) -> None:
    """Wherever the command is called, and whatever links lead there."""
    log = tmp_path / "runs" / queued.database_id / "1" / "a1" / "trainer.log"
    log.parent.mkdir(parents=True)
    log.write_text("step 4\n")
    values = {"log_path": "1/a1/trainer.log"}
    queued.write(lambda c: c.execute(sa.update(schema.attempts).values(values)))
    queued.write(lambda c: jobs.end_cancelled(c, lease))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link.db").symlink_to(queued.path)
    for name in ("../jobs.db", "link.db", f"sqlite:///{queued.path}"):
        for words, said in ((["logs", "1"], "step 4"), (["clean"], "0 checkpoints and 1 logs")):
            call = [sys.executable, str(PROJECT / "cli.py"), *words, "--db", name]
            done = warm.run(call, cwd=elsewhere, env=environment(), **TEXT)
            assert said in done.stdout, done.stderr
    assert run_folder("postgresql+psycopg://me@host/lab", None) == Path("runs")
    assert run_folder(name, Path("mine")) == Path("mine")
