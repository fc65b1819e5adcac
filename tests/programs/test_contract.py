"""The contract: what a program must offer, how its keys and types are held, and each mistake in one line."""

from __future__ import annotations

import os
import py_compile
from pathlib import Path

import pytest

from model.config import ConfigError, RunConfig
from runner.care.again import NotKept, train_again
from runner.design.enqueue import enqueue
from runner.design.grid_file import load_grid, parse_grid
from runner.design.program import Measure, load, read_measures
from runner.queue import jobs
from runner.queue.store import Store
from runner.work import source
from tests.nights import claim

GOOD = """
from dataclasses import dataclass, field
from typing import Literal
import neighbour

@dataclass(frozen=True)
class Inner:
    width: int = 8

@dataclass(frozen=True)
class Config:
    inner: Inner = field(default_factory=Inner)
    lr: float = 0.1
    fast: bool = False
    kind: Literal["a", "b"] = "a"
    name: str = ""
    steps: int = 10
    seed: int = 0
    def __post_init__(self):
        if self.lr > 1:
            raise ValueError(f"lr = {self.lr}: at most 1")

METRICS = {"error": "lower", "score": {"better": "higher", "unit": "share", "decimals": 3}}

def train(config, run):
    return {"error": 0.0}
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("VALUE = 1\n")
    (tmp_path / "stranger.py").write_text("VALUE = 2\n")
    path = tmp_path / "study.py"
    path.write_text(GOOD)
    return path


def test_a_program_is_its_keys_measures_and_files(program: Path) -> None:
    found = load(program)
    assert dict(found.keys) == {
        "inner.width": "int",
        "lr": "float",
        "fast": "bool",
        "kind": "str",
        "name": "str",
        "steps": "int",
        "seed": "int",
    }
    assert found.measures == (Measure("error", "lower"), Measure("score", "higher", "share", 3))
    assert sorted(found.files) == ["neighbour.py", "study.py"]
    assert found.record()["path"] == "study.py"
    assert found.steps(found.default) == 10


def test_its_hash_follows_the_code_and_a_runs_hash_does_not(program: Path) -> None:
    neighbour = program.with_name("neighbour.py")
    py_compile.compile(str(neighbour))
    before, written = load(program), neighbour.stat()
    neighbour.write_text("VALUE = 3\n")
    # What was compiled before goes by time and size, which an edit within the second leaves as they were.
    os.utime(neighbour, ns=(written.st_atime_ns, written.st_mtime_ns))
    after = load(program)
    assert before.hash != after.hash
    assert before.digest(before.default) == after.digest(after.default)
    assert after.module.neighbour.VALUE == 3


def test_what_an_environment_beside_it_holds_is_imported_once(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch among it, which cannot be imported twice."""
    packages = program.with_name(".venv") / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "heavy_package.py").write_text("")
    monkeypatch.syspath_prepend(str(packages))
    program.write_text(f"import heavy_package\n{program.read_text()}")
    first, second = load(program), load(program)
    assert first.module is not second.module
    assert first.module.heavy_package is second.module.heavy_package


