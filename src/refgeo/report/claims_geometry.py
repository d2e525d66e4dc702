"""C7 to C10: the claims that are decided by directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from refgeo.report.claim import Claim
from refgeo.report.claims_behavior import STEP, fixed, hardest
from refgeo.report.compare import across_seeds, ratio, unpaired
from refgeo.report.evidence import Evidence, Place
from refgeo.report.quantities import apart_range, range_of
from refgeo.report.rules import Missing, Part, told
from refgeo.report.tables import arm_name
from refgeo.statistics import Interval

MIDDLE = 0.50
"""Relative depth that separates early layers from late ones."""
DEEPER = 0.25
"""Smallest difference of relative depth that counts as another place."""
CONSTANT = (0.80, 1.25)
"""Effective rank counts as constant while its ratio to the start's stays within these (the usual bounds of equivalence)."""
FARTHER = 5.0
"""Smallest difference of principal angles that counts, in degrees."""
LARGEST = 3
"""The principal angle that is compared: the largest of the three, in which the paper's arms differ most."""
FIELD = {"scope": "field", "to": "reference"}


def require(evidence: Evidence, arm: str, step: int, metric: str, words: str) -> None:
    """Raise ``Missing`` with ``words`` unless the yes-or-no row ``metric`` of set ``carrier`` is yes for every seed or was not measured."""
    try:
        accepted = evidence.rows("geometry", arm, step, "carrier", metric)
    except Missing:
        return
    lacking = int((accepted["value"].astype(float) < 0.5).sum())
    if lacking:
        raise Missing(f"{words} at step {step} of {arm_name(arm)} ({lacking} of {len(accepted)} seeds)")


def depth(evidence: Evidence, arm: str, step: int) -> list[Interval]:
    """Relative depth of the carrier, one per seed. Raises ``Missing`` when some seed has no carrier there."""
    require(evidence, arm, step, "admissible", "there is no carrier to place: no candidate is admissible")
    require(
        evidence, arm, step, "is_carrier", "there is no carrier to place: removing the best candidate does not change generated refusal"
    )
    return evidence.at(_depth(arm, step))


def _depth(arm: str, step: int) -> Place:
    return Place("geometry", arm, step, "carrier", "carrier_depth")


def carried(evidence: Evidence, arm: str, steps: Sequence[int]) -> list[int]:
    """Those of ``steps`` at which every seed has a carrier. Raises ``Missing`` when there are none, with the reason at the last one."""
    found, reasons = [], []
    for step in steps:
        try:
            depth(evidence, arm, step)
            found.append(step)
        except Missing as missing:
            reasons.append(str(missing))
    if not found:
        raise Missing(reasons[-1] if reasons else f"{arm_name(arm)} has no such anchor")
    return found


def _c7(evidence: Evidence) -> list[Part]:
    early, last = carried(evidence, "r2d2", evidence.early("r2d2")), evidence.last("r2d2")
    return [
        hardest([_deep(evidence, step, "above") for step in early]),
        _deep(evidence, last, "below"),
    ]


def _deep(evidence: Evidence, step: int, side: str) -> Part:
    name = f"carrier depth of R2D2 at step {step}"
    source = _depth("r2d2", step).source()
    return evidence.part(
        name, depth(evidence, "r2d2", step), "above" if side == "above" else "below", MIDDLE, source, range_of(source.metric)
    )


def _c8(evidence: Evidence) -> list[Part]:
    shared = [step for step in evidence.early("r2d2") if step in evidence.steps("sft")]
    if not shared:
        raise Missing("the arms share no early anchor")
    both = [step for step in carried(evidence, "r2d2", shared) if step in carried(evidence, "sft", shared)]
    if not both:
        raise Missing("at no early anchor do both arms have a carrier")
    step = both[0]
    apart = [unpaired(one, two) for one, two in zip(depth(evidence, "r2d2", step), depth(evidence, "sft", step), strict=False)]
    return [
        Part(
            f"carrier depth of R2D2 minus that of SFT at step {step}",
            across_seeds(apart, apart_range("carrier_depth", "carrier_depth")),
            "above",
            DEEPER,
            seeds=len(apart),
            source=_depth("r2d2", step).source(_depth("sft", step)),
        ),
        evidence.change(fixed("sft", step), fixed("r2d2", step), "above", STEP),
    ]


