"""A CSV as programs write it → named texts: byte order mark, separator, padded headers, index columns.

Knows no column's meaning but what `--columns` tells. What the columns mean: runner/design/foreign.py.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from model.config import ConfigError

SEPARATORS = (",", ";", "\t")
FACTOR, NONE = "factor", "none"
"""What `--columns` may map a column to beside a name: a factor of its own, or nothing."""


@dataclass(frozen=True)
class Sheet:
    """The rows of a file: column → text, white space at the ends taken off."""

    rows: list[dict[str, str]]
    lines: list[int]
    """Where each row stands in the file, the header being line 1."""
    columns: list[str]
    factors: tuple[str, ...]
    """Columns that `--columns factor=…` names."""
    decimal_comma: bool


def read_sheet(path: Path, mapping: str = "") -> Sheet:
    """Read a file, with its columns renamed by `ours=theirs,…`.

    Raises:
        ConfigError: it is no CSV, or the mapping names what is not there.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        separator = max(SEPARATORS, key=(text.splitlines() or [""])[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        found = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8; save it as CSV in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: {str(error.strerror).lower()}; give a CSV file") from error
    except csv.Error as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {error}") from error
    if not found:
        raise ConfigError(f"{path}: empty; give a CSV file with a header and a row a run")
    header = found[0][1]
    body = [(line, row) for line, row in found[1:] if any(row)]
    for line, row in body:
        if len(row) != len(header):
            raise ConfigError(
                f"{path} line {line}: {len(row)} cells under {len(header)} columns; mend the row"
            )
    kept = [n for n, name in enumerate(header) if not re.fullmatch(r"(Unnamed: \d+)?", name)]  # an index
    names, factors = _renamed(path, [header[n] for n in kept], mapping)
    rows = [{name: row[n] for n, name in zip(kept, names, strict=True) if name != NONE} for _, row in body]
    columns = [name for name in names if name != NONE]
    return Sheet(rows, [line for line, _ in body], columns, factors, separator == ";")


def _renamed(path: Path, header: list[str], mapping: str) -> tuple[list[str], tuple[str, ...]]:
    names, factors = list(header), []
    for pair in filter(None, (pair.strip() for pair in mapping.split(","))):
        ours, found, theirs = (part.strip() for part in pair.partition("="))
        if not found or not ours or theirs not in header:
            listed = ", ".join(header) or "none"
            raise ConfigError(
                f"--columns {pair}: write ours=theirs, theirs one of the file's columns: {listed}"
            )
        if ours == FACTOR:
            factors.append(theirs)
        else:
            names[header.index(theirs)] = ours
    twice = {name for name in names if names.count(name) > 1 and name != NONE}
    if twice:
        raise ConfigError(
            f"{path}: two columns are {', '.join(sorted(twice))}; give one another name, or leave one that "
            "has another out by --columns none=NAME"
        )
    return names, tuple(factors)
