"""How long a case holds out: Kaplan-Meier curves of cases that may never break, and rates over cases that share a behavior."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from scipy import stats

from refgeo.statistics import CONFIDENCE, Interval, rate

Names = Shaped[np.ndarray, " case"]
Values = Float[np.ndarray, " case"]


class Survival(NamedTuple):
    """The share of cases not broken after each of ``times`` (ascending; where a case broke), with a band, of ``n`` clusters."""

    times: NDArray[np.float64]
    share: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: int

    def at(self, time: float) -> Interval:
        """The estimate at one time."""
        before = int(np.searchsorted(self.times, time, side="right"))
        if before == 0:
            return _certain(1.0, self.n)
        return Interval(float(self.share[before - 1]), float(self.low[before - 1]), float(self.high[before - 1]), self.n)

    def median(self) -> Interval:
        """When half of the cases are broken, with the times at which the band's edges are; NaN for what is not reached."""
        # Exactly half is half: the share is an exponential of summed logarithms, which may end a rounding above it.
        value, low, high = (_first(self.times, line <= 0.5 + 1e-9) for line in (self.share, self.low, self.high))
        return Interval(value, low, high, self.n)


def kaplan_meier(times: Values, broken: Bool[np.ndarray, " case"], clusters: Names | None = None) -> Survival:
    """Product-limit estimate (Kaplan and Meier 1958); a case that did not break is censored at its time, after the events there.

    The band is pointwise, symmetric on log(-log), with the infinitesimal-jackknife variance summed over ``clusters`` (Williams 1995);
    without clusters that is Greenwood's formula. Where all or none are left, whose variance it cannot see, the band is Wilson's over
    clusters. Raises ``ValueError`` on no cases.
    """
    if not len(times):
        raise ValueError("a survival curve needs at least one case")
    names = np.arange(len(times)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    count = int(names.max()) + 1
    events = np.unique(times[broken])
    share, low, high = (np.ones(len(events)) for _ in range(3))
    log_share, influence = 0.0, np.zeros(count)
    for index, time in enumerate(events):
        at_risk = times >= time
        died = broken & (times == time)
        total, dead = int(at_risk.sum()), int(died.sum())
        if total == dead:
            share[index:], edge = 0.0, _certain(0.0, count)
            low[index:], high[index:] = edge.low, edge.high
            break
        log_share += math.log1p(-dead / total)
        influence += np.bincount(names, (died - at_risk * (dead / total)) / (total - dead), minlength=count)
        share[index] = math.exp(log_share)
        width = float(stats.norm.isf((1 - CONFIDENCE) / 2)) * math.sqrt(float((influence**2).sum())) / -log_share
        low[index], high[index] = math.exp(log_share * math.exp(width)), math.exp(log_share * math.exp(-width))
    return Survival(events.astype(np.float64), share, low, high, count)


def clustered_rate(hits: Bool[np.ndarray, " case"], clusters: Names) -> Interval:
    """Share of hits with a Wilson interval for as many observations as the clusters are worth; ``n`` is their number.

    With one case per cluster it is the Wilson interval. Else the effective size is p (1 - p) over the variance between clusters (the
    design effect, Kish 1965), between the number of clusters and that of cases; where all agree, that of clusters.
    """
    names = np.unique(clusters, return_inverse=True)[1]
    sizes = np.bincount(names)
    if len(sizes) == len(hits):
        return rate(hits)
    share, count = float(hits.mean()), len(sizes)
    residuals = np.bincount(names, hits - share)
    variance = float((residuals**2).sum()) / len(hits) ** 2 * count / max(1, count - 1)
    size = share * (1 - share) / variance if variance else float(len(hits) if 0 < share < 1 else count)
    low, high = wilson(share, min(max(size, float(count)), float(len(hits))))
    return Interval(share, low, high, count)


def wilson(share: float, size: float) -> tuple[float, float]:
    """Wilson's score bounds (1927) for a share of ``size`` observations, which need not be whole."""
    z = float(stats.norm.isf((1 - CONFIDENCE) / 2))
    middle = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return max(0.0, middle - half), min(1.0, middle + half)


def _certain(share: float, count: int) -> Interval:
    low, high = wilson(share, count)
    return Interval(share, low if share else 0.0, high if not share else 1.0, count)


def _first(times: NDArray[np.float64], reached: NDArray[np.bool_]) -> float:
    return float(times[int(reached.argmax())]) if reached.any() else math.nan