def _c9(evidence: Evidence) -> list[Part]:
    parts = []
    for arm in ("r2d2", "sft"):
        steps = evidence.steps(arm)
        try:
            origin, before = 0, _rank(evidence, arm, 0)
        except Missing:
            origin, before = steps[0], _rank(evidence, arm, steps[0])
        for step in steps:
            if step == origin:
                continue
            ratios = [ratio(now, then) for now, then in zip(_rank(evidence, arm, step), before, strict=True)]
            what = f"effective rank of {arm_name(arm)} at step {step} over that at step {origin}"
            source = _rank_of(arm, step).source(_rank_of(arm, origin))
            parts.append(replace(evidence.part(what, ratios, "within", CONSTANT[0], source), upper=CONSTANT[1]))
    if not parts:
        raise Missing("only one anchor has an effective rank")
    return [hardest(parts)]


def _rank(evidence: Evidence, arm: str, step: int) -> list[Interval]:
    return evidence.at(_rank_of(arm, step))


def _rank_of(arm: str, step: int) -> Place:
    return Place("geometry", arm, step, "field", "effective_rank", {"matrix": "raw"})


def _c10(evidence: Evidence) -> list[Part]:
    shared = [step for step in evidence.steps("r2d2") if step in evidence.steps("sft")]
    if not shared:
        raise Missing("the arms share no anchor")
    step, metric = shared[-1], f"principal_angle_{LARGEST}"
    angles = [Place("geometry", arm, step, "drift", metric, FIELD) for arm in ("sft", "r2d2")]
    one, two = (evidence.at(place) for place in angles)
    apart = [unpaired(first, second) for first, second in zip(one, two, strict=False)]
    what = f"principal angle {LARGEST} of SFT minus that of R2D2 at step {step}, in degrees"
    return [
        Part(what, across_seeds(apart, apart_range(metric, metric)), "above", FARTHER, seeds=len(apart), source=angles[0].source(angles[1]))
    ]


def _c10_aside(evidence: Evidence) -> str:
    shared = [step for step in evidence.steps("r2d2") if step in evidence.steps("sft")]
    words = []
    for arm in ("sft", "r2d2"):
        angle, floor = (
            across_seeds(evidence.per_seed("geometry", arm, shared[-1], "drift", f"principal_angle_{LARGEST}{part}", **FIELD), (0.0, 90.0))
            for part in ("", "_floor")
        )
        words.append(f"{arm_name(arm)} {told(angle)} over a split-half floor of {told(floor)}")
    return ", ".join(words)


GEOMETRY_CLAIMS = (
    Claim(
        "C7",
        "R2D2 keeps a late-layer carrier early in training and an early-layer one later.",
        f"At every early R2D2 anchor that has a carrier its relative depth has its whole interval above {MIDDLE}, and at the "
        f"last anchor below {MIDDLE}. A candidate counts as carrier when it is admissible and removing it changes generated "
        "refusal; without one nothing is decided.",
        _c7,
    ),
    Claim(
        "C8",
        "SFT relocates earlier than R2D2 while being less robust.",
        f"At the first early anchor at which both arms have a carrier, R2D2's lies deeper than SFT's by more than {DEEPER} of "
        f"the stack, and SFT's fixed-source ASR is higher by more than {STEP} on the same prompts.",
        _c8,
    ),
    Claim(
        "C9",
        "The effective rank stays nearly constant.",
        "At every anchor of both arms the ratio of the field's raw effective rank to the start's has its whole interval within "
        f"{CONSTANT[0]} to {CONSTANT[1]}.",
        _c9,
    ),
    Claim(
        "C10",
        "SFT drifts further (principal angles) than R2D2.",
        "At the last common anchor the third principal angle of the whole field to the arm's own reference is larger for SFT by"
        f" more than {FARTHER:g} degrees.",
        _c10,
        _c10_aside,
    ),
)