def test_values_are_set_by_dotted_and_short_keys(program: Path) -> None:
    found = load(program)
    config = found.with_values(found.default, {"width": 16, "lr": 1, "fast": True})
    assert (config.inner.width, config.lr, type(config.lr), config.fast) == (16, 1.0, float, True)
    assert found.digest(config) != found.digest(found.default)
    assert found.from_json('{"inner": {"width": 16}, "lr": 1.0, "fast": true}') == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr": "fast"}, "lr = 'fast': must be a number"),
        ({"width": 2.5}, "inner.width = 2.5: must be a whole number"),
        ({"width": True}, "inner.width = True: must be a whole number"),
        ({"fast": 1}, "fast = 1: must be true or false"),
        ({"kind": "c"}, "kind = 'c': choose one of a, b"),
        ({"lr": 2.0}, "lr = 2.0: at most 1"),
        ({"steep": 3}, "'steep': no such key; did you mean steps?"),
    ],
)
def test_a_wrong_value_is_refused_in_a_line(program: Path, values: dict[str, object], said: str) -> None:
    found = load(program)
    with pytest.raises(ConfigError) as caught:
        found.with_values(found.default, values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


KEEPS = """
import time
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    kept: bool = False
    seed: int = 0

METRICS = {"error": "lower", "own_seconds": "none"}

def train(config, run):
    if run.keep_weights and config.kept:
        (run.workdir / "weights.safetensors").write_bytes(b"learned")
    return {"error": 0.5, "own_seconds": time.time()}
"""


@pytest.mark.slow
def test_its_weights_are_kept_where_it_writes_some(store: Store, worker: jobs.Worker, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(KEEPS)
    (tmp_path / "own.toml").write_text('program = "own.py"\nseeds = [1]\n[factors]\nkept = [true, false]\n')
    grid, runs = load_grid(str(tmp_path / "own.toml")), tmp_path / "runs"
    store.write(lambda c: enqueue(c, "own", grid))
    source.keep_program(grid.program.files, runs / store.database_id)
    for _ in range(2):
        lease = claim(store, worker)
        store.write(lambda c, lease=lease: jobs.finish(c, lease, {"error": 0.5, "own_seconds": 1.0}))
    folder = train_again(store, runs, tmp_path / "cache", 1, lambda _: None)
    assert (folder / "weights.safetensors").read_bytes() == b"learned"
    with pytest.raises(NotKept, match=r"kept=False.*: own\.py left no weights\.safetensors in run\.workdir"):
        train_again(store, runs, tmp_path / "cache", 2, lambda _: None)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("class Config", "class Other", "Config: missing"),
        ("    seed: int = 0\n", "", "Config: needs a field seed: int"),
        ("seed: int = 0", "seed: float = 0.0", "Config: needs a field seed: int"),
        ("lr: float = 0.1", "lr: list = field(default_factory=list)", "lr: a field is an int"),
        ('    name: str = ""\n', '    name: str = ""\n    lists: "list[int]" = ()\n', "lists: a field is"),
        ("def train", "def tran", "train: missing"),
        ("METRICS =", "METRIC =", "METRICS: missing or empty"),
        ('"lower"', '"low"', "METRICS['error']: better = 'low': choose lower, higher or none"),
        ('"decimals": 3', '"digits": 3', "METRICS['score']: digits: no such key"),
        ('"error"', '"seed"', "METRICS: 'seed' is a column of the queue's own"),
        ('"error"', '"lr"', "METRICS: 'lr' is a key of Config too"),
        ("import neighbour", "import nobody_s_module", "cannot be imported (ModuleNotFoundError"),
        ("METRICS =", "METRICS == ", "cannot be imported (NameError"),
        ("METRICS", 'PACE = {"size": ("width",)}\nMETRICS', "PACE['size']: 'width' is no key of Config"),
        ("METRICS", 'STALLED_SECONDS = "30m"\nMETRICS', "STALLED_SECONDS: '30m': write a number of seconds"),
        ("METRICS", "STALLED_SECONDS = 0\nMETRICS", "STALLED_SECONDS: 0: write a number of seconds"),
        (
            "METRICS",
            'PACE = {"speed": "lr"}\nMETRICS',
            "PACE: 'speed': write size, update, evaluate_every or",
        ),
    ],
)
def test_what_a_program_lacks_is_said_in_a_line(program: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    program.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load(program)
    assert said in str(caught.value)
    assert str(program) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "two words", "9th", "x" * 61, 7])
def test_a_measures_name_is_one_of_a_column(name: object) -> None:
    with pytest.raises(ConfigError, match="name a measure"):
        read_measures({name: "lower"})


def test_a_grid_names_its_program_beside_it(program: Path) -> None:
    grid = program.with_name("grid.toml")
    grid.write_text('program = "study.py"\n[factors]\nwidth = [4, 8]\nfast = [true, false]\n')
    found = load_grid(str(grid))
    assert found.primary == "error"
    assert [cell for cell, _ in found.cells] == [
        {"width": width, "fast": fast} for width in (4, 8) for fast in (True, False)
    ]
    assert found.describe()["base"] == found.program.identity(found.program.default)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"program": "none.py"}, "no such file"),
        ({"primary": "loss"}, "primary = 'loss': choose one of error, score"),
        ({"repeats": 2}, "repeats = 2: needs a field repeat: int"),
        ({"protocol": "sound"}, "'protocol': no such key"),
        ({"scales": {"small": {}}}, "scales.small: no such scale; choose one of full"),
        ({"factors": {"fast": [True, 1]}}, "a level is listed twice"),
        ({"levels": {"error": {"a": {"lr": 0.5}}}, "factors": {"error": ["a"]}}, "a measure of the program"),
    ],
)
def test_a_grid_of_a_program_is_held_to_it(program: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        parse_grid({"name": "g", "program": "study.py", **change}, folder=program.parent)


def test_the_language_model_is_a_program_like_any() -> None:
    found = load()
    assert found.default == RunConfig()
    assert found.files == {}
    assert found.digest(RunConfig()) == RunConfig().hash
    assert found.record()["path"] == "model/program.py"
