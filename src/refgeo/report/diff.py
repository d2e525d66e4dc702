"""Two runs side by side: what differs in how they were made, and which numbers moved beyond their intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from refgeo.config.load import load_study
from refgeo.report.compare import unpaired
from refgeo.report.methods import stage_records
from refgeo.report.tables import BESIDE, NAMES, Tables, collect, estimates
from refgeo.study.graph import canonical
from refgeo.study.layout import anchors
from refgeo.study.protocol import REPORT
from refgeo.study.store import CONFIG


class Difference(NamedTuple):
    """What ``diff`` found. ``hashes``: protocol hash of each run; equal ones mean the same protocol on the same inputs.

    ``settings``: setting, a, b, stages (how many of the shared stages it concerns). ``versions``: of what, a, b. ``only``: stages that
    only one run has: stage, run. ``numbers``: every shared quantity: table, what identifies it, both estimates, their difference with
    its interval (independent estimates; the same prompts would only narrow it), and ``moved``: that interval excludes zero.
    """

    hashes: tuple[str, str]
    settings: pd.DataFrame
    versions: pd.DataFrame
    only: pd.DataFrame
    numbers: pd.DataFrame


def diff(run_a: Path, run_b: Path) -> Difference:
    """Compare two run folders, finished or not. Raises ``RefgeoError`` when one of them is no run folder."""
    records = [stage_records(run) for run in (run_a, run_b)]
    tables = [_tables(run) for run in (run_a, run_b)]
    shared = [name for name in records[0] if name in records[1]]
    only = [(name, run) for run, own, other in zip("ab", records, records[::-1], strict=True) for name in own if name not in other]
    return Difference(
        (protocol_hash(records[0]), protocol_hash(records[1])),
        _settings([(records[0][name]["settings"], records[1][name]["settings"]) for name in shared]),
        _versions([(records[0][name], records[1][name]) for name in shared]),
        pd.DataFrame(only, columns=["stage", "run"]),
        pd.concat([_numbers(name, *(getattr(side, name) for side in tables)) for name in NAMES], ignore_index=True),
    )


NUMBERED = ("table", "arm", "seed", "step", "set", "subset", "metric")
"""Columns of ``numbers`` that every row has; the others name what else tells its quantity apart."""
ESTIMATES = ("value_a", "low_a", "high_a", "n_a", "value_b", "low_b", "high_b", "n_b", "difference", "low", "high", "moved")


def largest(numbers: pd.DataFrame) -> pd.DataFrame:
    """The numbers that moved beyond their intervals: whole sets before subsets, then the largest first.

    Large is measured in half-widths of the difference's interval, so that degrees, rates and layers can stand in one list.
    """
    moved = numbers[numbers["moved"].astype(bool)]
    size = moved["difference"].abs() / ((moved["high"] - moved["low"]) / 2)
    ordered = moved.assign(part=moved["subset"] != "all", size=-size).sort_values(["part", "size"], kind="stable")
    return ordered.drop(columns=["part", "size"]).reset_index(drop=True)


def without_interval(numbers: pd.DataFrame) -> int:
    """How many numbers differ that have no interval on either side, so that nobody can say whether they moved."""
    unknown = numbers["low"].isna() | numbers["high"].isna()
    return int((unknown & (numbers["difference"].abs() > 0)).sum())


def named(row: Mapping[str, Any]) -> str:
    """What else identifies a row of ``numbers``, such as ``layer 3, position -2``."""
    known = {*NUMBERED, *ESTIMATES}
    return ", ".join(f"{key} {value}" for key, value in row.items() if key not in known and isinstance(value, str) and value)


def protocol_hash(records: Mapping[str, Mapping[str, Any]]) -> str:
    """One hash over the fingerprints of all finished stages but the report: settings, data, model, template, judge and code versions."""
    found = {name: record["fingerprint"] for name, record in records.items() if name != REPORT}
    return hashlib.sha256(canonical(found).encode()).hexdigest()


def _settings(pairs: list[tuple[Any, Any]]) -> pd.DataFrame:
    counts: dict[tuple[str, str, str], int] = {}
    for first, second in pairs:
        left, right = dict(_leaves(first)), dict(_leaves(second))
        for path in sorted({*left, *right}):
            values = tuple(side.get(path, "(absent)") for side in (left, right))
            if values[0] != values[1]:
                counts[path, values[0], values[1]] = counts.get((path, values[0], values[1]), 0) + 1
    return pd.DataFrame([(*key, count) for key, count in counts.items()], columns=["setting", "a", "b", "stages"])


def _leaves(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}" if path else str(key))]
    return [(path, canonical(value))]


def _versions(pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> pd.DataFrame:
    """Versions of libraries, and of refgeo's own stages, that differ."""
    sides: list[dict[str, set[str]]] = [{}, {}]
    for pair in pairs:
        for found, record in zip(sides, pair, strict=True):
            kind = str(record.get("id", "")).split("/")[-1]
            for name, version in {**record.get("libraries", {}), f"code of stage '{kind}'": record.get("version")}.items():
                found.setdefault(name, set()).add(str(version))
    left, right = ({name: ", ".join(sorted(seen)) for name, seen in side.items()} for side in sides)
    rows = [(name, left.get(name, ""), right.get(name, "")) for name in dict.fromkeys([*left, *right])]
    return pd.DataFrame([row for row in rows if row[1] != row[2]], columns=["what", "a", "b"])


def _numbers(name: str, first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The quantities that both tables have, with both estimates."""
    keys = [column for column in first.columns if column in second.columns and column not in BESIDE - {"seed"}]
    sides = []
    for table in (first, second):
        plain = table.assign(**{key: table[key].map(_plain) for key in keys})
        numbered = plain.assign(number=plain.groupby(keys, sort=False).cumcount())  # Rows that nothing tells apart are taken in order.
        sides.append(numbered[[*keys, "number", "value", "low", "high", "n"]])
    both = sides[0].merge(sides[1], on=[*keys, "number"], suffixes=("_a", "_b"))
    pairs = [estimates(both.rename(columns=lambda column, end=end: column.removesuffix(end))) for end in ("_a", "_b")]  # type: ignore[misc]  # a default binds the loop variable
    found = [unpaired(later, earlier) for earlier, later in zip(*pairs, strict=True)]
    both["difference"], both["low"], both["high"] = ([getattr(one, part) for one in found] for part in ("value", "low", "high"))
    both["moved"] = (both["low"] > 0) | (both["high"] < 0)
    return both.drop(columns=["number"]).assign(table=name)


def _plain(value: object) -> str:
    """The same text for equal identities: a layer is 3 in one table and 3.0 in another that also holds rows without one."""
    if value is None or value is pd.NA or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _tables(run: Path) -> Tables:
    return collect(anchors(run, load_study(str(run / CONFIG))))
