"""What a claim is made of: parts, each an estimate with an interval, a margin, and on which side of it the whole interval must lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from refgeo.report.compare import OverSeeds, has_interval
from refgeo.statistics import CONFIDENCE, Interval

Verdict = Literal["supported", "contradicted", "undecided"]
Relation = Literal["above", "below", "within"]
TAIL = (1 - CONFIDENCE) / 2
"""What an interval leaves out on either side."""


class Missing(Exception):
    """What a rule needs was not measured, or does not exist in this run; the message says what."""


class Source(NamedTuple):
    """The cell of the report's tables that a comparison rests on. ``against``: the other cell of a difference, in words."""

    table: str
    set: str
    metric: str
    arm: str
    step: int
    against: str = ""


@dataclass(frozen=True)
class Part:
    """One comparison. ``above``: supported when the whole interval exceeds ``margin``, contradicted when it lies wholly below.
    ``below``: the reverse. ``within``: supported when the interval lies inside [margin, upper], contradicted when wholly outside.

    A ``premise`` cannot contradict a claim: when it is not supported, the claim has nothing to stand on and stays undecided.

    ``among``: it is the weakest of so many that must all hold. Their joint support needs no correction (an intersection-union test,
    Berger 1982), but a failure is looked for in all of them and pays for it (Bonferroni).
    """

    what: str
    estimate: Interval
    relation: Relation
    margin: float
    upper: float = math.nan
    premise: bool = False
    seeds: int = 1
    source: Source | None = None
    among: int = 1

    @property
    def verdict(self) -> Verdict:
        """Decided by the interval; an estimate without an interval decides nothing."""
        if self._outside() and (self.among == 1 or self.among * self.chance("contradicted") <= TAIL):
            return "contradicted"
        return "supported" if self._inside() else "undecided"

    def chance(self, verdict: Literal["supported", "contradicted"]) -> float:
        """The one-sided p-value behind a verdict, read off the interval: at most ``TAIL`` where the interval decides; NaN without one.

        The distance to the margin in half-widths of that side is referred to the normal distribution, over several seeds to Student's t.
        ``within``: the larger of both sides supports (two one-sided tests, Schuirmann 1987). ``among`` is not counted here.
        """
        value, low, high = self.estimate.value, self.estimate.low, self.estimate.high
        if not has_interval(self.estimate):
            return math.nan
        over_margin, under_margin = self._tail(value - self.margin, value - low), self._tail(self.margin - value, high - value)
        if self.relation != "within":
            return over_margin if (self.relation == "above") == (verdict == "supported") else under_margin
        if verdict == "supported":
            return max(over_margin, self._tail(self.upper - value, high - value))
        return min(under_margin, self._tail(value - self.upper, value - low))

    def _tail(self, distance: float, half: float) -> float:
        if half <= 0:
            return 0.0 if distance > 0 else 1.0
        if self.seeds > 1:
            freedom = self.seeds - 1
            return float(stats.t.sf(distance / half * stats.t.isf(TAIL, freedom), freedom))
        return float(stats.norm.sf(distance / half * stats.norm.isf(TAIL)))

    def _inside(self) -> bool:
        low, high = self.estimate.low, self.estimate.high
        if not has_interval(self.estimate):
            return False
        if self.relation == "within":
            return self.margin <= low and high <= self.upper
        return low > self.margin if self.relation == "above" else high < self.margin

    def _outside(self) -> bool:
        low, high = self.estimate.low, self.estimate.high
        if not has_interval(self.estimate):
            return False
        if self.relation == "within":
            return low > self.upper or high < self.margin
        return high < self.margin if self.relation == "above" else low > self.margin

    def words(self) -> str:
        """``fixed ASR at step 50 is 0.00 [0.00, 0.06] (n = 64), below 0.10 as claimed``."""
        bounds = f"[{number(self.estimate.low)}, {number(self.estimate.high)}]" if has_interval(self.estimate) else "without an interval"
        sample = f"n = {self.estimate.n}, {self.seeds} seed{'s' if self.seeds > 1 else ''}{spread(self.estimate)}"
        claimed = (
            f"within {number(self.margin)} to {number(self.upper)}"
            if self.relation == "within"
            else f"{self.relation} {number(self.margin)}"
        )
        outcome = {
            "supported": f"{claimed} as required",
            "contradicted": f"not {claimed} as required",
            "undecided": f"which does not settle whether it is {claimed}",
        }[self.verdict]
        return f"{self.what} is {number(self.estimate.value)} {bounds} ({sample}), {outcome}"


def half_up(value: float) -> float:
    """A hair further from zero: 39 of 40 is 0.98 and 98% wherever it stands; as binary fractions such ties fall either way."""
    return math.copysign(abs(value) + 1e-9, value) if value else 0.0


def number(value: float) -> str:
    """Two decimals, three for small numbers, so that 0.004 does not read as zero; one above 10."""
    if not math.isfinite(value):
        return "n/a"
    shown = half_up(value)
    text = f"{shown:.1f}" if abs(value) >= 10 else f"{shown:.3f}" if 0 < abs(value) < 0.095 else f"{shown:.2f}"
    return text.replace("-", "\u2212") if text.strip("-0.") else text.lstrip("-")


def percent(value: float) -> str:
    """``3%``; one decimal below one percent, so that little does not read as nothing."""
    more = 100 * half_up(value)
    shown = f"{more:.1f}" if 0 < value < 0.0095 else f"{more:.0f}"
    return f"{shown}%"


def told(estimate: Interval, seeds: int = 1) -> str:
    """A number as it is printed everywhere: value, interval, sample size; over several seeds, how they spread and what one knows alone."""
    bounds = _bounds(estimate)
    sample = f", n = {estimate.n}" if estimate.n > 1 else ""
    return f"{number(estimate.value)}{' ' if bounds else ''}{bounds}{sample}" + (f", {seeds} seeds{spread(estimate)}" if seeds > 1 else "")


def interval_text(estimate: Interval) -> str:
    """``[low, high]``, or nothing when there is no interval; over several seeds with their spread behind it."""
    return _bounds(estimate) + (f", seeds{spread(estimate)}" if spread(estimate) else "")


def spread(estimate: Interval) -> str:
    """`` from 0.12 to 0.38, within a seed [0.17, 0.29]``: where the seeds lie, and their mean interval over prompts; nothing for one.

    These are the between-seed and the within-seed part of the interval, as in ``over_seeds.csv``.
    """
    seeds = estimate.seeds if isinstance(estimate, OverSeeds) else ()
    if len(seeds) < 2:
        return ""
    values = [one.value for one in seeds]
    words = f" from {number(min(values))} to {number(max(values))}"
    if all(has_interval(one) for one in seeds):
        low, high = (float(np.mean(ends)) for ends in zip(*((one.low, one.high) for one in seeds), strict=True))
        words += f", within a seed [{number(low)}, {number(high)}]"
    return words


def _bounds(estimate: Interval) -> str:
    return f"[{number(estimate.low)}, {number(estimate.high)}]" if has_interval(estimate) else ""
