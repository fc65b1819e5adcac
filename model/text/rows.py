"""Files → rows: JSON lines, text, Parquet; other kinds by the library `datasets`, imported when one is met.

Reads the user's files and nothing else; no pickle, ever. Every complaint names the file and the line.
Rows → documents: model/text/documents.py. Which files: model/text/files.py.
"""

from __future__ import annotations

import glob
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.config import ConfigError

DATASET = "dataset"
SUFFIXES = (
    *(".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst"),
    *(".json", ".json.gz", ".csv", ".txt", ".parquet"),
)
_AT_ONCE = 1_024

Row = tuple[str, dict[str, Any]]
"""Where it stands, for people, and its columns."""


def rows_of(path: Path, kind: str, column: str) -> Iterator[Row]:
    """The rows of a file of any kind but .txt; of a table, only the columns `column` and `split`.

    Raises:
        ConfigError: the file cannot be read, or a line is not a JSON object.
    """
    with complaints(path):
        if kind.startswith(".jsonl"):
            yield from _json_lines(path, kind)
        elif kind == ".parquet":
            yield from _parquet(path, column)
        else:
            yield from _by_datasets(path, kind, column)


def text_of(path: Path) -> str:
    """A .txt file's text, its line ends as \\n.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    with complaints(path):
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")


@contextmanager
def complaints(file: Path) -> Iterator[None]:
    """Turn what a reader raises on a damaged or unreadable file into one line."""
    try:
        yield
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start}); convert it") from error
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{file}: damaged or not what its name says ({error}); copy it again") from error
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0][:160]
        raise ConfigError(f"{file}: cannot be read ({reason}); check it") from error
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise ConfigError(f"{file}: cannot be read ({_first_line(error)}); check what it is") from error


def _json_lines(file: Path, kind: str) -> Iterator[Row]:
    with _opened(file, kind) as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                reason = _first_line(error)[:120]
                raise ConfigError(f"{where}: not a JSON object ({reason}); mend or drop the line") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{where}: a JSON {type(row).__name__}, not an object with a `text`")
            yield where, row


def _opened(file: Path, kind: str) -> Any:
    if kind == ".jsonl.zst":
        import io

        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))
    opener: Any = {".jsonl.gz": gzip.open, ".jsonl.xz": lzma.open}.get(kind, open)
    return opener(file, "rb")


def _parquet(file: Path, column: str) -> Iterator[Row]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(file) as table:
        columns = _wanted(file, table.schema_arrow.names, column)
        number = 0
        for batch in table.iter_batches(columns=columns, batch_size=_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", row


def _by_datasets(path: Path, kind: str, column: str) -> Iterator[Row]:
    import datasets

    datasets.disable_progress_bars()
    try:
        if kind == DATASET:
            table: Any = datasets.load_from_disk(str(path))
        else:
            # Text is text: pandas would make a number of 007, and nothing of NA.
            options = {"converters": {column: str}, "keep_default_na": False} if kind == ".csv" else {}
            table = datasets.load_dataset(
                "csv" if kind == ".csv" else "json",
                data_files={"train": glob.escape(str(path))},
                split="train",
                streaming=True,
                **options,
            )
        names = table.column_names or list(next(iter(table), {}))
        table = table.select_columns(_wanted(path, names, column))
        for number, row in enumerate(table, start=1):
            yield f"{path}, row {number}", row
    except (ConfigError, OSError, UnicodeDecodeError):
        raise
    except Exception as error:  # the library's own, and those of the packages that it reads with
        raise ValueError(_first_line(error.__cause__ or error)) from error


def _wanted(path: Path, names: list[str], column: str) -> list[str]:
    if column not in names:
        raise no_column(path, names, column)
    return [name for name in (column, "split") if name in names]


def no_column(path: Path, names: list[str], column: str) -> ConfigError:
    """The complaint about a table that has no text under that name."""
    listed = ", ".join(names)[:200] or "none"
    return ConfigError(f"{path}: no column `{column}`, only {listed}; --text-column takes another")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
