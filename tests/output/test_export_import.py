"""The program's own export, imported again: the study is whole, and `compare` finds no difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from model.program import METRICS
from reports.output.compare import compare_studies
from reports.output.export import export
from reports.reading.frames import choose_study, runs
from runner.design.importing import import_results
from runner.queue.store import Store
from tests import report_fixtures as made

MEASURED = [*METRICS, "exact"]


def named_levels(connection: sa.Connection) -> int:
    """A study whose factor is no key of the configuration, and one level an integer, one a name."""
    levels = {"none": {"routing.load_balancing_weight": 0.0}, "bias": {"routing.bias_rate": 0.01}}
    grid = {
        "question": "Which?",
        "factors": {"balancing": ["none", "bias"], "top_k": [1, 2]},
        "levels": {"balancing": levels},
        "primary": "val_accuracy",
        "baseline": {"balancing": "none"},
        "margins": {"val_accuracy": 0.01},
        "scale": "smoke",
        "seeds": [42, 43],
    }
    study = made.add_study(connection, "named", grid=grid)
    for balancing in grid["factors"]["balancing"]:
        for top_k in (1, 2):
            for seed in (42, 43):
                cell = {"balancing": balancing, "top_k": top_k}
                made.add_result(connection, made.add_job(connection, study, cell, seed))
    return study


@pytest.mark.slow
@pytest.mark.parametrize("state", [made.finished_study, named_levels])
def test_own_export_comes_back_whole(store: Store, tmp_path: Path, state: object) -> None:
    store.write(state)  # type: ignore[operator]
    path = tmp_path / "own.csv"
    with store.read() as connection:
        path.write_bytes(export(connection))
    store.write(lambda c: import_results(c, path, "back"))
    with store.read() as connection:
        first, second = choose_study(connection, "back")
        other, _ = choose_study(connection, second[0])
        back, own = runs(connection, first), runs(connection, other)
        own = own[own["status"] == "done"].reset_index(drop=True)
        assert first.factors == other.factors
        assert (first.protocol, first.corpus_id, first.levels) == (
            other.protocol,
            other.corpus_id,
            other.levels,
        )
        assert first.target() == other.target()
        assert list(back["cell"]) == list(own["cell"])
        assert [json.dumps(c, sort_keys=True) for c in back["config"]] == [
            json.dumps(c, sort_keys=True) for c in own["config"]
        ]
        assert list(back["config_hash"]) == list(own["config_hash"])
        for column in MEASURED:
            assert back[column].equals(own[column]), column
        text = compare_studies(connection, other.name, "back")
    assert "Nothing that was recorded: the configurations are the same." in text
    assert "The protocols differ" not in text
