"""Published results come in whole, or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from model.config import ConfigError
from runner.design.foreign import Imported, read_results
from runner.design.importing import import_results
from runner.design.program import load
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
    assert store.write(lambda c: import_results(c, path, "published", "published")) == 2
    assert [(job["status"], job["seed"]) for job in rows(store, "jobs")] == [("done", 42), ("done", 43)]
    assert row(store, "results", job_id=1)["attempt"] == 0
    result = {each["name"]: each["value"] for each in rows(store, "measures", job_id=1)}
    assert (result["val_loss"], result["val_perplexity"], result["training_seconds"]) == (
        4.8656,
        129.75,
        96.0,
    )
    assert "peak_memory_bytes" not in result
    assert "results.csv, SHA-256" in row(store, "studies")["imported_from"]
    with pytest.raises(ConfigError, match="exists already"):
        store.write(lambda c: import_results(c, path, "published"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "empty; give a CSV file with a header"),
        ("seed,loss\n1,2\n", "no column val_loss; it has seed, loss; add --columns val_loss=THEIRS"),
        (HEADER, "no rows"),
        (HEADER + LINE.replace("4.8656", "nan"), "no row has a finite val_loss"),
        (HEADER + LINE.replace("4.8656", ""), "no row has a finite val_loss"),
        (HEADER + LINE.replace("4.8656", "four"), "line 2: val_loss = 'four'"),
        (
            HEADER + LINE.replace("129.75,1.6", "131.75,1.6"),
            r"val_perplexity = 131\.75 is not exp\(val_loss\)",
        ),
        (HEADER + LINE + "43,0.0\n", "line 3: 2 cells under 10 columns"),
        (HEADER + LINE + LINE.replace("42,", "4.5,"), "line 3: seed"),
        (HEADER + LINE.replace("0.0661", "=cmd()"), "expert_usage_cv = '=cmd\\(\\)'"),
        (HEADER + LINE + LINE, "line 3: seed 42 .* twice"),
        (HEADER + LINE.replace("42,", "99999999999,"), "line 2: seed"),
        (HEADER + LINE.replace("42,0.0", "42,-3"), r"line 2: routing\.noise_std = -3(\.0)?:"),
    ],
)
def test_bad_file_is_refused_with_its_line(store: Store, tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=named):
        store.write(lambda c: import_results(c, path, "published"))
    assert rows(store, "studies") == rows(store, "jobs") == []


def test_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv: no such file or directory; give a CSV file"):
        read_results(tmp_path / "none.csv")


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b'"unclosed', b"\x00\x01"])
def test_file_that_is_not_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.csv"):
        read_results(path)


def imported(path: Path, content: str, columns: str = "") -> Imported:
    path.write_text(content, encoding="utf-8")
    return read_results(path, columns)


def test_protocol_is_believed_only_where_it_is_said(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(HEADER + LINE)
    store.write(lambda c: import_results(c, path, "unsaid"))
    store.write(lambda c: import_results(c, path, "said", "published"))
    path.write_text(f"protocol,{HEADER}sound,{LINE}")
    store.write(lambda c: import_results(c, path, "column"))
    facts = [json.loads(study["facts"]) for study in rows(store, "studies")]
    assert [told["protocol"] for told in facts] == ["unknown", "published", "sound"]
    with pytest.raises(ConfigError, match=r"--protocol published: .* says sound"):
        store.write(lambda c: import_results(c, path, "both", "published"))


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffseed,val_loss,noise_std\n42,4.5,0.1\n43,4.25,0.1\n",
        "seed;val_loss;noise_std\n42;4,5;0,1\n43;4,25;0,1\n",
        "seed\tval_loss\tnoise_std\n42\t4.5\t0.1\n43\t4.25\t0.1\n",
        " seed , val_loss ,noise_std\n 42, 4.5 ,0.1\n43,4.25, 0.1\n\n",
        ",seed,val_loss,noise_std\n0,42,4.5,0.1\n1,43,4.25,0.1\n",
        "Unnamed: 0,seed,val_loss,noise_std\n0,42,4.5,0.1\n1,43,4.25,0.1\n",
    ],
    ids=["byte order mark", "semicolon", "tabs", "padded", "index", "index of pandas"],
)
def test_dialects_of_csv_say_the_same(tmp_path: Path, content: str) -> None:
    found = imported(tmp_path / "a.csv", content)
    assert found.factors == ["noise_std"]
    assert [(row.cell, row.seed) for row in found.rows] == [({"noise_std": 0.1}, n) for n in (42, 43)]
    assert [row.results["val_loss"] for row in found.rows if row.results] == [4.5, 4.25]
    assert found.rows[0].results["val_perplexity"] == pytest.approx(math.exp(4.5), rel=1e-12)


def test_columns_are_mapped_to_our_names(tmp_path: Path) -> None:
    content = "Name,trial,eval/loss,router,State,top_k\nred-1,1,4.5,a,finished,1\nblue-2,1,4.4,b,finished,1\n"
    columns = "val_loss=eval/loss,seed=trial,factor=router,none=Name,status=State"
    found = imported(tmp_path / "a.csv", content, columns)
    assert found.factors == ["router"]  # top_k does not vary
    assert [row.cell for row in found.rows] == [{"router": "a"}, {"router": "b"}]
    with pytest.raises(ConfigError, match=r"--columns seed=nothing: .* columns: Name, trial"):
        read_results(tmp_path / "a.csv", "seed=nothing")


def test_column_that_varies_is_a_factor_or_refused_never_averaged_over(tmp_path: Path) -> None:
    content = "seed,val_loss,noise_std,top_k\n42,4.5,0.1,1\n42,4.4,0.1,2\n43,4.5,0.1,1\n43,4.4,0.1,2\n"
    found = imported(tmp_path / "a.csv", content)
    assert found.factors == ["noise_std", "top_k"]
    assert {tuple(row.cell.values()) for row in found.rows} == {(0.1, 1), (0.1, 2)}
    content = content.replace("top_k", "machine")
    with pytest.raises(ConfigError, match="column machine varies and is not known: --columns factor=machine"):
        imported(tmp_path / "a.csv", content)
    assert imported(tmp_path / "a.csv", content, "factor=machine").factors == ["noise_std", "machine"]


def test_failed_rows_are_failed_runs(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "seed,val_loss,status\n1,4.5,finished\n2,nan,finished\n3,,FAILED\n4,4.4,crashed\n5,inf,\n"
    )
    assert store.write(lambda c: import_results(c, path, "mixed")) == 5
    assert [job["status"] for job in rows(store, "jobs")] == ["done", *["failed"] * 4]
    assert [result["job_id"] for result in rows(store, "results")] == [1]
    path.write_text("seed,val_loss,status\n1,4.5,running\n")
    with pytest.raises(ConfigError, match="line 2: status = 'running'"):
        read_results(path)


def test_results_of_another_program_are_read_by_its_measures_and_keys(store: Store, tmp_path: Path) -> None:
    program = tmp_path / "mine.py"
    program.write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Config:\n"
        "    lr: float = 0.1\n    seed: int = 0\n"
        "METRICS = {'error': 'lower', 'score': 'higher'}\ndef train(config, run): ...\n"
    )
    path = tmp_path / "theirs.csv"
    path.write_text("lr,seed,error,score\n0.1,1,0.5,2\n0.1,2,0.25,4\n0.3,1,nan,\n0.3,2,0.75,1\n")
    store.write(lambda c: import_results(c, path, "theirs", program=program))
    study = row(store, "studies")
    assert (json.loads(study["facts"]), json.loads(study["grid"])["primary"]) == ({}, "error")
    assert [measure["name"] for measure in json.loads(study["program"])["measures"]] == ["error", "score"]
    assert [job["status"] for job in rows(store, "jobs")] == ["done", "done", "failed", "done"]
    assert [m["value"] for m in rows(store, "measures", name="score")] == [2.0, 4.0, 1.0]
    with pytest.raises(ConfigError, match="no column val_loss; it has lr, seed, error, score"):
        store.write(lambda c: import_results(c, path, "again"))
    with pytest.raises(ConfigError, match=r"--protocol sound: .*mine\.py has none"):
        store.write(lambda c: import_results(c, path, "again", "sound", program=program))


def test_a_program_says_what_its_files_have_besides(tmp_path: Path) -> None:
    path, file = tmp_path / "mine.py", tmp_path / "theirs.csv"
    own = (
        "IMPORTS = {'converted': {'minutes': ('seconds', 60)}, 'factors': ('lr',), "
        "'exponentials': {'ratio': 'log_ratio'}}\n"
    )
    text = (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Config:\n"
        "    lr: float = 0.1\n    corpus: str = ''\n    seed: int = 0\n"
        "METRICS = {'error': 'lower', 'seconds': 'none', 'log_ratio': 'none', 'ratio': 'none'}\n"
        "def train(config, run): ...\n"
    )
    path.write_text(text + own)
    file.write_text("lr,seed,error,minutes,log_ratio,corpus\n0.1,1,0.5,2,0.7,a\n0.1,1,0.3,4,,b\n")
    found = read_results(file, program=load(path))
    assert found.factors == ["lr", "corpus"]  # which is a key here, and no fact of the study
    assert [each.results for each in found.rows] == [
        {"error": 0.5, "seconds": 120.0, "log_ratio": 0.7, "ratio": math.exp(0.7)},
        {"error": 0.3, "seconds": 240.0, "log_ratio": None, "ratio": None},
    ]
    path.write_text(text)
    with pytest.raises(ConfigError, match="column minutes varies and is not known"):
        read_results(file, program=load(path))
    for wrong, said in (
        ("'other': 'error'", "IMPORTS: 'other' is not in METRICS"),
        ("1: 2", "IMPORTS: exponentials"),
    ):
        path.write_text(text + own.replace("'ratio': 'log_ratio'", wrong))
        with pytest.raises(ConfigError, match=said):
            read_results(file, program=load(path))
