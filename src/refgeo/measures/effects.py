"""Effects of an intervention on the same prompts: against the baseline, and against controls that disturb the model as much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from refgeo.measures.sets import ASR, REFUSAL, refused
from refgeo.measures.table import Row, row
from refgeo.statistics import Interval, bootstrap_interval, exact, paired_difference, percentile_of

Values = NDArray[np.float64]
Outcomes = Mapping[str, Values]


def outcomes(name: str, part: pd.DataFrame) -> dict[str, Values]:
    """Per prompt, the quantity whose mean ``evaluate.summarize`` prints under the same name for set ``name``; NaN where it has none."""
    declined = np.asarray(refused(part), dtype=np.float64)
    degenerate = np.asarray(part["degenerate"], dtype=np.float64)
    values: dict[str, Values] = {"degenerate": degenerate}
    helpful = _numbers(part["helpfulness"])
    if name in ASR:
        success = np.where(part["label"] == "unscored", np.nan, part["success"].astype(float))
        values |= {"any_refusal": declined, "affirmed": np.asarray(part["affirmed"], dtype=np.float64)}
        values |= {ASR[name]: success, f"{ASR[name]}_gated": success * (1 - degenerate)}
    elif name in REFUSAL:
        values |= {REFUSAL[name]: declined, "answered_right": _where(helpful, helpful == 2)}
    elif name == "strongreject":
        values["strongreject"] = _numbers(part["score"])
    elif name == "audit":
        values |= {"any_refusal": declined, "utility_mean": helpful}
        values |= {"utility_strict": _where(helpful, helpful == 2), "utility_lenient": _where(helpful, helpful >= 1)}
    return {metric: found for metric, found in values.items() if not np.isnan(found).all()}


def effect_rows(name: str, before: Outcomes, after: Outcomes, controls: Sequence[Outcomes], seed: int, **identity: Any) -> list[Row]:
    """``<metric>_delta`` to the baseline, and with controls ``<metric>_delta_over_controls`` and ``<metric>_percentile``.

    All arguments hold the same prompts in the same order. Deltas over controls compare with the mean of the controls; their intervals
    resample prompts and controls together. The percentile is the place of the effect among the controls, ties counted half.
    """
    rows = []
    for metric in [metric for metric in after if metric in before]:
        paired = np.isfinite(before[metric]) & np.isfinite(after[metric])
        if not paired.any():
            continue
        rows.append(row(name, f"{metric}_delta", paired_difference(after[metric][paired], before[metric][paired], seed), **identity))
        against = np.array([control[metric] for control in controls if metric in control])
        if not against.size:
            continue
        shared = np.isfinite(after[metric]) & np.isfinite(against).all(axis=0)
        if not shared.any():
            continue
        over = over_controls(after[metric][shared], against[:, shared], seed)
        place = percentile_of(float(after[metric][shared].mean()), against[:, shared].mean(axis=1))
        rows.append(row(name, f"{metric}_delta_over_controls", over, **identity))
        rows.append(row(name, f"{metric}_percentile", exact(place, len(against)), **identity))
    return rows


def dose_rows(name: str, before: Outcomes, controls: Sequence[Outcomes], **identity: Any) -> list[Row]:
    """``<metric>_delta_controls``: the controls' mean change from the baseline; low and high are the middle 95% of them, n how many."""
    rows = []
    for metric in before:
        changes = np.array([change(before[metric], control[metric]) for control in controls if metric in control])
        known = changes[np.isfinite(changes)]
        if known.size:
            low, high = np.quantile(known, [0.025, 0.975]).tolist()
            rows.append(row(name, f"{metric}_delta_controls", Interval(float(known.mean()), low, high, len(known)), **identity))
    return rows


def over_estimated_rows(name: str, after: Outcomes, controls: Sequence[Outcomes], estimated: str, seed: int, **identity: Any) -> list[Row]:
    """``<metric>_delta_over_<estimated>``: against the mean of controls that were estimated, on the same prompts, by paired bootstrap."""
    rows = []
    for metric, values in after.items():
        against = np.array([control[metric] for control in controls if metric in control])
        shared = np.isfinite(values) & np.isfinite(against).all(axis=0) if against.size else np.zeros(len(values), dtype=bool)
        if shared.any():
            over = paired_difference(values[shared], against[:, shared].mean(axis=0), seed)
            rows.append(row(name, f"{metric}_delta_over_{estimated}", over, **identity))
    return rows


def change(before: Values, after: Values) -> float:
    """Mean change over the prompts that have an outcome on both sides; NaN when there are none."""
    both = np.isfinite(before) & np.isfinite(after)
    return float((after[both] - before[both]).mean()) if both.any() else float("nan")


def mean_rows(name: str, found: Outcomes, **identity: Any) -> list[Row]:
    """Plain means: one control draw is a point of a distribution and has no interval of its own."""
    return [row(name, metric, exact(float(np.nanmean(part)), int(np.isfinite(part).sum())), **identity) for metric, part in found.items()]


def over_controls(values: Values, controls: Values, seed: int, resamples: int = 2000) -> Interval:
    """Mean of ``values`` (one per prompt) minus the mean of ``controls`` (control by prompt), with a two-way bootstrap interval."""
    draws, prompts = controls.shape
    if values.shape != (prompts,):
        raise ValueError(f"{values.shape} values and controls of shape {controls.shape} are not the same prompts")
    by_prompt, by_control = _weights(prompts, seed, resamples), _weights(draws, seed + 1, resamples)
    sampled = by_prompt @ values - ((by_control @ controls) * by_prompt).sum(axis=1)
    # Equal sums in another order differ in their last digits, and an interval that ends at -1e-17 would exclude zero.
    return bootstrap_interval(round(float(values.mean() - controls.mean()), 12), sampled.round(12), prompts)


@lru_cache(maxsize=32)
def _weights(size: int, seed: int, resamples: int) -> Values:
    """Bootstrap weights, one resample per row: every metric of a set uses the same ones."""
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), resamples) / size


def _where(known: Values, outcome: NDArray[np.bool_]) -> Values:
    return np.where(np.isnan(known), np.nan, outcome.astype(np.float64))


def _numbers(column: pd.Series) -> Values:
    """A column of numbers and Nones with NaN for None."""
    return np.asarray(column.astype(float), dtype=np.float64)
