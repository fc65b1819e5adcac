"""Published results come in whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.config import ConfigError
from runner.design.importing import import_results, read_results
from runner.queue.store import Store
from tests.conftest import row, rows

HEADER = (
    "seed,noise_std,load_balancing_weight,val_loss,val_accuracy,val_perplexity,"
    "training_time_minutes,peak_memory_gb,best_val_perplexity,expert_usage_cv\n"
)
LINE = "42,0.0,0.01,4.8656,0.2399,129.75,1.6,,129.75,0.0661\n"


def test_rows_become_finished_jobs(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(HEADER + LINE + LINE.replace("42,0.0", "43,0.5"))
    assert store.write(lambda c: import_results(c, path, "published")) == 2
    assert [(job["status"], job["seed"]) for job in rows(store, "jobs")] == [("done", 42), ("done", 43)]
    result = row(store, "results", job_id=1)
    assert (result["val_loss"], result["val_perplexity"], result["training_seconds"]) == (
        4.8656,
        129.75,
        96.0,
    )
    assert result["peak_memory_bytes"] is None
    assert "results.csv, SHA-256" in row(store, "studies")["imported_from"]
    with pytest.raises(ConfigError, match="exists already"):
        store.write(lambda c: import_results(c, path, "published"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "no column seed"),
        ("seed,val_loss\n1,2\n", "no column val_perplexity"),
        (HEADER, "no rows"),
        (HEADER + LINE.replace("4.8656", "nan"), "line 2: val_loss = 'nan'"),
        (HEADER + LINE.replace("4.8656", ""), "line 2: val_loss = ''"),
        (HEADER + LINE + LINE.replace("42,", "4.5,"), "line 3: seed"),
        (HEADER + LINE.replace("0.0661", "=cmd()"), "expert_usage_cv = '=cmd\\(\\)'"),
        (HEADER + LINE + LINE, "line 3: seed 42 .* twice"),
        (HEADER + LINE.replace("42,", "99999999999,"), "line 2: seed"),
        (HEADER + LINE.replace("42,0.0", "42,-3"), "line 2: routing.noise_std = -3.0"),
    ],
)
def test_bad_file_is_refused_with_its_line(store: Store, tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=named):
        store.write(lambda c: import_results(c, path, "published"))
    assert rows(store, "studies") == rows(store, "jobs") == []


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b'"unclosed', b"\x00\x01"])
def test_file_that_is_not_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.csv"):
        read_results(path)
    with pytest.raises(ConfigError, match=r"none\.csv"):
        read_results(tmp_path / "none.csv")
