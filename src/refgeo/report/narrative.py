"""The verdict of a run in plain words, put together from the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from refgeo.report.claim import Answer
from refgeo.report.claims_behavior import adaptive, direct, fixed, overrefusal, shut_anchor, utility
from refgeo.report.compare import across_seeds, has_interval
from refgeo.report.evidence import Cell, Evidence
from refgeo.report.quantities import range_of
from refgeo.report.rules import Missing, interval_text, number, percent
from refgeo.statistics import Interval

NONSENSE = 0.2
"""From this share of degenerate completions on, the headline mentions them."""


class Figure(NamedTuple):
    """A number in a sentence with its interval and n in small type behind it."""

    value: str
    detail: str


Sentence = Sequence[str | Figure]


def headline(evidence: Evidence) -> Sentence:
    """The lead: what adversarial training did to the frozen attack, and at what price."""
    try:
        shut = shut_anchor(evidence)
        now = evidence.level(fixed("r2d2", shut), "below", 0.1).estimate
    except Missing as missing:
        return [f"This run does not yet say what R2D2 did: {missing}."]
    lead: list[str | Figure] = []
    try:
        before = evidence.level(fixed("r2d2", 0), "above", 0.1).estimate
        verb = "drove" if now.high < before.low else "lifted" if now.low > before.high else "left"
        lead += [f"R2D2 {verb} fixed-source attack success from ", figure(before), " to ", figure(now), f" by step {shut}"]
    except Missing:
        lead += ["R2D2 had a fixed-source attack success of ", figure(now), f" at step {shut}"]
    lead += _clause(evidence, overrefusal("r2d2", shut), " while refusing ", " of the safe prompts")
    return [*lead, *_nonsense(evidence, shut), "."]


def follow_up(evidence: Evidence, answers: Sequence[Answer]) -> list[Sentence]:
    """What came later, what the other arm did, whether harm is recognized, and how the ledger stands."""
    makers: tuple[Callable[[Evidence], Sentence], ...] = (_later, _other_arm, _recognition)
    sentences: list[Sentence] = []
    for make in makers:
        try:
            sentences.append(make(evidence))
        except Missing:
            continue
    counts = {verdict: sum(one.verdict == verdict for one in answers) for verdict in ("supported", "contradicted", "undecided")}
    told = f"{counts['supported']} are supported, {counts['contradicted']} contradicted, {counts['undecided']} undecided"
    sentences.append([f"Of {len(answers)} claims {told}."])
    return sentences


def figure(estimate: Interval, rate: bool = True) -> Figure:
    """A number for a sentence: rates in percent, everything else as it is."""
    if not rate:
        return Figure(number(estimate.value), f"{interval_text(estimate)}, n = {estimate.n}".lstrip(", "))
    bounds = f"{percent(max(estimate.low, 0.0))} to {percent(min(estimate.high, 1.0))}, " if has_interval(estimate) else ""
    return Figure(percent(estimate.value), f"{bounds}n = {estimate.n}")


def _nonsense(evidence: Evidence, step: int) -> list[str | Figure]:
    """Silence is no refusal: where many attacked completions are nonsense, the headline has to say so."""
    try:
        share = across_seeds(evidence.per_seed("behavior", "r2d2", step, "fixed", "degenerate"), (0.0, 1.0))
    except Missing:
        return []
    return [", but ", figure(share), " of the attacked completions were nonsense"] if share.value >= NONSENSE else []


def _later(evidence: Evidence) -> Sentence:
    last, shut = evidence.last("r2d2"), shut_anchor(evidence)
    words: list[str | Figure] = [
        f"At step {last} attack success was ",
        figure(evidence.level(fixed("r2d2", last), "above", 0.0).estimate),
        " for the frozen attack",
    ]
    words += _clause(evidence, direct("r2d2", last), ", ", " when asked directly")
    words += _clause(evidence, adaptive("r2d2", last), " and ", " for an attack that adapts to the model")
    words += _clause(evidence, overrefusal("r2d2", last), "; ", " of the safe prompts were refused")
    try:
        before, now = (evidence.level(utility("r2d2", step), "above", 0.0).estimate for step in (shut, last))
        words += [
            ", and benign utility (0 to 2) had gone from ",
            figure(before, rate=False),
            f" at step {shut} to ",
            figure(now, rate=False),
        ]
    except Missing:
        pass
    return [*words, "."]


def _other_arm(evidence: Evidence) -> Sentence:
    last = evidence.steps("sft")[-1]
    words: list[str | Figure] = [
        "SFT ended at ",
        figure(evidence.level(fixed("sft", last), "above", 0.0).estimate),
        " for the frozen attack",
    ]
    words += _clause(evidence, adaptive("sft", last), " and ", " for the adaptive one")
    return [*words, *_clause(evidence, overrefusal("sft", last), ", refusing ", " of the safe prompts"), "."]


def _recognition(evidence: Evidence) -> Sentence:
    last = evidence.last("r2d2")
    seeds = evidence.per_seed("behavior", "r2d2", last, "tails", "harm_recognition", tail="all")
    return [
        f"With equal suffixes R2D2 at step {last} refused harmful prompts more often than safe ones by ",
        figure(across_seeds(seeds, range_of("harm_recognition")), rate=False),
        " (difference of the two shares).",
    ]


def _clause(evidence: Evidence, cell: Cell, before: str, after: str) -> list[str | Figure]:
    try:
        return [before, figure(evidence.level(cell, "above", 0.0).estimate), after]
    except Missing:
        return []
