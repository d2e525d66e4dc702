"""A claim of the ledger, and how its parts together answer it: supported, contradicted or undecided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from refgeo.report.compare import has_interval
from refgeo.report.evidence import Evidence
from refgeo.report.rules import Missing, Part, Verdict


@dataclass(frozen=True)
class Claim:
    """A claim (docs/claims.md). ``statement`` is the claim, ``rule`` says in words what ``parts`` computes from the tables."""

    id: str
    statement: str
    rule: str
    parts: Callable[[Evidence], Sequence[Part]]
    aside: Callable[[Evidence], str] | None = None
    """Facts beside the rule that a reader of the verdict should know."""
    instead: Callable[[Evidence], str] | None = None
    """Facts to tell when the rule cannot be applied."""
    family: str = "shipped"
    """The claims that p-values are adjusted over together."""


@dataclass(frozen=True)
class Answer:
    """What a run says to one claim. ``decisive`` is the part whose numbers stand in the ledger; None when data is missing.

    ``p`` is what ``chance`` says of it, NaN when data is missing; ``p_holm`` the same adjusted over the family of claims.
    """

    claim: Claim
    verdict: Verdict
    note: str
    decisive: Part | None = None
    parts: Sequence[Part] = field(default=())
    p: float = math.nan
    p_holm: float = math.nan


def answer(claim: Claim, evidence: Evidence) -> Answer:
    """Supported when every part is; contradicted when any part is and all premises hold; otherwise undecided."""
    try:
        parts = list(claim.parts(evidence))
    except Missing as missing:
        return Answer(claim, "undecided", sentence(f"Undecided because {missing}", told_beside(claim.instead or claim.aside, evidence)))
    failed = [part for part in parts if part.premise and part.verdict != "supported"]
    against = [part for part in parts if not part.premise and part.verdict == "contradicted"]
    unsettled = [part for part in parts if part.verdict == "undecided"]
    verdict: Verdict = "undecided" if failed else "contradicted" if against else "undecided" if unsettled else "supported"
    told = failed or against or unsettled or parts
    decisive = told[0] if verdict != "supported" else next(part for part in parts if not part.premise)
    lead = "Undecided for want of a premise" if failed else verdict.capitalize()
    note = sentence(f"{lead}: " + "; ".join(part.words() for part in told), told_beside(claim.aside, evidence))
    return Answer(claim, verdict, note, decisive, parts, chance(parts))


def chance(parts: Sequence[Part]) -> float:
    """Two-sided p-value of the likelier of both verdicts over the parts of a claim; NaN where a part has no interval, or one of no width.

    Support needs every part, so the largest p-value counts, twice for both sides (intersection-union test, Berger 1982). Contradiction
    needs every premise and one other part out of k: the smallest counts k times, at least twice (Bonferroni).
    """
    others = [part for part in parts if not part.premise]
    premises = [part.chance("supported") for part in parts if part.premise]
    support = 2 * max([*premises, *(part.chance("supported") for part in others)])
    refuted = min(max(2, len(others)) * part.among * part.chance("contradicted") for part in others)
    p = min(1.0, support, max([refuted, *(2 * one for one in premises)]))
    return p if all(has_interval(part.estimate) and part.estimate.low < part.estimate.high for part in parts) else math.nan


def told_beside(facts: Callable[[Evidence], str] | None, evidence: Evidence) -> str:
    """What ``facts`` says; nothing when it was not measured."""
    if facts is None:
        return ""
    try:
        return facts(evidence)
    except Missing:
        return ""


def sentence(text: str, beside: str = "") -> str:
    """One sentence, the facts beside the rule in brackets at its end."""
    return text.rstrip(".") + (f" (beside the rule: {beside})" if beside else "") + "."
