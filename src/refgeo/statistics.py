"""Intervals and paired comparisons: numpy and scipy only, no knowledge of models or tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A point estimate with its confidence interval and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int


def exact(value: float, n: int = 1) -> Interval:
    """A quantity without sampling error, or one whose interval is not estimated: low and high are NaN."""
    return Interval(float(value), float("nan"), float("nan"), n)


def rate(outcomes: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Share of true outcomes with its Wilson score interval. Raises ``ValueError`` on no outcomes."""
    hits = np.asarray(outcomes, dtype=bool)
    if hits.size == 0:
        raise ValueError("a rate needs at least one outcome")
    count = int(hits.sum())
    bounds = stats.binomtest(count, hits.size).proportion_ci(confidence, method="wilson")
    return Interval(count / hits.size, float(bounds.low), float(bounds.high), int(hits.size))


def mean(values: ArrayLike, seed: int = 0, resamples: int = 2000, confidence: float = CONFIDENCE) -> Interval:
    """Mean with a percentile-bootstrap interval over the observations. Raises ``ValueError`` on no values."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("a mean needs at least one value")
    draws = data[np.random.default_rng(seed).integers(0, data.size, (resamples, data.size))].mean(axis=1)
    return _percentile(float(data.mean()), draws, data.size, confidence)


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean of ``first - second`` over the same prompts in the same order, by paired bootstrap."""
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"paired samples differ in shape: {left.shape} and {right.shape}")
    return mean(left - right, seed, resamples)


def difference(first: ArrayLike, second: ArrayLike, seed: int = 0, resamples: int = 2000, confidence: float = CONFIDENCE) -> Interval:
    """Difference of the means of two independent samples, each resampled on its own."""
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.size == 0 or right.size == 0:
        raise ValueError("a difference needs at least one value on each side")
    rng = np.random.default_rng(seed)
    draws = left[rng.integers(0, left.size, (resamples, left.size))].mean(axis=1)
    draws = draws - right[rng.integers(0, right.size, (resamples, right.size))].mean(axis=1)
    return _percentile(float(left.mean() - right.mean()), draws, min(left.size, right.size), confidence)


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided exact McNemar p-value for paired yes/no outcomes (binomial on the discordant pairs)."""
    left, right = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if left.shape != right.shape:
        raise ValueError(f"paired samples differ in shape: {left.shape} and {right.shape}")
    only_left, only_right = int((left & ~right).sum()), int((right & ~left).sum())
    discordant = only_left + only_right
    return 1.0 if discordant == 0 else float(stats.binomtest(only_left, discordant).pvalue)


def over_seeds(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean over training seeds with a Student-t interval; with one seed the interval is NaN."""
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2:
        return exact(float(data.mean()), int(data.size))
    half = float(stats.t.ppf((1 + confidence) / 2, data.size - 1) * data.std(ddof=1) / np.sqrt(data.size))
    return Interval(float(data.mean()), float(data.mean()) - half, float(data.mean()) + half, int(data.size))


def bootstrap_interval(value: float, draws: ArrayLike, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Percentile interval from draws that the caller resampled; NaN draws are left out."""
    sample = np.asarray(draws, dtype=np.float64)
    return _percentile(value, sample[np.isfinite(sample)], n, confidence)


def percentile_of(value: float, controls: ArrayLike) -> float:
    """Share of control values below ``value``, ties counted half, in [0, 1]."""
    sample = np.asarray(controls, dtype=np.float64)
    return float((sample < value).mean() + 0.5 * (sample == value).mean())


def _percentile(value: float, draws: np.ndarray, n: int, confidence: float) -> Interval:
    if draws.size == 0:
        return exact(value, n)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), n)
