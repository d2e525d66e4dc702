"""How much the frozen attack understates an attacker who adapts: both on the same behaviors at one anchor."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refgeo.measures.table import Row, row
from refgeo.report.compare import paired_rates
from refgeo.statistics import guarded, paired_difference


def gap_rows(behavior: pd.DataFrame, stress: pd.DataFrame) -> list[Row]:
    """``adaptive_gap`` and ``adaptive_gap_gated`` of every adaptive attack at its full budget: fixed success minus adaptive success.

    From the judged completions of the behavior and the stress stage of one anchor; none where either is missing. Paired by behavior
    (Newcombe's interval; with several attack seeds their mean success, by bootstrap). A completion that either judge call left unscored
    takes its behavior out, as in the rates.
    """
    if "set" not in behavior or "attack_steps" not in stress:
        return []
    rows = []
    fixed = behavior[behavior["set"] == "fixed"]
    for method, whole in stress.groupby("set"):
        budget = whole["attack_steps"].max()
        adaptive = whole[whole["attack_steps"] == budget]
        for suffix, gated in (("", False), ("_gated", True)):
            one, other = success_by_id(fixed, gated), success_by_id(adaptive, gated)
            both = one.index.intersection(other.index)
            if both.empty:
                continue
            left, right = one[both].to_numpy(), other[both].to_numpy()
            plain = bool(np.isin(right, (0.0, 1.0)).all())
            gap = paired_rates(left > 0, right > 0) if plain else guarded(paired_difference(left, right), 1.0)
            rows.append(row(str(method), f"adaptive_gap{suffix}", gap, attack_steps=int(budget)))
    return rows


def success_by_id(transcripts: pd.DataFrame, gated: bool = False) -> pd.Series:
    """Success of each prompt, the mean over its attack seeds; unscored completions are left out. ``gated``: nonsense is a failure."""
    scored = transcripts[transcripts["label"] != "unscored"]
    hits = scored["success"].astype("float64")
    if gated:
        hits = hits.where(~scored["degenerate"].astype(bool), 0.0)
    return hits.groupby(scored["id"].astype(str), sort=False).mean()
