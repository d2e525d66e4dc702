"""What the metrics of the tables are called, and what they can be."""

from __future__ import annotations

import math

from refgeo.measures.sets import ASR, MAIN

NAMES = {
    "asr_direct": "direct-request ASR",
    "asr_fixed": "fixed-source ASR",
    "asr_adaptive_gcg": "adaptive GCG ASR",
    "asr_adaptive_autodan": "adaptive AutoDAN ASR",
    "any_refusal": "refusal of direct requests",
    "any_refusal_safe": "refusal of safe prompts",
    "strongreject": "StrongREJECT",
    "utility_mean": "benign utility (0 to 2)",
    "harm_recognition": "harm recognition at equal suffix",
}
"""Metrics in running text."""
INTERVENTIONS = {"ablate_single": "removing the direction", "ablate_topk": "removing the top-k subspace", "add": "adding the direction"}

_RATES = frozenset(ASR.values()) | frozenset(
    "asr_by_queries asr_by_flops asr_replay survival any_refusal any_refusal_safe any_refusal_unsafe any_refusal_safe_attacked "
    "any_refusal_harmful_attacked affirmed degenerate unscored full_compliance partial_refusal full_refusal answered_right "
    "strongreject utility_strict utility_lenient carrier_depth harmless_side".split()
)
_DIFFERENCES = frozenset({"harm_recognition", "adaptive_gap", "asr_replay_minus_own"})
"""Differences of two shares."""


def capitalized(words: str) -> str:
    """The same words at the beginning of a line."""
    return words[:1].upper() + words[1:]


def range_of(metric: str) -> tuple[float, float]:
    """What a quantity can be: shares lie in [0, 1], mean helpfulness in [0, 2], angles in [0, 90] degrees, and a change of a quantity
    on the same prompts (``*_delta``, also beyond controls) within the width of its range."""
    if metric.removesuffix("_gated") in _RATES or metric.endswith(("_share_beaten", "_percentile")):
        return 0.0, 1.0
    if metric.removesuffix("_gated") in _DIFFERENCES:
        return -1.0, 1.0
    changed, delta, _ = metric.partition("_delta")
    if delta:
        return apart_range(changed, changed)
    if metric.startswith("principal_angle"):
        return 0.0, 90.0
    if metric.startswith(("subspace_overlap", "cka")):
        return 0.0, 1.0
    return (0.0, 2.0) if metric == MAIN["audit"] else (-math.inf, math.inf)


def apart_range(later: str, earlier: str) -> tuple[float, float]:
    """What ``later`` minus ``earlier`` can be."""
    (low, high), (least, most) = range_of(later), range_of(earlier)
    return low - most, high - least
