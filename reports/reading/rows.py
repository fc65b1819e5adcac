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
    rows = connection.execute(statement).all()
    made = pd.DataFrame(rows, columns=[c.name for c in statement.selected_columns], dtype=object)
    for column in statement.selected_columns:
        if isinstance(column.type, sa.Double | sa.Integer):
            exact = isinstance(column.type, sa.Integer) and not made[column.name].isna().any()
            made[column.name] = made[column.name].astype("int64" if exact else "float64")
    return made


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


def objects(values: Iterable[Any]) -> pd.Series[Any]:
    """A column of anything, which pandas leaves as it is."""
    return pd.Series(list(values), dtype=object)
