"""Repeats of one run: in the grid, in the hash, in the seeds' streams, and in the report's words."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from model.config import ConfigError, RunConfig
from reports.output.markdown import markdown_section
from reports.reading.frames import choose_study, load
from reports.sections.repeats import noise_floor
from reports.statistics.analysis import Options, analyse
from runner.design import grid_file, scales
from runner.design.enqueue import enqueue
from runner.queue import schema
from runner.queue.store import Store, open_store
from tests import report_fixtures as made
from tests.conftest import TINY_GRID, rows


def test_the_shipped_grid_runs_one_cell_five_times_with_one_seed() -> None:
    grid = grid_file.load_grid("noise-floor")
    runs = list(grid.runs())
    assert (grid.size, len(runs), len({config.hash for _, config in runs})) == (5, 5, 5)
    assert {config.seed for _, config in runs} == {42}
    assert len({json.dumps(cell) for cell, _ in runs}) == 1
    assert [config.repeat for _, config in runs] == [0, 1, 2, 3, 4]


def test_the_first_repeat_is_the_run_itself() -> None:
    assert RunConfig(repeat=0).hash == RunConfig().hash
    assert "repeat" not in RunConfig().identity()
    assert RunConfig(repeat=1).identity() == {**RunConfig().identity(), "repeat": 1}


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", '"2"', "1001"])
def test_repeats_must_be_a_whole_number(tmp_path: Path, value: str) -> None:
    path = tmp_path / "g.toml"
    path.write_text(f"repeats = {value}\n[factors]\nnoise_std = [0.0]\n")
    with pytest.raises(ConfigError, match="repeats = "):
        grid_file.load_grid(str(path))


def test_repeat_is_neither_a_factor_nor_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"factors\.repeat"):
        grid_file.parse_grid({"factors": {"repeat": [0, 1]}})
    with pytest.raises(ConfigError, match="repeats in the grid file"):
        scales.adjust(grid_file.load_grid("factorial"), assignments=["repeat=1"])


def test_more_repeats_extend_a_study(store: Store) -> None:
    once = grid_file.parse_grid({"factors": {"noise_std": [0.0, 0.5]}, "seeds": [1, 2]})
    twice = grid_file.parse_grid({"factors": {"noise_std": [0.0, 0.5]}, "seeds": [1, 2], "repeats": 2})
    assert store.write(lambda c: enqueue(c, "s", once)) == 4
    assert store.write(lambda c: enqueue(c, "s", twice)) == 4
    assert store.write(lambda c: enqueue(c, "s", once)) == 0
    assert json.loads(rows(store, "studies")[0]["grid"])["repeats"] == 2


def test_repeats_on_one_machine_are_bitwise_equal(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    text = TINY_GRID.replace('name = "tiny"', 'name = "floor"\nrepeats = 2').replace("[42, 43]", "[42]")
    (tmp_path / "floor.toml").write_text(text)
    assert cli("enqueue", "--grid", "floor.toml", "--corpus", "bundled").stdout == "floor: 4 queued\n"
    assert cli("work").returncode == 0
    store = open_store(str(tmp_path / "jobs.db"))
    with store.read() as connection:
        section = noise_floor(analyse(load(connection, choose_study(connection)[0]), Options()))
    assert section is not None
    assert section.text == ("All 4 repeated runs are bitwise equal: the noise floor is zero.",)
    assert section.tables[0].rows[0] == ("noise_std=0.0", "42", "2", "yes", "0", "0", "0", "0")
    report = cli("report")
    assert report.returncode == 0, report.stderr
    assert "## Noise floor\n\nAll 4 repeated runs are bitwise equal" in report.stdout


# --- the report's words -----------------------------------------------------------------------------------


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sa.Connection]:
    """Three runs of one cell and seed, with the same results and counts."""
    with made.opened(tmp_path) as connection:
        study = made.add_study(connection, grid={"factors": {"noise_std": [0.1]}})
        for repeat in range(3):
            config = {"routing": {"noise_std": 0.1}, "seed": 42, "repeat": repeat}
            job = made.add_job(connection, study, {"noise_std": 0.1}, 42, config=config)
            made.add_result(connection, job, val_loss=4.5)
            for expert in range(2):
                place = {"step": 8, "split": "val", "layer": 0, "expert": expert, "tokens": 10}
                connection.execute(schema.expert_counts.insert().values(job_id=job, **place))
        yield connection


def shown(connection: sa.Connection) -> str:
    section = noise_floor(analyse(load(connection, choose_study(connection)[0]), Options()))
    return "" if section is None else markdown_section(section)


def test_equal_runs_have_no_noise_whatever_their_times(connection: sa.Connection) -> None:
    timed = "name IN ('training_seconds', 'tokens_per_second')"
    connection.execute(sa.text(f"UPDATE measures SET value = job_id WHERE {timed}"))
    assert "All 3 repeated runs are bitwise equal" in shown(connection)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE measures SET value = value + 0.25 WHERE job_id = 2 AND name = 'val_loss'",
        "UPDATE measures SET value = value + 1e-12 WHERE job_id = 3 AND name = 'max_grad_norm'",
        "UPDATE expert_counts SET tokens = 11 WHERE job_id = 3 AND expert = 1",
        "DELETE FROM expert_counts WHERE job_id = 1 AND expert = 1",
    ],
)
def test_one_bit_is_a_difference(connection: sa.Connection, change: str) -> None:
    connection.execute(sa.text(change))
    assert "are not bitwise equal" in shown(connection)


def test_the_floor_is_the_widest_distance(connection: sa.Connection) -> None:
    connection.execute(sa.text("UPDATE measures SET value = 4.5 + 0.01 * job_id WHERE name = 'val_loss'"))
    text = shown(connection)
    assert "up to 0.02 nats per token apart" in text
    assert "| noise\\_std=0.1 | 42 | 3 | no | 0.02 |" in text.replace("noise_std", "noise\\_std")


def test_a_study_without_repeats_has_no_such_section(tmp_path: Path) -> None:
    with made.opened(tmp_path) as connection:
        made.finished_study(connection)
        assert shown(connection) == ""
