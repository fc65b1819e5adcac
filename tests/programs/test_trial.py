"""`new` and `try`: what is written runs as it is, and one cell of a grid runs without a database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from runner.care import trial
from runner.design.grid_file import load_grid

Cli = Callable[..., CompletedProcess[str]]
ENDLESS = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    steps: int = 1_000
    seed: int = 0

METRICS = {"error": "lower"}

def train(config, run):
    step = 0
    while not run.ends:
        step += step < 500
        if step not in run.told:
            run.told.add(step)
            run.log(step, loss=1.0)
"""


def grid_of(folder: Path, text: str) -> str:
    (folder / "own.py").write_text(text)
    (folder / "own.toml").write_text('program = "own.py"\nseeds = [1, 2, 3]\n')
    return str(folder / "own.toml")


def test_what_new_writes_can_be_tried_and_queued(cli: Cli, tmp_path: Path) -> None:
    assert cli("new", "mine").stdout == "mine.py, mine.toml: python cli.py try mine.toml\n"
    done = cli("try", "mine.toml", "--set", "steps=20")
    assert done.returncode == 0, done.stderr
    assert "step 1 train: loss" in done.stdout
    assert "done in 0s: test_error " in done.stdout
    assert "20 runs like this one: about " in done.stdout
    assert not (tmp_path / "jobs.db").exists()
    assert cli("enqueue", "--grid", "mine.toml").stdout == "mine: 20 queued\n"
    again = cli("new", "mine")
    assert (again.returncode, again.stderr) == (65, "error: mine.py: exists already; take another name\n")
    assert cli("new", "two words").returncode == 65


def test_a_run_that_does_not_end_is_stopped_and_its_cost_known(tmp_path: Path) -> None:
    text = ENDLESS.replace("    step = 0\n", "    step, run.told = 0, set()\n")
    grid = load_grid(grid_of(tmp_path, text))
    found = trial.attempt(grid, 0.3, "auto", 1, tmp_path)
    assert (found.results, found.last[0]) == (None, 500)
    lines = trial.verdict(grid, found)
    assert lines[0].startswith("stopped after step 500 of 1000, in ")
    assert lines[1].startswith("3 runs like this one: about ")


def test_a_cost_counts_once_what_a_run_does_once() -> None:
    found = trial.Trial(None, began=10.0, ended=30.0, first=(1, 20.0), last=(11, 30.0))
    assert found.whole_seconds(101) == 10.0 + 100 * 1.0
    assert trial.Trial(None, began=10.0, ended=30.0, first=(1, 20.0), last=(1, 20.0)).whole_seconds(5) is None


def test_an_error_has_its_traceback_and_one_line(cli: Cli, tmp_path: Path) -> None:
    grid = grid_of(tmp_path, ENDLESS.replace("    step = 0\n", "    raise ZeroDivisionError('none left')\n"))
    done = cli("try", grid)
    assert done.returncode == 65
    assert done.stderr.splitlines()[-1] == (
        "error: own.py: ZeroDivisionError: none left; a night would record the cause bug"
    )
    assert "line 12, in train" in done.stderr


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("pass", "train returned None, though nobody asked it to stop"),
        ("return {}", "train returned no error, the first of METRICS"),
        ("raise SystemExit(1)", "SystemExit: 1"),
    ],
)
def test_what_the_night_would_refuse_fails_here_too(cli: Cli, tmp_path: Path, end: str, said: str) -> None:
    head = ENDLESS.partition("    step = 0\n")[0]
    done = cli("try", grid_of(tmp_path, f"{head}    {end}\n"))
    assert done.returncode != 0
    assert said in done.stderr.splitlines()[-1]
    assert "a night would record the cause bug" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["9th", "a b", "../up"])
def test_a_name_is_one_of_a_module(name: str) -> None:
    with pytest.raises(trial.ConfigError, match="letters, digits"):
        trial.begin(name)
