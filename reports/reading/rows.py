"""From rows to DataFrames: how values of the database become numbers and text in memory.

Which rows: reports/reading/frames.py and reports/reading/series.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa


def frame(connection: sa.Connection, statement: sa.Select[Any]) -> pd.DataFrame:
    """A DataFrame of the statement's rows."""
    # Text stays Python's (a lone surrogate must not stop the report); numbers are floats, None is NaN,
    # but for columns that cannot be NULL.
    columns = list(statement.selected_columns)
    # By column: pandas would ask each of SQLAlchemy's rows what it is, and ten thousand take a second.
    found = list(zip(*connection.execute(statement).fetchall(), strict=True)) or [()] * len(columns)
    made = {}
    for column, values in zip(columns, found, strict=True):
        if isinstance(column.type, sa.Double | sa.Integer):
            exact = isinstance(column.type, sa.Integer) and None not in values
            made[column.name] = pd.Series(values, dtype="int64" if exact else "float64")
        else:
            made[column.name] = objects(values)
    return pd.DataFrame(made)


def whole_numbers(connection: sa.Connection, statement: sa.Select[Any]) -> pd.DataFrame:
    """A DataFrame of a statement that selects integers alone."""
    # Expert counts are most of a database: straight into an array, a part at a time, without objects.
    names = [column.name for column in statement.selected_columns]
    parts = [
        np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64, count=len(rows) * len(names))
        for rows in connection.execute(statement).partitions(50_000)
    ]
    numbers = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    return pd.DataFrame(numbers.reshape(-1, len(names)), columns=names)


def with_infinities(found: pd.DataFrame) -> pd.DataFrame:
    """The frame with NaN and the infinities of its column `nonfinite`, which goes, in the column `value`."""
    marks = found.pop("nonfinite").dropna().astype("float64")
    found.loc[marks.index, "value"] = marks
    return found


def objects(values: Iterable[Any]) -> pd.Series[Any]:
    """A column of anything, which pandas leaves as it is."""
    return pd.Series(list(values), dtype=object)


def by_seed(values: pd.DataFrame, seeds: Iterable[int]) -> pd.DataFrame:
    """Rows of runs as rows of seeds: repeats of a seed are one observation, their mean.

    Args:
        values: numbers, a row a run.
        seeds: of those runs, in the same order.
    """
    keys = np.asarray(list(seeds))
    if len(keys) == len(set(keys.tolist())):
        return values
    return values.groupby(keys, sort=True).mean()


def recorded(runs: pd.DataFrame, names: Iterable[str]) -> bool:
    """Whether every one of the measures is there, and any of them has a value."""
    wanted = list(names)
    return set(wanted) <= set(runs.columns) and not runs[wanted].isna().all(axis=None)
