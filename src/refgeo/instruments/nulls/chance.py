"""The tests themselves: families of comparisons without a difference are significant at about their level, no more often."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from refgeo.instruments.nulls.finding import LEVEL, Finding, Null, by_chance
from refgeo.instruments.nulls.scene import Scene
from refgeo.measures.sets import refused
from refgeo.statistics import CONFIDENCE, Interval, difference, mcnemar, paired_difference

GROUP = "statistics"
TOLD = ("random halves of the same transcripts",)
COMPARISONS = 300
FEWEST = 10
"""Outcomes of the rarer kind without which an interval is known to be too narrow, and nothing is learned."""
Values = NDArray[np.float64]
Dealt = Callable[[Values, np.random.Generator], tuple[Values, Values]]


def check_chance(scene: Scene) -> Iterator[Finding]:
    """Answers of the study's model, dealt out at random into two groups: compared as groups, and pair by pair."""
    transcripts = scene.own_behavior.transcripts
    scene.tell(TOLD[0])
    name, values = most_varied(transcripts)
    yield from compared(values, scene.study.seed, f"'{name}' of {len(values)} prompts in random halves")


def most_varied(transcripts: pd.DataFrame) -> tuple[str, Values]:
    """Of what a judge says of each completion, the outcome that is nearest to half of them: 0 or 1 per completion."""
    told = {name: transcripts[name].to_numpy(dtype=np.float64) for name in ("success", "affirmed", "degenerate")}
    told["refusal"] = refused(transcripts).to_numpy(dtype=np.float64)
    return max(told.items(), key=lambda entry: float(entry[1].var()))


def halved(values: Values, rng: np.random.Generator) -> tuple[Values, Values]:
    """Two random halves of the same size."""
    order = rng.permutation(len(values) // 2 * 2)
    return values[order[::2]], values[order[1::2]]


def compared(values: Values, seed: int, reason: str = "", deal: Dealt = halved) -> Iterator[Finding]:
    """``statistics.difference``, ``paired_difference`` and ``mcnemar`` of two groups that ``deal`` makes of the same outcomes."""
    two_sided = f"two-sided binomial test against 0.05 at {LEVEL:g}"
    groups = _null("difference of groups, 95% interval", two_sided)
    pairs = _null("paired difference, 95% interval", two_sided)
    tests = _null("McNemar's test at 0.05", f"binomial test against 0.05 at {LEVEL:g}; fewer is fine: exact tests stay below their level")
    rarer = int(min(values.sum(), len(values) - values.sum()))
    if rarer < FEWEST:
        for null in (groups, pairs, tests):
            yield null.unchecked(f"{reason}: {rarer} differ from the others, expected {FEWEST}")
        return
    dealt = [deal(values, np.random.default_rng([seed, place])) for place in range(COMPARISONS)]
    level = 1 - CONFIDENCE
    # Each comparison has resamples of its own: shared ones would make all of them err together.
    yield by_chance(groups, [_significant(difference(*two, seed=place)) for place, two in enumerate(dealt)], level, reason=reason)
    yield by_chance(pairs, [_significant(paired_difference(*two, seed=place)) for place, two in enumerate(dealt)], level, reason=reason)
    yield by_chance(tests, [mcnemar(*two) < level for two in dealt], level, at_most=True, reason=reason)


def _null(check: str, handling: str) -> Null:
    return Null(GROUP, check, "0.05 significant", f"{COMPARISONS} comparisons; {handling}")


def _significant(found: Interval) -> bool:
    return bool(found.low > 0 or found.high < 0)
