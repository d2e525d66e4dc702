"""Interval arithmetic behind the claims: paired and unpaired differences, selection among several, several seeds. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from refgeo.statistics import CONFIDENCE, Interval, guarded, over_seeds, paired_difference, rate, wilson

ANY = (-math.inf, math.inf)
"""The range of a quantity that knows none."""


class OverSeeds(Interval):
    """An estimate over several training seeds, with the estimates of the single seeds that it was made of."""

    seeds: tuple[Interval, ...] = ()


def has_interval(interval: Interval) -> bool:
    """Whether both bounds are known."""
    return math.isfinite(interval.low) and math.isfinite(interval.high)


def paired_rates(first: ArrayLike, second: ArrayLike) -> Interval:
    """Difference of two rates on the same prompts with Newcombe's score interval (1998, method 10).

    Unlike a bootstrap it does not shrink to nothing when no prompt changes. Raises ``ValueError`` on unequal or empty samples.
    """
    left, right = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if left.shape != right.shape:
        raise ValueError(f"paired samples differ in shape: {left.shape} and {right.shape}")
    one, two = rate(left), rate(right)
    both, neither = int((left & right).sum()), int((~left & ~right).sum())
    only_left, only_right = int((left & ~right).sum()), int((~left & right).sum())
    scale = (both + only_left) * (neither + only_right) * (both + only_right) * (neither + only_left)
    product = both * neither - only_left * only_right
    corrected = max(product - left.size / 2, 0.0) if product > 0 else float(product)
    phi = corrected / math.sqrt(scale) if scale else 0.0
    return _score(one, two, phi)


def paired_means(first: ArrayLike, second: ArrayLike, span: float) -> Interval:
    """Difference of two means on the same prompts by paired bootstrap; ``span`` is the largest possible difference of one prompt.

    When all differences are equal the bootstrap cannot see sampling error; ``guarded`` puts it back.
    """
    return guarded(paired_difference(first, second), span)


def unpaired(first: Interval, second: Interval) -> Interval:
    """Difference of two estimates known only by their intervals (method of variance estimates recovery, correlation taken as 0)."""
    return _score(first, second, 0.0)


def ratio(first: Interval, second: Interval) -> Interval:
    """Quotient of two positive estimates, by ``unpaired`` on their logarithms."""
    if min(first.value, second.value, first.low, second.low) <= 0:
        raise ValueError(f"a ratio needs positive estimates, got {first} and {second}")
    logs = [Interval(math.log(x.value), math.log(x.low), math.log(x.high), x.n) for x in (first, second)]
    apart = unpaired(logs[0], logs[1])
    return Interval(math.exp(apart.value), math.exp(apart.low), math.exp(apart.high), apart.n)


def rate_among(interval: Interval, tests: int) -> Interval:
    """The Wilson interval of a rate that was picked out of ``tests`` candidates (Bonferroni)."""
    if tests <= 1 or not has_interval(interval) or interval.n < 1:
        return interval
    return wilson(round(interval.value * interval.n), interval.n, 1 - (1 - CONFIDENCE) / tests)._replace(value=interval.value)


def widened(interval: Interval, tests: int) -> Interval:
    """An interval of any kind that was picked out of ``tests`` candidates: half-widths scaled as a normal one's (Bonferroni)."""
    if tests <= 1:
        return interval
    tail = (1 - CONFIDENCE) / 2
    factor = float(stats.norm.isf(tail / tests) / stats.norm.isf(tail))
    low, high = interval.value - factor * (interval.value - interval.low), interval.value + factor * (interval.high - interval.value)
    return Interval(interval.value, low, high, interval.n)


def across_seeds(seeds: Sequence[Interval], bounds: tuple[float, float] = ANY) -> Interval:
    """One estimate from several training seeds that share their prompts.

    The value is the mean. Its half-widths add, in quadrature, the t-interval over seeds and the mean within-seed half-width: prompts
    are shared, so their sampling error does not shrink with more seeds. One seed keeps its own interval. ``n`` is the smallest
    within-seed one. Without within-seed intervals three seeds are the least that give bounds; with fewer they are NaN. ``bounds``: what
    the quantity can be; the interval is cut there. How often it covers, beside a hierarchical bootstrap: docs/claims.md.
    """
    if len(seeds) == 1:
        return seeds[0]
    between = over_seeds([one.value for one in seeds])
    known = all(has_interval(one) for one in seeds)
    n = min(one.n for one in seeds)
    if not known and len(seeds) < 3:
        return _over(Interval(between.value, math.nan, math.nan, n), seeds)
    below = float(np.mean([one.value - one.low for one in seeds])) if known else 0.0
    above = float(np.mean([one.high - one.value for one in seeds])) if known else 0.0
    low = between.value - math.hypot(between.value - between.low, below)
    high = between.value + math.hypot(between.high - between.value, above)
    return _over(Interval(between.value, max(low, bounds[0]), min(high, bounds[1]), n), seeds)


def _over(estimate: Interval, seeds: Sequence[Interval]) -> OverSeeds:
    joined = OverSeeds(*estimate)
    joined.seeds = tuple(seeds)
    return joined


def scores_mean(counts: Sequence[int]) -> Interval:
    """Mean of scores 0, 1, 2, ... given how many prompts got each, with the normal interval of its standard error."""
    values = np.repeat(np.arange(len(counts)), counts).astype(np.float64)
    if values.size == 0:
        raise ValueError("a mean needs at least one score")
    half = float(stats.norm.isf((1 - CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan
    half = (len(counts) - 1) * 3.0 / values.size if half == 0 else half
    return Interval(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half, int(values.size))


def _score(first: Interval, second: Interval, phi: float) -> Interval:
    below, above = (first.value - first.low, second.high - second.value), (first.high - first.value, second.value - second.low)
    value = first.value - second.value
    low = value - math.sqrt(max(below[0] ** 2 - 2 * phi * below[0] * below[1] + below[1] ** 2, 0.0))
    high = value + math.sqrt(max(above[0] ** 2 - 2 * phi * above[0] * above[1] + above[1] ** 2, 0.0))
    return Interval(value, low, high, min(first.n, second.n))
