"""Intervals and paired comparisons: numpy and scipy only, no knowledge of models or tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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
    return wilson(int(hits.sum()), int(hits.size), confidence)


@lru_cache(maxsize=4096)
def wilson(count: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The share ``count / n`` with its Wilson score interval; remembered, since a study asks for the same few thousands of times."""
    bounds = stats.binomtest(count, n).proportion_ci(confidence, method="wilson")
    return Interval(count / n, float(bounds.low), float(bounds.high), n)


def mean(
    values: ArrayLike, seed: int = 0, resamples: int = 2000, confidence: float = CONFIDENCE, clusters: ArrayLike | None = None
) -> Interval:
    """Mean with a percentile-bootstrap interval over the observations.

    ``clusters`` names what each observation belongs to, such as the behavior that several attack seeds or tails share: whole clusters
    are resampled and ``n`` is their number (Davison and Hinkley 1997, section 3.8). Raises ``ValueError`` on no values, or names that
    are not as many.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("a mean needs at least one value")
    if clusters is not None:
        return _clustered_mean(data, np.asarray(clusters), seed, resamples, confidence)
    draws = data[np.random.default_rng(seed).integers(0, data.size, (resamples, data.size))].mean(axis=1)
    return _percentile(float(data.mean()), draws, data.size, confidence)


def paired_difference(
    first: ArrayLike, second: ArrayLike, seed: int = 0, resamples: int = 2000, clusters: ArrayLike | None = None
) -> Interval:
    """Mean of ``first - second`` over the same prompts in the same order, by paired bootstrap; ``clusters`` as in ``mean``."""
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"paired samples differ in shape: {left.shape} and {right.shape}")
    return mean(left - right, seed, resamples, clusters=clusters)


def guarded(interval: Interval, span: float) -> Interval:
    """A bootstrap interval that is never of no width: where all ``n`` values agree, at most 3/n of them may be off by ``span``."""
    if not interval.low >= interval.high or interval.n < 1:  # NaN bounds are none
        return interval
    half = span * min(1.0, 3.0 / interval.n)
    return Interval(interval.value, interval.value - half, interval.value + half, interval.n)


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests, in their order (Holm 1979): below 0.05 stands with all errors of the family held to 5%.

    A NaN is no test: it stays NaN and does not count.
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1.0)
    return [float(value) for value in adjusted]


def percentile_of(value: float, controls: ArrayLike) -> float:
    """Share of control values below ``value``, ties counted half, in [0, 1]."""
    sample = np.asarray(controls, dtype=np.float64)
    return float((sample < value).mean() + 0.5 * (sample == value).mean())


def _clustered_mean(data: np.ndarray, clusters: np.ndarray, seed: int, resamples: int, confidence: float) -> Interval:
    if clusters.shape != data.shape:
        raise ValueError(f"{clusters.size} cluster names were given for {data.size} values")
    names = np.unique(clusters, return_inverse=True)[1]
    sums, sizes = np.bincount(names, data), np.bincount(names)
    drawn = np.random.default_rng(seed).integers(0, len(sizes), (resamples, len(sizes)))
    return _percentile(float(data.mean()), sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), len(sizes), confidence)


def _percentile(value: float, draws: np.ndarray, n: int, confidence: float) -> Interval:
    if draws.size == 0:
        return exact(value, n)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), n)
