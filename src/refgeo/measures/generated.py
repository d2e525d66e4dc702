"""Does a direction carry refusal in what the model writes: ablate it, generate, and compare with random directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from refgeo.config.measures import GeometrySettings
from refgeo.errors import ConfigError
from refgeo.judging.verdict import Exchange, Judge, Verdict, judge_all
from refgeo.lm.changes import Change
from refgeo.lm.drafts import complete_changed
from refgeo.lm.generate import as_text
from refgeo.lm.model import LanguageModel
from refgeo.measures.controls import change_norm, matched_strength, random_bases
from refgeo.measures.effects import over_controls
from refgeo.measures.probing import Answered
from refgeo.statistics import Interval, paired_difference, percentile_of, rate

CONTROLS = 8
"""Random directions that a candidate is compared with here; the intervention measure has many more."""
FEWEST = 5
"""Prompts without which nothing is called a carrier."""


class GeneratedChange(NamedTuple):
    """Generated refusal with and without one direction, on harmful prompts that did not select it."""

    before: Interval
    after: Interval
    change: Interval
    over_controls: Interval
    percentile: float
    degenerate_change: Interval
    is_carrier: bool
    reason: str


def opening_tokens(completions: Sequence[Sequence[int]], verdicts: Sequence[Verdict]) -> list[int]:
    """The model's own refusal-opening tokens: first tokens of full refusals that open refusals more often than other answers."""
    refusals: dict[int, int] = {}
    answers: dict[int, int] = {}
    for ids, verdict in zip(completions, verdicts, strict=True):
        if ids:
            counts = refusals if verdict.refusal == "full_refusal" else answers
            counts[ids[0]] = counts.get(ids[0], 0) + 1
    return sorted(token for token, count in refusals.items() if count > answers.get(token, 0))


def given_openings(lm: LanguageModel, texts: Sequence[str]) -> list[int]:
    """The first token of each text as the chat template puts it at the start of a reply. Raises ``ConfigError`` for an empty text."""
    found = []
    for text in texts:
        reply = lm.chat.prompt("hello", reply=text) if text.strip() else None
        if reply is None or reply.target[0] >= reply.target[1]:
            raise ConfigError(
                f"geometry.refusal_openings holds '{text}', which opens no reply of '{lm.name}'",
                expected="texts of at least one word, such as 'I cannot'",
                fix="Remove it, or set geometry.refusal_openings to null to find openings in the model's own refusals",
            )
        found.append(reply.ids[reply.target[0]])
    return sorted(set(found))


def generated_change(
    lm: LanguageModel,
    unit: Float[Tensor, " d_model"],
    layer: int,
    probes: Answered,
    activations: Float[Tensor, "*rows d_model"],
    judge: Judge,
    max_new_tokens: int,
    settings: GeometrySettings,
    seed: int,
    center: Float[Tensor, " d_model"] | None = None,
) -> GeneratedChange:
    """Ablate ``unit`` while the model answers ``probes`` again and compare any-refusal with its answers as it is.

    Controls are random directions that change ``activations`` (the probes' at that layer) by as much on average. The direction is a
    carrier when the 95% interval of its effect over the controls excludes zero on at least ``FEWEST`` prompts. ``center``: the point
    whose projection is left, on the direction and on its controls, when the scan's ablation is affine.
    """
    everywhere = settings.ablate == "everywhere"
    place = None if everywhere else layer
    moved = activations if center is None else activations.double() - center.double()
    kept = None if center is None else center.float()
    target = change_norm(moved, unit[None])
    changes = [Change(place, unit.float()[None], center=kept)]
    for basis in random_bases(CONTROLS, 1, lm.width, seed):
        strength = matched_strength(target, moved, basis, most=1.0 if everywhere else None)
        changes.append(Change(place, basis.float(), strength, center=kept))
    completions = complete_changed(lm, probes.prompts, probes.completions, changes, max_new_tokens, settings.site, settings.batch)
    verdicts = [probes.verdicts]
    verdicts += [
        judge_all(judge, [Exchange(request, text) for request, text in zip(probes.requests, as_text(lm, ids), strict=True)])
        for ids in completions
    ]
    refused = np.array([[verdict.refused for verdict in line] for line in verdicts], dtype=np.float64)
    degenerate = np.array([[verdict.degenerate for verdict in line] for line in verdicts[:2]], dtype=np.float64)
    over = over_controls(refused[1], refused[2:], seed)
    found = len(probes.requests) >= FEWEST and bool(over.low > 0 or over.high < 0)
    return GeneratedChange(
        rate(refused[0]),
        rate(refused[1]),
        paired_difference(refused[1], refused[0], seed),
        over,
        percentile_of(float(refused[1].mean()), refused[2:].mean(axis=1)),
        paired_difference(degenerate[1], degenerate[0], seed),
        found,
        _reason(refused, over, found),
    )


def _reason(refused: np.ndarray, over: Interval, found: bool) -> str:
    before, after, controls = refused[0].mean(), refused[1].mean(), refused[2:].mean()
    told = (
        f"refusal {before:.2f} as it is, {after:.2f} without the direction, {controls:.2f} without random directions (n={refused.shape[1]})"
    )
    if found:
        return f"{told}: {'lower' if over.value < 0 else 'higher'} than the controls, 95% interval {over.low:.2f} to {over.high:.2f}"
    if not refused[0].any():
        return f"{told}: the model refuses none of these prompts, so there is no refusal to remove"
    if refused.shape[1] < FEWEST:
        return f"{told}: fewer than {FEWEST} prompts decide nothing"
    return f"{told}: no effect beyond the controls, 95% interval {over.low:.2f} to {over.high:.2f}"
