"""Choosing a grid: what `grids` lists, what `grids show` prints, and a cost that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli as program
from runner.design import catalogue
from runner.design.catalogue import Cost, cost
from runner.design.enqueue import enqueue
from runner.design.grid_file import load_grid, parse_grid
from runner.design.scales import adjust
from runner.queue import jobs
from runner.queue.speed import Pace, paces, size_of
from runner.queue.store import Store
from runner.view.designs import sentence
from runner.view.plan import origins
from tests.nights import took


def timed(
    store: Store, seconds: dict[int, float], device: str = "cpu", host: str = "here", **clocks: float
) -> None:
    """Finish the jobs that are named, each in so many seconds, and `clocks` of them among its measures."""
    worker = jobs.Worker(owner=f"{device}-{host}", host=host, pid=1, device=device)
    for _ in seconds:
        lease = store.write(lambda c: jobs.claim(c, worker))
        assert lease is not None
        store.write(lambda c, lease=lease: jobs.finish(c, lease, {"val_loss": 4.0, **clocks}))
        took(store, lease, seconds[lease.job_id])


@pytest.fixture
def measured(store: Store) -> Store:
    """Two finished runs of 8 steps: 4 s with four experts, 12 s with eight."""
    content = {"name": "m", "factors": {"n_experts": [4, 8]}, "seeds": [1], "base": {"train.steps": 8}}
    grid = parse_grid(content)
    store.write(lambda c: enqueue(c, "m", grid))
    timed(store, {1: 4.0, 2: 12.0})
    return store


def test_a_cost_is_steps_times_what_a_step_of_that_size_took(measured: Store) -> None:
    with measured.read() as connection:
        found = paces(connection, "here")
        elsewhere = paces(connection, "there")
    grid = parse_grid(
        {"name": "g", "factors": {"n_experts": [4, 8], "noise_std": [0.0, 1.0]}, "seeds": [1, 2, 3]}
    )
    assert grid.base.train.steps == 400
    # 400 steps × 3 seeds × 2 noise levels, at half a second and at one and a half.
    assert cost(grid, found) == Cost(400 * 3 * 2 * (0.5 + 1.5), "cpu")
    assert cost(grid, elsewhere) is None
    assert cost(parse_grid({"name": "g", "factors": {"n_experts": [4, 16]}, "seeds": [1]}), found) is None


def test_short_runs_tell_what_long_ones_cost(store: Store) -> None:
    """Of two runs of 8 steps: the update after the first took 2 s, two evaluations 10 s, everything 32 s."""
    short = parse_grid({"name": "m", "seeds": [1, 2], "base": {"train.steps": 8, "train.eval_every": 0}})
    store.write(lambda c: enqueue(c, "m", short))
    timed(store, {1: 32.0, 2: 32.0}, training_seconds=2.0, evaluation_seconds=10.0)
    with store.read() as connection:
        found = paces(connection, "here")
    long = parse_grid(
        {"name": "g", "seeds": [1, 2, 3], "base": {"train.steps": 800, "train.eval_every": 200}}
    )
    # 800 steps at half a second; three evaluations between, one at the end, the test split; one start.
    assert cost(long, found) == Cost(pytest.approx(3 * (400 + 5 * 5 + 20)), "cpu")


def test_runs_of_one_program_do_not_tell_what_anothers_cost() -> None:
    one, other = {"path": "one.py"}, {"path": "other.py"}
    assert size_of(one, {"lr": 0.1}) == size_of(one, {"lr": 0.3}) != size_of(other, {"lr": 0.1})
    sized = {**one, "pace": {"size": ["net.width"]}}
    assert size_of(sized, {"net": {"width": 8}}) != size_of(sized, {"net": {"width": 9}})


def test_runs_of_one_update_tell_nothing_of_the_next(store: Store) -> None:
    one = parse_grid({"name": "m", "seeds": [1], "base": {"train.steps": 4}})
    store.write(lambda c: enqueue(c, "m", one))
    timed(store, {1: 34.0}, training_seconds=0.0, evaluation_seconds=10.0)
    with store.read() as connection:
        assert cost(one, paces(connection, "here")) is None


def test_the_fastest_device_that_has_run_every_size_counts(measured: Store) -> None:
    grid = load_grid("factorial")
    small = {size_of(grid.program.record(), grid.base.to_dict()): Pace(0.25)}
    with measured.read() as connection:
        found = dict(paces(connection, "here"))
    assert cost(grid, {**found, "cuda:0": small}) == Cost(7_200 * 0.25, "cuda:0")
    assert cost(grid, {"cpu": {}, "cuda:0": small}) == Cost(7_200 * 0.25, "cuda:0")


def test_the_horizons_and_sizes_of_a_grid_are_summed() -> None:
    grid = adjust(load_grid("factorial-long"), "full")
    told = catalogue.describe(
        "factorial-long", "full", {"cuda:0": {size_of(grid.program.record(), grid.base.to_dict()): Pace(0.1)}}
    )
    assert (told["runs"], told["steps"], told["cost_seconds"]) == (60, 132_000, pytest.approx(13_200.0))
    assert told["training_tokens"] == 132_000 * 24 * 512
    assert catalogue.describe("factorial-long", "smoke", {})["steps"] == 30 * (40 + 400)


@pytest.mark.parametrize("name", catalogue.shipped())
def test_every_shipped_grid_says_what_it_is_for(name: str) -> None:
    design = catalogue.design(name, "full", {})
    assert design["name"] == name
    assert design["comment"].endswith(".")
    assert len(design["cells"]) * len(design["seeds"]) * design["repeats"] == design["scales"][0]["runs"]
    assert design["claims"] or name == "noise-floor"
    assert design["margins"] or name == "noise-floor"
    for claim in design["claims"]:
        assert claim["metric"] in sentence(claim)


def test_a_claim_is_a_sentence() -> None:
    claims = load_grid("noise-kinds").describe()["claims"]
    assert sentence(claims[0]) == "val_loss at noise_kind=gaussian is higher against noise_kind=none"
    crossed = load_grid("factorial").describe()["claims"][4]
    assert "where load_balancing_weight=0.0, is the same within the margin against where" in sentence(crossed)


def run(*words: str, width: int = 100) -> str:
    done = CliRunner().invoke(program.app, list(words), env={"COLUMNS": str(width)})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_the_list_and_the_design_are_printed(tmp_path: Path, measured: Store) -> None:
    nowhere = str(tmp_path / "none.db")
    listed = run("grids", "--db", nowhere)
    assert "factorial-long       60    –" in listed
    assert "nothing of that size has been run here" in listed
    assert max(map(len, listed.splitlines())) <= 100
    shown = run("grids", "show", "scale", "--db", nowhere)
    assert "            8x2: n_experts=8,top_k=2,d_ff=1536" in shown
    assert "size=dense,noise_std=0.0" in shown
    smaller = run("grids", "show", "factorial-long", "--scale", "smoke", "--db", nowhere)
    assert "factor    steps: 40, 400" in smaller
    assert "cells at smoke scale" in smaller
    assert "parameters with a vocabulary of 49,152; `enqueue` takes the tokenizer's\n" in smaller
    assert not Path(nowhere).exists()
    of_another_machine = run("grids", "--db", str(measured.path))
    assert "factorial-long       60    –" in of_another_machine


@pytest.mark.slow
def test_json_is_for_programs(tmp_path: Path) -> None:
    listed = json.loads(run("grids", "--json", "--scale", "smoke", "--db", str(tmp_path / "none.db")))
    assert [grid["name"] for grid in listed] == catalogue.shipped()
    assert {grid["scale"] for grid in listed} == {"smoke"}
    design = json.loads(run("grids", "show", "dose", "--json", "--db", str(tmp_path / "none.db")))
    assert design["factors"] == {"noise_std": [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0]}


def test_an_unknown_grid_is_refused() -> None:
    done = CliRunner().invoke(program.app, ["grids", "show", "nope"])
    assert "no such grid or file; shipped grids: balancing" in str(done.exception)


def test_every_value_is_told_by_who_set_it() -> None:
    content = {
        "base": {"train.steps": 500, "top_k": 1, "dropout": 0.0},
        "factors": {"bias_rate": [0.0, 0.1]},
        "scales": {"smoke": {"base": {"top_k": 2}}},
    }
    told = origins(adjust(parse_grid(content), "smoke", ["muon_lr=0.02", "eval_every=20"]))
    assert list(told)[-1] == "default"
    assert "train.steps 120 (not 500)" in told["--scale smoke"]
    assert told["[scales.smoke.base]"] == ["model.top_k 2 (not 1)"]
    assert told["the grid"] == ["model.dropout 0.0"]
    assert told["--set"] == ["train.eval_every 20 (not 100)", "train.muon_lr 0.02 (not 0.01)"]
    assert "routing.noise_std 0.1" in told["default"]
    keys = [value.split()[0] for values in told.values() for value in values]
    assert len(keys) == len(set(keys))
    assert not {"routing.bias_rate", "seed"} & set(keys)


def test_a_design_of_another_program_has_columns_of_what_it_knows(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Config:\n"
        "    width: int = 8\n    seed: int = 0\n"
        "    total_parameters = property(lambda self: self.width * 1000)\n"
        "METRICS = {'error': 'lower'}\ndef train(config, run): ...\n"
    )
    (tmp_path / "own.toml").write_text('program = "own.py"\nseeds = [1]\n[factors]\nwidth = [8, 16]\n')
    lines = [line.split() for line in run("grids", "show", str(tmp_path / "own.toml")).splitlines()]
    assert ["cell", "steps", "parameters"] in lines
    assert ["width=16", "0", "16,000"] in lines
    assert ["scale", "runs", "steps", "in", "all", "cost", "here"] in lines
