"""The run folder's tables, put together in long form: one row per arm, seed, step, set, subset and metric, whatever else identifies it behind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from refgeo.errors import StoreError
from refgeo.measures.table import COLUMNS
from refgeo.statistics import over_seeds
from refgeo.study.layout import MEASURES, SCAN, TABLE, TRANSCRIPTS, AnchorRef, Measure

CELL = ("arm", "seed", "step")
HEAD = (*CELL, *COLUMNS)
NAMES = ("behavior", "geometry", "intervention", "stress")
_BESIDE = {"value", "low", "high", "n", "seed"}


class Tables(NamedTuple):
    """All that was measured in a run. The start is step 0 of every arm and seed."""

    behavior: pd.DataFrame
    geometry: pd.DataFrame
    intervention: pd.DataFrame
    stress: pd.DataFrame
    scan: pd.DataFrame


def collect(anchors: Sequence[AnchorRef]) -> Tables:
    """Read every table that exists. What has not been measured is simply not there; an unreadable table raises ``StoreError``."""
    parts = {measure: _stack(anchors, measure, TABLE) for measure in MEASURES}
    geometry = _joined([parts["geometry"], parts["drift"]])
    return Tables(parts["behavior"], geometry, parts["intervention"], parts["stress"], _stack(anchors, "geometry", SCAN, head=CELL))


def read_transcripts(folder: Path) -> pd.DataFrame:
    """The judged completions of one measure of one anchor; empty when there are none."""
    file = folder / TRANSCRIPTS
    if not file.is_file():
        return pd.DataFrame()
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except ValueError as error:
        raise StoreError(f"Cannot read transcripts '{file}': {error}", fix="Delete that stage folder and run again") from error
    return pd.DataFrame(rows)


def write_csv(tables: Tables, folder: Path) -> None:
    """Write ``behavior``, ``geometry``, ``intervention``, ``stress``, ``scan`` and ``over_seeds`` as CSV; an empty table keeps its header."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables._asdict().items():
        table.to_csv(folder / f"{name}.csv", index=False)
    summaries = [aggregate(getattr(tables, name)).assign(table=name) for name in NAMES]
    joined = pd.concat(summaries, ignore_index=True)
    joined[["table", *(column for column in joined if column != "table")]].to_csv(folder / "over_seeds.csv", index=False)


def aggregate(table: pd.DataFrame) -> pd.DataFrame:
    """One row per quantity over training seeds: ``mean`` with its t-interval (``seeds_low``, ``seeds_high``; NaN for one seed), beside
    the mean within-seed bounds (``within_low``, ``within_high``) and the smallest within-seed ``n``."""
    keys = [column for column in table.columns if column not in _BESIDE]
    rows = []
    for identity, group in table.groupby(keys, sort=False, dropna=False):
        between = over_seeds(group["value"].to_numpy(dtype=np.float64))
        named = dict(zip(keys, identity, strict=True))
        named |= {"mean": between.value, "seeds_low": between.low, "seeds_high": between.high, "seeds": between.n}
        named |= {"within_low": group["low"].mean(), "within_high": group["high"].mean(), "n": group["n"].min()}
        rows.append(named)
    order = ["arm", "step", "set", "subset", "metric", "mean", "seeds_low", "seeds_high", "seeds", "within_low", "within_high", "n"]
    frame = pd.DataFrame(rows, columns=[*order, *(key for key in keys if key not in order)])
    return frame


def _stack(anchors: Iterable[AnchorRef], measure: Measure, file: str, head: tuple[str, ...] = HEAD) -> pd.DataFrame:
    parts = []
    for anchor in anchors:
        path = anchor.part(measure) / file
        if not path.is_file():
            continue
        try:
            part = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise StoreError(f"Cannot read table '{path}': {error}", fix="Delete that stage folder and run again") from error
        for place, (column, value) in enumerate(zip(CELL, (anchor.arm, anchor.seed, anchor.step), strict=True)):
            part.insert(place, column, value)
        parts.append(part)
    return _joined(parts, head)


def _joined(parts: Sequence[pd.DataFrame], head: tuple[str, ...] = HEAD) -> pd.DataFrame:
    filled = [part for part in parts if not part.empty]
    if not filled:
        return pd.DataFrame({column: pd.Series(dtype="object") for column in head})
    table = pd.concat(filled, ignore_index=True)
    return table[[*head, *(column for column in table.columns if column not in head)]]
