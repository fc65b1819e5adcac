"""export --format, --table and --to tensorboard: what is in the files, and that the test split stays sealed.

How a file is read back matters: pandas takes the word nan for a missing value.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from reports.output.export import FORMATS, export
from reports.output.programs import ExtraMissing, export_to
from runner.queue import schema
from tests import report_fixtures as made

Cli = Callable[..., CompletedProcess[str]]


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sa.Connection]:
    """One finished run with a series, an evaluation, a value that is no number, and a sealed test score."""
    with made.opened(tmp_path) as connection:
        study = made.add_study(connection, grid={"factors": {"noise_std": [0.1]}})
        job = made.add_job(connection, study, {"noise_std": 0.1}, 42)
        made.add_result(connection, job)
        series = [
            (4, "train", "loss", 2.5, None),
            (8, "train", "loss", None, "nan"),
            (8, "val", "loss", 0.1 + 0.2, None),
            (8, "test", "loss", 77.0, None),
        ]
        for step, split, name, value, nonfinite in series:
            values = {"step": step, "split": split, "name": name, "value": value, "nonfinite": nonfinite}
            connection.execute(schema.metrics.insert().values(job_id=job, **values))
        for split, tokens in (("val", 30), ("test", 99)):
            place = {"step": 8, "layer": 0, "expert": 1, "split": split}
            connection.execute(schema.expert_counts.insert().values(job_id=job, tokens=tokens, **place))
        yield connection


def read(data: bytes, format: str) -> pd.DataFrame:
    if format == "parquet":
        return pd.read_parquet(io.BytesIO(data))
    if format == "csv":
        return pd.read_csv(io.BytesIO(data), keep_default_na=False, na_values=[""])
    return pd.DataFrame(json.loads(data))


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_the_same_metrics(connection: sa.Connection, format: str) -> None:
    frame = read(export(connection, None, "metrics", format), format)
    assert list(frame.columns) == [
        "job_id",
        "seed",
        "noise_std",
        "step",
        "split",
        "name",
        "value",
        "nonfinite",
    ]
    assert frame["split"].tolist() == ["train", "train", "val"]  # the test split is sealed
    assert frame["value"].fillna(-1).tolist() == [2.5, -1, 0.1 + 0.2]  # every digit
    assert frame["nonfinite"].fillna("").tolist() == ["", "nan", ""]


@pytest.mark.parametrize("table", ["runs", "metrics", "counts"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_test_split_appears_only_once_it_is_revealed(
    connection: sa.Connection, table: str, format: str
) -> None:
    def splits() -> set[str]:
        frame = read(export(connection, None, table, format), format)
        return set(frame["split"]) if "split" in frame else set()

    assert "test" not in splits()
    connection.execute(sa.update(schema.studies).values(test_revealed_at=1.0))
    assert ("test" in splits()) is (table != "runs")


def test_counts_are_whole_numbers(connection: sa.Connection) -> None:
    (row,) = json.loads(export(connection, None, "counts", "json"))
    place = {"step": 8, "split": "val", "layer": 0, "expert": 1, "tokens": 30}
    assert row == {"job_id": 1, "seed": 42, "noise_std": 0.1, **place}


def test_runs_agree_in_every_format(connection: sa.Connection) -> None:
    (text,) = csv.DictReader(io.StringIO(export(connection).decode()))
    (row,) = json.loads(export(connection, None, "runs", "json"))
    frame = read(export(connection, None, "runs", "parquet"), "parquet")
    assert list(frame.columns) == list(text) == list(row)
    for column, value in row.items():
        if value is None:
            assert text[column] == ""
            assert frame[column].isna().all()
        else:
            assert str(value) == text[column]
            assert frame[column][0] == value
    assert str(frame["tokens_seen"].dtype) == str(frame["steps_to_loss"].dtype) == "Int64"
    assert str(frame["clipped_share"].dtype) == "Float64"


def test_infinity_is_named_in_json(connection: sa.Connection) -> None:
    connection.execute(
        sa.update(schema.measures)
        .where(schema.measures.c.name == "max_grad_norm")
        .values(value=None, nonfinite="inf")
    )
    (row,) = json.loads(export(connection, None, "runs", "json"))
    assert row["max_grad_norm"] == "inf"


def test_the_command_writes_bytes_to_a_pipe(cli: Cli, connection: sa.Connection, tmp_path: Path) -> None:
    connection.commit()
    connection.execute(sa.text("CREATE TABLE alembic_version (version_num TEXT)"))
    connection.execute(sa.text(f"INSERT INTO alembic_version VALUES ('{schema.HEAD}')"))
    connection.commit()
    done = cli("export", "--table", "metrics", "--format", "json")
    assert len(json.loads(done.stdout)) == 3
    assert cli("export", "--format", "xml").returncode == 2
    assert cli("export", "--to", "tensorboard").returncode == 2
    assert cli("export", "somewhere").returncode == 2


# --- TensorBoard ------------------------------------------------------------------------------------------


def test_a_missing_extra_is_named_with_its_remedy(
    connection: sa.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(ExtraMissing, match="pip install tensorboard"):
        export_to(connection, "tensorboard", str(tmp_path / "events"))
    assert not (tmp_path / "events").exists()


def test_every_series_is_given_to_the_writer(
    connection: sa.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            self.name = Path(folder).relative_to(tmp_path).as_posix()

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written.append((self.name, tag, value, step))

        def close(self) -> None:
            written.append((self.name, "closed", 0, 0))

    stand_in = ModuleType("tensorboard.summary")
    stand_in.Writer = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboard.summary", stand_in)
    assert export_to(connection, "tensorboard", str(tmp_path)) == 2
    run = "factorial/job-1,noise_std=0.1,seed=42"
    assert written == [
        (run, "train/loss", 2.5, 4),
        (run, "val/loss", 0.1 + 0.2, 8),
        (run, "closed", 0, 0),
    ]


def test_tensorboard_reads_what_its_writer_wrote(connection: sa.Connection, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    export_to(connection, "tensorboard", str(tmp_path))
    events = EventAccumulator(str(tmp_path / "factorial" / "job-1,noise_std=0.1,seed=42"))
    events.Reload()
    tags = events.Tags()
    assert sorted(tags["scalars"] or tags["tensors"]) == ["train/loss", "val/loss"]


# --- MLflow and W&B ---------------------------------------------------------------------------------------


def test_mlflow_reads_what_its_client_wrote(
    connection: sa.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert export_to(connection, "mlflow", str(tmp_path / "mlruns")) == 2
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (experiment,) = (each for each in client.search_experiments() if each.name != "Default")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "job-1,noise_std=0.1,seed=42"
    assert run.data.params["routing.noise_std"] == "0.1"
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert [(m.step, m.value) for m in history["train/loss"]] == [(4, 2.5)]
    assert [(m.step, m.value) for m in history["val/loss"]] == [(8, 0.1 + 0.2)]
    assert run.data.metrics["val_loss"] == connection.scalar(
        sa.select(schema.measures.c.value).where(schema.measures.c.name == "val_loss")
    )
    assert not [name for name in history if "test" in name]


def test_wandb_messages_hold_what_its_run_was_given(connection: sa.Connection, tmp_path: Path) -> None:
    """The file's frames are read here, each record in them by W&B's own message type."""
    pytest.importorskip("wandb")
    assert export_to(connection, "wandb", str(tmp_path)) == 2
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records = list(wandb_records(file.read_bytes()))
    logged = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["train/loss"] for row in logged if "train/loss" in row] == [2.5]
    assert [(row["_step"], row["val/loss"]) for row in logged if "val/loss" in row] == [(8, 0.1 + 0.2)]
    (started,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert started.display_name == "job-1,noise_std=0.1,seed=42"
    assert "77.0" not in str(records)  # the sealed test score


def wandb_records(data: bytes) -> Iterator[Any]:
    """LevelDB's log format: blocks of 32 KiB, frames of checksum, length and kind; a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.parametrize("program", ["mlflow", "wandb"])
def test_program_that_is_not_installed_is_named(
    connection: sa.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setitem(sys.modules, program, None)
    with pytest.raises(ExtraMissing, match=f"--to {program}: .*pip install {program}"):
        export_to(connection, program, str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
