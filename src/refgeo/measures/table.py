"""Rows of the long-form tables that every measure returns: set, subset, metric, value, low, high, n, and what else identifies the row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from refgeo.statistics import Interval

COLUMNS = ("set", "subset", "metric", "value", "low", "high", "n")
Row = dict[str, Any]

START = "start"
"""The arm of the common start in columns that name a source; it has no seed, and its step is 0."""


def row(set_name: str, metric: str, interval: Interval, subset: str = "all", **identity: Any) -> Row:
    """One measured quantity with its interval and sample size; ``identity`` adds columns that tell the row apart."""
    head = {"set": set_name, "subset": subset, "metric": metric}
    return {**head, "value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n, **identity}


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """A table with the common columns first, whatever the rows carry beside them."""
    table = pd.DataFrame(list(rows))
    for column in COLUMNS:
        if column not in table:
            table[column] = pd.Series(dtype="object")
    return table[[*COLUMNS, *(column for column in table.columns if column not in COLUMNS)]]


def integers(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The same table with these identity columns as integers that may be missing, so that a layer never prints as 3.0."""
    return table.astype({column: "Int64" for column in columns if column in table})
