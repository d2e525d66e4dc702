"""The scan for its winner alone: candidates that can no longer win are not measured further. Same carrier as the whole scan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from refgeo.config.measures import GeometrySettings
from refgeo.lm.model import LanguageModel
from refgeo.measures.rules import Rule
from refgeo.measures.scan import Bench, Scanned
from refgeo.measures.selection import scores, select
from refgeo.measures.trials import Trial

SLACK = 1e-6
"""Rounding must not drop a candidate that ties with the best one or lies on a threshold."""
TOGETHER = 4
"""Candidates whose last measurement is made before the others are compared with the best of them."""


TOO_HIGH = "KL already too high"


class Shortlisted(NamedTuple):
    """A scan with NaN where nothing was measured, and why each such candidate was left out."""

    scanned: Scanned
    skipped: dict[int, str]


def shortlist(
    lm: LanguageModel,
    tried: Sequence[Trial | None],
    harmful: Sequence[Sequence[int]],
    safe: Sequence[Sequence[int]],
    layers: Sequence[int],
    refusal_tokens: Sequence[int],
    settings: GeometrySettings,
    rule: Rule,
    completions: Sequence[Sequence[int]] = (),
) -> Shortlisted:
    """As ``scan``, for the selecting half (every other prompt) of what may still win, and for all prompts of the winner.

    Dropped are layers that the rule does not look into; candidates whose KL, summed over the prompts so far and never falling, is
    already too high; those that induce too little refusal; and those whose objective cannot reach the best one, where it has a bound:
    a cosine is at most 1. Log-odds have none, so there only the first three save work.
    """
    bench = Bench(lm, tried, harmful, safe, layers, refusal_tokens, settings, completions)
    skipped: dict[int, str] = {}
    alive: list[int] = []
    for index, trial in enumerate(tried):
        if trial is not None and rule.too_deep(trial.layer, lm.depth):
            skipped[index] = "layer too deep"
        elif trial is not None:
            alive.append(index)
    choosing = list(range(0, len(harmful), 2)), list(range(0, len(safe), 2))
    weights = [(torch.arange(len(rows)) % 2 == 0).double() for rows in (harmful, safe)]

    def drop(keep: Sequence[bool], why: str) -> None:
        nonlocal alive
        skipped.update({index: why for index, kept in zip(alive, keep, strict=True) if not kept})
        alive = [index for index, kept in zip(alive, keep, strict=True) if kept]

    spent = torch.zeros(len(tried), dtype=torch.float64)
    for rows in bench.chunks(bench.divergence, choosing[1], alive):
        if not alive:
            break
        bench.divergence(rows, alive)
        spent[alive] += bench.result.kl[alive][:, rows].sum(dim=1)
        drop((spent[alive] / len(choosing[1]) <= rule.max_kl + SLACK).tolist(), TOO_HIGH)
    if alive:
        for rows in bench.chunks(bench.addition, choosing[1], alive):
            bench.addition(rows, alive)
        for rows in bench.chunks(bench.ablation, choosing[0], []):
            bench.ablation(rows, [])
        found = scores(bench.result, *weights)
        drop([not rule.induces_too_little(float(found.induced[index])) for index in alive], "induces too little refusal")
        bound = found.bound(rule)
        alive.sort(key=lambda index: -float(bound[index]))
    best = -math.inf
    measured: list[int] = []
    while alive:
        group, alive = alive[:TOGETHER], alive[TOGETHER:]
        for rows in bench.chunks(bench.ablation, choosing[0], group):
            bench.ablation(rows, group)
        measured += group
        reached = scores(bench.result, *weights).objective(rule)[measured]
        best = max([best, *reached[torch.isfinite(reached)].tolist()])
        drop([float(bound[index]) >= best - SLACK for index in alive], "cannot reach the best")
    for index, why in skipped.items():
        if why == TOO_HIGH:  # half a sum is no measurement
            bench.result.kl[index] = bench.result.kl_first[index] = torch.nan
    places = [-1 if trial is None else trial.layer for trial in tried]
    winner = select(scores(bench.result, *weights), rule, places, lm.depth).carrier
    if winner is not None:
        for measure, count in ((bench.divergence, len(safe)), (bench.addition, len(safe)), (bench.ablation, len(harmful))):
            for rows in bench.chunks(measure, range(1, count, 2), [winner]):
                measure(rows, [winner])
    return Shortlisted(bench.result, skipped)
