"""A claim of the ledger, and how its parts together answer it: supported, contradicted or undecided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from refgeo.report.evidence import Evidence
from refgeo.report.rules import Missing, Part, Verdict


@dataclass(frozen=True)
class Claim:
    """A claim of PROTOCOL section 8. ``statement`` is the claim, ``rule`` says in words what ``parts`` computes from the tables."""

    id: str
    statement: str
    rule: str
    parts: Callable[[Evidence], Sequence[Part]]
    aside: Callable[[Evidence], str] | None = None
    """Facts beside the rule that a reader of the verdict should know."""
    instead: Callable[[Evidence], str] | None = None
    """Facts to tell when the rule cannot be applied."""


@dataclass(frozen=True)
class Answer:
    """What a run says to one claim. ``decisive`` is the part whose numbers stand in the ledger; None when data is missing."""

    claim: Claim
    verdict: Verdict
    note: str
    decisive: Part | None = None
    parts: Sequence[Part] = field(default=())


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
    return Answer(claim, verdict, note, decisive, parts)


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
