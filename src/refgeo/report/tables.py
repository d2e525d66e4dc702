"""The run folder's tables put together in long form: arm, seed, step, set, subset, metric, numbers, then what else identifies a row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from refgeo.errors import StoreError
from refgeo.measures.table import COLUMNS
from refgeo.statistics import Interval, over_seeds
from refgeo.study.layout import MEASURES, SCAN, TABLE, TRANSCRIPTS, AnchorRef, Measure

CELL = ("arm", "seed", "step")
HEAD = (*CELL, *COLUMNS)
NAMES = ("behavior", "geometry", "intervention", "stress")
_RATES = frozenset(
    "asr_direct asr_fixed asr_adaptive_gcg any_refusal any_refusal_safe any_refusal_unsafe any_refusal_safe_attacked "
    "any_refusal_harmful_attacked affirmed degenerate unscored full_compliance partial_refusal full_refusal answered_right refusal "
    "strongreject utility_strict utility_lenient carrier_depth".split()
)
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
    """Write ``behavior``, ``geometry``, ``intervention``, ``stress``, ``scan``, ``over_seeds`` as CSV; an empty table keeps its header."""
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
        between = over_seeds(group["value"].to_numpy(dtype=np.float64).tolist())
        named = dict(zip(keys, identity, strict=True))
        named |= {"mean": between.value, "seeds_low": between.low, "seeds_high": between.high, "seeds": between.n}
        named |= {"within_low": group["low"].mean(), "within_high": group["high"].mean(), "n": group["n"].min()}
        rows.append(named)
    order = ["arm", "step", "set", "subset", "metric", "mean", "seeds_low", "seeds_high", "seeds", "within_low", "within_high", "n"]
    return pd.DataFrame(rows, columns=[*order, *(key for key in keys if key not in order)])


def range_of(metric: str) -> tuple[float, float]:
    """What a quantity can be: shares lie in [0, 1], mean helpfulness in [0, 2], angles in [0, 90] degrees."""
    if metric.removesuffix("_gated") in _RATES:
        return 0.0, 1.0
    if metric.startswith("principal_angle"):
        return 0.0, 90.0
    return (0.0, 2.0) if metric == "utility_mean" else (-math.inf, math.inf)


def estimates(rows: pd.DataFrame) -> list[Interval]:
    """The rows of a table as estimates, in their order."""
    value, low, high = (pd.to_numeric(rows[name]).to_numpy(dtype=np.float64, na_value=np.nan).tolist() for name in ("value", "low", "high"))
    return [Interval(*numbers) for numbers in zip(value, low, high, rows["n"].astype(int), strict=True)]


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
        parts.append(part.assign(arm=anchor.arm, seed=anchor.seed, step=anchor.step))
    return _joined(parts, head)


def _joined(parts: Sequence[pd.DataFrame], head: tuple[str, ...] = HEAD) -> pd.DataFrame:
    filled = [part for part in parts if not part.empty]
    if not filled:
        return pd.DataFrame({column: pd.Series(dtype="object") for column in head})
    table = pd.concat(filled, ignore_index=True)
    return table[[*head, *(column for column in table.columns if column not in head)]]
