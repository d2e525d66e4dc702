"""What a claim is made of: parts, each an estimate with an interval, a margin, and on which side of it the whole interval must lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from refgeo.report.compare import has_interval
from refgeo.statistics import Interval

Verdict = Literal["supported", "contradicted", "undecided"]
Relation = Literal["above", "below", "within"]


class Missing(Exception):
    """What a rule needs was not measured, or does not exist in this run; the message says what."""


@dataclass(frozen=True)
class Part:
    """One comparison. ``above``: supported when the whole interval exceeds ``margin``, contradicted when it lies wholly below.
    ``below``: the reverse. ``within``: supported when the interval lies inside [margin, upper], contradicted when wholly outside.

    A ``premise`` cannot contradict a claim: when it is not supported, the claim has nothing to stand on and stays undecided.
    """

    what: str
    estimate: Interval
    relation: Relation
    margin: float
    upper: float = math.nan
    premise: bool = False
    seeds: int = 1

    @property
    def verdict(self) -> Verdict:
        """Decided by the interval; an estimate without an interval decides nothing."""
        low, high = self.estimate.low, self.estimate.high
        if not has_interval(self.estimate):
            return "undecided"
        if self.relation == "within":
            inside, outside = self.margin <= low and high <= self.upper, low > self.upper or high < self.margin
        elif self.relation == "above":
            inside, outside = low > self.margin, high < self.margin
        else:
            inside, outside = high < self.margin, low > self.margin
        return "supported" if inside else "contradicted" if outside else "undecided"

    def words(self) -> str:
        """``fixed ASR at step 50 is 0.00 [0.00, 0.06] (n = 64), below 0.10 as claimed``."""
        bounds = f"[{number(self.estimate.low)}, {number(self.estimate.high)}]" if has_interval(self.estimate) else "without an interval"
        sample = f"n = {self.estimate.n}" + (f", {self.seeds} seeds" if self.seeds > 1 else "")
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


def number(value: float) -> str:
    """Two decimals, three for small numbers, so that 0.004 does not read as zero; one above 10."""
    if not math.isfinite(value):
        return "n/a"
    text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}" if 0 < abs(value) < 0.095 else f"{value:.2f}"
    return text.replace("-", "\u2212") if text.strip("-0.") else text.lstrip("-")


def told(estimate: Interval, seeds: int = 1) -> str:
    """A number as it is printed everywhere: value, interval, sample size."""
    bounds = interval_text(estimate)
    sample = f", n = {estimate.n}" if estimate.n > 1 else ""
    return f"{number(estimate.value)}{' ' if bounds else ''}{bounds}{sample}" + (f", {seeds} seeds" if seeds > 1 else "")


def interval_text(estimate: Interval) -> str:
    """``[low, high]``, or nothing when there is no interval."""
    return f"[{number(estimate.low)}, {number(estimate.high)}]" if has_interval(estimate) else ""
