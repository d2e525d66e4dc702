"""C11 and C12: the claims that are decided by what removing the direction does, beside what its controls do."""

from __future__ import annotations

import math

from refgeo.measures.sequential import BEYOND
from refgeo.measures.sets import DECISIVE, MAIN
from refgeo.report.claim import Claim
from refgeo.report.claims_behavior import STEP, USEFUL
from refgeo.report.claims_geometry import require
from refgeo.report.compare import across_seeds, widened
from refgeo.report.evidence import Evidence, Place
from refgeo.report.figures.style import slug
from refgeo.report.quantities import INTERVENTIONS, NAMES, apart_range, range_of
from refgeo.report.rules import Missing, Part, told
from refgeo.report.tables import estimates
from refgeo.statistics import Interval, guarded, rate

INADMISSIBLE = "no candidate is admissible, so what was removed is the direction of largest effect and no carrier,"
ABLATIONS = ("ablate_single", "ablate_topk")
SPAN = {MAIN["audit"]: 2.0}
"""The largest change of one prompt, where it is not 1."""
SHARE = (0.0, 1.0)
CHANGED = tuple((name, metric) for name, metric in DECISIVE.items() if name != "audit")
"""What an ablation may change, named before looking: (set, metric)."""


def strongest(evidence: Evidence) -> tuple[int, str, str, str, int]:
    """Step, kind, set and metric of the largest carrier effect over its controls at the last anchor intervened on, and out of how many."""
    table = evidence.tables.intervention
    if table.empty or "intervention" not in table:
        raise Missing("no intervention was measured")
    late = [step for step in evidence.late("r2d2") if step in set(table[table["arm"] == "r2d2"]["step"])]
    if not late:
        raise Missing("no late R2D2 anchor was intervened on")
    found = []
    for kind in ABLATIONS:
        for set_name, metric in CHANGED:
            try:
                effects = over_controls(evidence, late[-1], kind, set_name, metric)
            except Missing:
                continue
            found.append((_sign(evidence, late[-1], kind, set_name, metric) * across_seeds(effects).value, kind, set_name, metric))
    if not found:
        raise Missing(f"no effect over controls (intervention.csv, *_delta_over_controls) was measured at step {late[-1]}")
    _, kind, set_name, metric = max(found)
    return late[-1], kind, set_name, metric, len(found)


def decisive_panels(evidence: Evidence) -> dict[str, str]:
    """How the names of the panels begin that show what C11 and C12 rest on; none without interventions."""
    try:
        _, kind, _, metric, _ = strongest(evidence)
    except Missing:
        return {}
    names = {"C11": NAMES[metric], "C12": NAMES[MAIN["audit"]]}
    return {claim: slug(f"effect {INTERVENTIONS[kind]} {name}") for claim, name in names.items()}


def over_controls(evidence: Evidence, step: int, kind: str, set_name: str, metric: str) -> list[Interval]:
    """The carrier's effect minus its controls' mean effect at the greatest strength, one per seed."""
    found = evidence.per_seed("intervention", "r2d2", step, set_name, f"{metric}_delta_over_controls", **_full_strength(evidence, kind))
    return [guarded(one, SPAN.get(metric, 1.0)) for one in found]


def _sign(evidence: Evidence, step: int, kind: str, set_name: str, metric: str) -> float:
    """Which way the carrier changes behavior. One that changes nothing does less than its controls, wherever these go."""
    over = across_seeds(over_controls(evidence, step, kind, set_name, metric)).value
    try:
        own = across_seeds(
            evidence.per_seed("intervention", "r2d2", step, set_name, f"{metric}_delta", **_full_strength(evidence, kind))
        ).value
    except Missing:  # tables of older versions
        own = over
    return math.copysign(1.0, own) if own else -math.copysign(1.0, over)


def _effect(step: int, set_name: str, metric: str) -> Place:
    return Place("intervention", "r2d2", step, set_name, metric)


def _full_strength(evidence: Evidence, kind: str) -> dict[str, object]:
    """What picks the carrier's own rows at the strongest ablation."""
    table = evidence.tables.intervention
    if "strength" not in table:
        raise Missing("intervention.csv does not say how strongly was ablated")
    strongest_of_kind = table[table["intervention"] == kind]["strength"].max()
    return {"intervention": kind, "direction": "carrier", "strength": strongest_of_kind}


def _c11(evidence: Evidence) -> list[Part]:
    step, kind, set_name, metric, tests = strongest(evidence)
    require(evidence, "r2d2", step, "admissible", INADMISSIBLE)
    effects = [widened(one, tests) for one in over_controls(evidence, step, kind, set_name, metric)]
    sign = _sign(evidence, step, kind, set_name, metric)
    upright = [one if sign > 0 else Interval(-one.value, -one.high, -one.low, one.n) for one in effects]
    direction = "rise" if sign > 0 else "fall"
    where = f"on {INTERVENTIONS[kind]} of R2D2 at step {step}"
    what = f"{direction} of {NAMES[metric]} {where}, beyond the controls' mean (the largest of {tests}),"
    source = _effect(step, set_name, f"{metric}_delta_over_controls").source()
    bounds = apart_range(metric, metric)
    parts = [
        evidence.part(what, upright, "above", STEP, source, bounds),
        _beyond_controls(evidence, step, kind, set_name, metric, rises=sign > 0),
    ]
    return parts + _over_shuffled(evidence, step, kind, set_name, metric, sign, tests)


