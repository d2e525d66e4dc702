"""From judged completions to one number per prompt: what a metric of the tables is the mean of, so that anchors can be paired by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import pandas as pd

from refgeo.config.judge import RefusalClass
from refgeo.measures.sets import ASR, refused
from refgeo.report.adaptive_gap import success_by_id

_REFUSED = frozenset("any_refusal any_refusal_safe any_refusal_unsafe any_refusal_safe_attacked any_refusal_harmful_attacked".split())


def by_prompt(transcripts: pd.DataFrame, metric: str) -> pd.Series | None:
    """The outcome of ``metric`` by prompt id, averaged where a prompt was answered several times (attack seeds, tails): its cluster mean.

    Unscored completions are left out, as in the tables. None for a metric that is no mean over prompts.
    """
    if metric.removesuffix("_gated") in ASR.values():
        return success_by_id(transcripts, gated=metric.endswith("_gated"))
    values = _values(transcripts, metric)
    if values is None:
        return None
    known = values.notna()
    return values[known].astype("float64").groupby(transcripts["id"][known].astype(str), sort=False).mean()


def chosen(transcripts: pd.DataFrame, set_name: str, identity: Mapping[str, object]) -> pd.DataFrame | None:
    """The completions behind a row of the tables; None when they do not carry all columns that tell the row apart."""
    if "set" not in transcripts or not set(identity) <= set(transcripts.columns):
        return None
    found = transcripts[transcripts["set"] == set_name]
    if identity.get("tail") == "all":  # the tables' name for any tail that is one
        found = found[found["tail"] != "none"]
        identity = {name: value for name, value in identity.items() if name not in ("tail", "tail_tokens")}
    for column, value in identity.items():
        found = found[found[column] == value]
    return found if len(found) else None


def _values(rows: pd.DataFrame, metric: str) -> pd.Series | None:
    if metric in _REFUSED:
        return refused(rows)
    if metric in get_args(RefusalClass):
        return rows["refusal"] == metric
    if metric in ("degenerate", "affirmed"):
        return rows[metric]
    if metric == "unscored":
        return rows["label"] == "unscored"
    if metric == "strongreject":
        return rows["score"]
    if metric == "utility_mean":
        return rows["helpfulness"]
    reached = {"utility_strict": 2, "answered_right": 2, "utility_lenient": 1}.get(metric)
    return None if reached is None else (rows["helpfulness"] >= reached).where(rows["helpfulness"].notna())
