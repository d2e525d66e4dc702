"""The run folder's tables put together in long form: arm, seed, step, set, subset, metric, numbers, then what else identifies a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from refgeo.measures.table import COLUMNS, frame
from refgeo.report.adaptive_gap import gap_rows
from refgeo.report.quantities import range_of
from refgeo.statistics import CONFIDENCE, Interval
from refgeo.study import layout
from refgeo.study.files import save_csv
from refgeo.study.forms import OF_MEASURE, POINTS, SCAN, Form
from refgeo.study.layout import MEASURES, TRANSCRIPTS, AnchorRef, Measure
from refgeo.study.reading import TOLD, read_rows, read_table

CELL = ("arm", "seed", "step")
HEAD = (*CELL, *COLUMNS)
NAMES = ("behavior", "geometry", "intervention", "stress", "projection")
BESIDE = {"value", "low", "high", "n", "seed", "note", "change_norm", "carrier_status", "statuses", "controls_used", "stopped"}
BESIDE |= {"source_seed", "source_layer", "source_position", "source_status"}
"""Columns that do not tell the quantities of one seed apart."""

ARM_NAMES = {"r2d2": "R2D2", "sft": "SFT"}


NOTHING = pd.DataFrame({column: pd.Series(dtype="object") for column in HEAD})
"""The table of what was not measured."""


class Tables(NamedTuple):
    """All that was measured in a run. The start is step 0 of every arm and seed."""

    behavior: pd.DataFrame
    geometry: pd.DataFrame
    intervention: pd.DataFrame
    stress: pd.DataFrame
    scan: pd.DataFrame
    transfer: pd.DataFrame = NOTHING
    projection: pd.DataFrame = NOTHING
    points: pd.DataFrame = NOTHING


def arm_order(arms: Iterable[str]) -> list[str]:
    """Each arm once: the adversarial one first, as the paper tells it, then the others by name."""
    return sorted({str(arm) for arm in arms}, key=lambda arm: (arm != "r2d2", arm))


def arm_name(arm: str) -> str:
    """How an arm is written for readers."""
    return ARM_NAMES.get(arm, arm)


def collect(anchors: Sequence[AnchorRef]) -> Tables:
    """Read every table that exists. What has not been measured is simply not there; an unreadable table raises ``StoreError``."""
    parts = {measure: _stack(anchors, measure, layout.TABLE, OF_MEASURE[measure]) for measure in MEASURES}
    geometry = _joined([parts["geometry"], parts["drift"]])
    transfer = parts["transfer"]
    if "source_seed" in transfer:  # The start meets the directions of all seeds; as step 0 of one seed it shows those of that seed.
        transfer = transfer[transfer["source_seed"].isna() | (transfer["source_seed"] == transfer["seed"])]
    scan = _stack(anchors, "geometry", layout.SCAN, SCAN, head=CELL)
    points = _stack(anchors, "projection", layout.POINTS, POINTS, head=CELL)
    stress = _joined([parts["stress"], parts["replay"], _gaps(anchors)])
    main = (parts["behavior"], geometry, parts["intervention"], stress, scan)
    return Tables(*main, transfer, parts["projection"], points)


def read_transcripts(folder: Path) -> pd.DataFrame:
    """The judged completions of one measure of one anchor; empty when there are none."""
    file = folder / TRANSCRIPTS
    if not file.is_file():
        return pd.DataFrame()
    return pd.DataFrame(read_rows(file, TOLD))


def write_csv(tables: Tables, folder: Path) -> None:
    """Write every table and ``over_seeds`` as CSV; an empty table keeps its header."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables._asdict().items():
        save_csv(folder / f"{name}.csv", table)
    summaries = [aggregate(getattr(tables, name)).assign(table=name) for name in NAMES]
    joined = pd.concat(summaries, ignore_index=True)
    ordered = joined[["table", *(column for column in joined if column != "table")]]
    save_csv(folder / "over_seeds.csv", ordered)