def _over_shuffled(evidence: Evidence, step: int, kind: str, set_name: str, metric: str, sign: float, tests: int) -> list[Part]:
    """The same effect beyond that of directions estimated from shuffled labels, where those were run."""
    try:
        found = evidence.per_seed("intervention", "r2d2", step, set_name, f"{metric}_delta_over_shuffled", **_full_strength(evidence, kind))
    except Missing:
        return []
    wide = [widened(guarded(one, SPAN.get(metric, 1.0)), tests) for one in found]
    upright = [one if sign > 0 else Interval(-one.value, -one.high, -one.low, one.n) for one in wide]
    source = _effect(step, set_name, f"{metric}_delta_over_shuffled").source()
    return [
        evidence.part(
            "the same change beyond that of directions estimated from shuffled labels",
            upright,
            "above",
            0.0,
            source,
            apart_range(metric, metric),
        )
    ]


def _beyond_controls(evidence: Evidence, step: int, kind: str, set_name: str, metric: str, *, rises: bool) -> Part:
    """Share of single control directions that change behavior less than the carrier, with the Wilson interval of so many controls.

    Where controls were left out, its bounds are those that the worst and the best remaining ones would give.
    """
    what = "share of control directions that do less"
    try:
        known = evidence.per_seed("intervention", "r2d2", step, set_name, f"{metric}_share_beaten", **_full_strength(evidence, kind))
        return evidence.part(what, known, "above", BEYOND, _effect(step, set_name, f"{metric}_share_beaten").source(), SHARE)
    except Missing:  # tables of older versions: the percentile of the signed effect
        shares = []
    for one in evidence.per_seed("intervention", "r2d2", step, set_name, f"{metric}_percentile", **_full_strength(evidence, kind)):
        beaten = math.floor((one.value if rises else 1 - one.value) * one.n + 1e-9)
        beaten = min(max(beaten, 0), one.n)
        shares.append(rate([True] * beaten + [False] * (one.n - beaten)))
    return evidence.part(what, shares, "above", BEYOND, _effect(step, set_name, f"{metric}_percentile").source(), SHARE)


def _c11_aside(evidence: Evidence) -> str:
    step, kind, set_name, metric, _ = strongest(evidence)
    largest = across_seeds(over_controls(evidence, step, kind, set_name, metric), apart_range(metric, metric))
    return f"the largest change, of {NAMES[metric]} on {INTERVENTIONS[kind]}, is {told(largest)} beyond the controls"


def _c12_instead(evidence: Evidence) -> str:
    step, kind, *_ = strongest(evidence)
    change = across_seeds(over_controls(evidence, step, kind, "audit", "utility_mean"), range_of("utility_mean_delta"))
    return f"mean helpfulness changes by {told(change)} beyond the controls"


def _c12_aside(evidence: Evidence) -> str:
    step, kind, *_ = strongest(evidence)
    table, words = evidence.tables.intervention, []
    for suffix, who in (("", "the carrier"), ("_controls", "its controls")):
        chosen = (table["arm"] == "r2d2") & (table["step"] == step) & (table["metric"] == f"any_refusal_price{suffix}")
        found = estimates(table[chosen & (table["intervention"] == kind)])
        known = [one for one in found if math.isfinite(one.value)]
        words.append(f"{told(across_seeds(known), len(known))} for {who}" if known else f"not defined for {who}" if found else "")
    if not all(words):
        raise Missing("no price was measured")
    return f"utility lost per unit of refusal moved along the dose: {', '.join(words)}"


def _c12(evidence: Evidence) -> list[Part]:
    step, kind, *_ = strongest(evidence)
    require(evidence, "r2d2", step, "admissible", INADMISSIBLE)
    effects = over_controls(evidence, step, kind, "audit", "utility_mean")
    what = f"change of mean helpfulness (0 to 2) on {INTERVENTIONS[kind]} of R2D2 at step {step}, beyond the controls' mean,"
    source = _effect(step, "audit", "utility_mean_delta_over_controls").source()
    return [evidence.part(what, effects, "below", -USEFUL, source, range_of(source.metric))]


CAUSE_CLAIMS = (
    Claim(
        "C11",
        "Ablating a one- or three-dimensional carrier changes late R2D2 behavior more than control directions do.",
        "At the last R2D2 anchor intervened on, of single and top-k ablation and of fixed-source ASR, direct refusal and safe "
        "refusal, the largest effect over the controls' mean, in the direction in which the carrier changes it (Bonferroni over those "
        f"looked at), is more than {STEP}; it is larger than more than {BEYOND:.0%} of random directions' by the Wilson interval (20 of "
        "20 controls reach 84%); and it exceeds that of directions estimated from shuffled labels.",
        _c11,
        _c11_aside,
    ),
    Claim(
        "C12",
        "That ablation costs utility (utility-coupled).",
        f"Under the ablation of C11 mean helpfulness falls by more than {USEFUL} of 2 beyond the controls' mean.",
        _c12,
        _c12_aside,
        instead=_c12_instead,
    ),
)