def aggregate(table: pd.DataFrame) -> pd.DataFrame:
    """One row per quantity over training seeds, the start and incomplete quantities included.

    ``mean`` with the interval that the page shows (``low``, ``high``: ``compare.across_seeds``), and what that is made of: the t-interval
    over seeds (``seeds_low``, ``seeds_high``; NaN for one seed), the mean within-seed bounds (``within_low``, ``within_high``), the least
    and the largest seed (``least``, ``most``) and the smallest within-seed ``n``. Where a carrier lies may differ from seed to seed, so its
    layer and position do not tell its rows apart.
    """
    if "source_seed" in table:  # the start meets strings of all seeds; as step 0 of one seed it shows those of that seed
        table = table[table["source_seed"].isna() | (table["source_seed"] == table["seed"])]
    keys = [column for column in table.columns if column not in BESIDE]
    numbers = table.assign(**{name: pd.to_numeric(table[name]).astype("float64") for name in ("value", "low", "high", "n")})
    own_place = table["set"].isin(["carrier", "nearest", "best_effect"])
    for column in {"intervention", "axis"} & set(keys):
        own_place |= table[column].notna()
    for column in {"layer", "position"} & set(keys):
        numbers[column] = numbers[column].astype("object").where(~own_place, None)
    groups = numbers.groupby(keys, sort=False, dropna=False)
    found = groups.agg(
        mean=("value", "mean"),
        spread=("value", "std"),
        seeds=("value", "count"),
        least=("value", "min"),
        most=("value", "max"),
        bounded=("low", "count"),
        within_low=("low", "mean"),
        within_high=("high", "mean"),
        n=("n", "min"),
    ).reset_index()
    mean, seeds = found["mean"], found["seeds"]
    half = stats.t.ppf((1 + CONFIDENCE) / 2, (seeds - 1).clip(lower=1)) * found["spread"] / np.sqrt(seeds.clip(lower=1))
    bounded = found["bounded"] == seeds
    below, above = ((mean - found["within_low"]).where(bounded, 0.0), (found["within_high"] - mean).where(bounded, 0.0))
    least, most = (found["metric"].map(lambda metric, end=end: range_of(str(metric))[end]).astype("float64") for end in (0, 1))
    joint = bounded | (seeds >= 3)
    low, high = (mean - np.hypot(half, below)).clip(lower=least), (mean + np.hypot(half, above)).clip(upper=most)
    found = found.assign(seeds_low=mean - half, seeds_high=mean + half)
    found["low"] = found["within_low"].where(seeds < 2, low.where(joint))
    found["high"] = found["within_high"].where(seeds < 2, high.where(joint))
    order = ["arm", "step", "set", "subset", "metric", "mean", "low", "high", "seeds", "seeds_low", "seeds_high", "least", "most"]
    order += ["within_low", "within_high", "n"]
    return found[[*order, *(key for key in keys if key not in order)]]


def estimates(rows: pd.DataFrame) -> list[Interval]:
    """The rows of a table as estimates, in their order."""
    value, low, high = (pd.to_numeric(rows[name]).to_numpy(dtype=np.float64, na_value=np.nan).tolist() for name in ("value", "low", "high"))
    return [Interval(*numbers) for numbers in zip(value, low, high, rows["n"].astype(int), strict=True)]


def _stack(anchors: Iterable[AnchorRef], measure: Measure, file: str, form: Form, head: tuple[str, ...] = HEAD) -> pd.DataFrame:
    parts = []
    for anchor in anchors:
        path = anchor.part(measure) / file
        if not path.is_file():
            continue
        part = read_table(path, form)
        part = part[[name for name in part if name in form.kinds]]  # one that nobody knows would tell rows apart that are one quantity
        parts.append(part.assign(arm=anchor.arm, seed=anchor.seed, step=anchor.step))
    return _joined(parts, head)


def _gaps(anchors: Iterable[AnchorRef]) -> pd.DataFrame:
    """Frozen minus adaptive success wherever both were judged; the start is read once."""
    known: dict[Path, pd.DataFrame] = {}
    parts = []
    for anchor in anchors:
        if anchor.folder not in known:
            known[anchor.folder] = frame(gap_rows(*(read_transcripts(anchor.part(name)) for name in ("behavior", "stress"))))
        parts.append(known[anchor.folder].assign(arm=anchor.arm, seed=anchor.seed, step=anchor.step))
    return _joined(parts)


def _joined(parts: Sequence[pd.DataFrame], head: tuple[str, ...] = HEAD) -> pd.DataFrame:
    filled = [part for part in parts if not part.empty]
    if not filled:
        return pd.DataFrame({column: pd.Series(dtype="object") for column in head})
    table = pd.concat(filled, ignore_index=True)
    return table[[*head, *(column for column in table.columns if column not in head)]]
