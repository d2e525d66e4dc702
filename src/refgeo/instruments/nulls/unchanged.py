"""A model against itself, and interventions that do nothing: every difference is zero, to the last bit where bits are promised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from refgeo.instruments.nulls.finding import Finding, Null, never
from refgeo.instruments.nulls.scene import Scene
from refgeo.lm.changes import Change, changing
from refgeo.lm.generate import greedy
from refgeo.lm.model import LanguageModel
from refgeo.measures.behavior import Measured
from refgeo.measures.controls import random_bases
from refgeo.measures.drift import measure_drift
from refgeo.measures.geometry import Geometry
from refgeo.statistics import Interval, exact, mcnemar, paired_difference

SAME, FAKE = "same", "fake"
TOLD_SAME = ("the model", "the same model again: behavior", "the same model again: geometry")
TOLD_FAKE = ("interventions that do nothing",)
SIGNIFICANT = 0.05
DEGREES = 1e-3
"""A principal angle below this is rounding."""
SIMILAR = 1e-6
"""So is a similarity nearer to 1 than this."""
EXACTLY = "no chance is involved"
ANSWERED = 8
"""Prompts under every fake intervention."""


def check_same(scene: Scene) -> Iterator[Finding]:
    """The study's model measured twice."""
    scene.tell(TOLD_SAME[0])
    first, geometry = scene.own_behavior, scene.own_geometry
    scene.tell(TOLD_SAME[1])
    yield from same_behavior(first, scene.behavior(scene.lm))
    scene.tell(TOLD_SAME[2])
    yield from no_drift(scene, geometry, scene.geometry(scene.lm, scene.probes))


def same_behavior(first: Measured, second: Measured) -> Iterator[Finding]:
    """Completions, paired differences of every outcome in every set, and paired tests."""
    one, other = first.transcripts, second.transcripts
    yield never(SAME, "completions that differ", (one["completion"] != other["completion"]).to_numpy(), 0.0)
    largest, significant = exact(0.0, 0), []
    for _, rows in one.groupby("set", sort=False):
        for column in ("success", "refusal", "degenerate"):
            pair = [part.loc[rows.index, column] for part in (one, other)]
            left, right = (part != "full_compliance" if column == "refusal" else part.astype(bool) for part in pair)
            moved = paired_difference(right, left)
            largest = max(largest, moved, key=lambda found: abs(found.value)) if largest.n else moved
            significant.append(mcnemar(left, right) < SIGNIFICANT)
    null = Null(SAME, "difference of behavior, paired", "0", EXACTLY)
    yield null.decided(largest, not any(largest[:3]), f"largest of {len(significant)} outcomes (harm, refusal, degenerate, each set)")
    yield never(SAME, "paired tests that are significant", significant, 0.0, f"McNemar at {SIGNIFICANT:g}")


def no_drift(scene: Scene, first: Geometry, second: Geometry) -> Iterator[Finding]:
    """Angles, distances and similarities of ``measure_drift``, the field's and every layer's."""
    given = scene.geometry_settings, scene.study.seed, "itself"
    table = measure_drift(first.tensors, second.tensors, first.carrier, second.carrier, *given)
    rows = [row for row in table.to_dict("records") if np.isfinite(row["value"])]
    angles = [row for row in rows if row["metric"].startswith("principal_angle") and "_floor" not in row["metric"]]
    alike = [row for row in rows if row["metric"] in ("subspace_overlap", "cka", "cka_harmful", "cka_harmless", "carrier_cosine")]
    null = Null(SAME, "drift: principal angles, degrees", "0", EXACTLY)
    if angles:
        worst = max(angles, key=lambda row: float(row["value"]))
        found = Interval(float(worst["value"]), float(worst["low"]), float(worst["high"]), int(worst["n"]))
        yield null.decided(found, found.value < DEGREES, f"largest of {len(angles)}, the field's and every layer's")
    else:
        yield null.unchecked("no candidate has a direction")
    null = Null(SAME, "drift: overlap, CKA, carrier's cosine", "1", EXACTLY)
    if alike:
        worst = min(alike, key=lambda row: float(row["value"]))
        found = Interval(float(worst["value"]), float(worst["low"]), float(worst["high"]), int(worst["n"]))
        yield null.decided(found, found.value > 1 - SIMILAR, f"smallest of {len(alike)}")
    else:
        yield null.unchecked("no similarity exists")


def check_fake(scene: Scene) -> Iterator[Finding]:
    """Ablation of strength 0 and addition of a zero vector, at the first, a middle and the last layer, and everywhere."""
    scene.tell(TOLD_FAKE[0])
    yield from do_nothing(scene, fakes(scene.lm, scene.study.seed))


def fakes(lm: LanguageModel, seed: int) -> dict[str, Change]:
    """Interventions by name that change nothing."""
    basis = random_bases(1, 1, lm.width, seed)[0].float()
    found = {"strength 0 everywhere": Change(None, basis, 0.0)}
    for layer in sorted({0, lm.depth // 2, lm.depth - 1}):
        found[f"strength 0 at layer {layer}"] = Change(layer, basis, 0.0)
        found[f"zero vector at layer {layer}"] = Change(layer, vector=torch.zeros(lm.width))
        found[f"both at layer {layer}"] = Change(layer, basis, 0.0, vector=torch.zeros(lm.width))
    return found


def do_nothing(scene: Scene, changes: Mapping[str, Change]) -> Iterator[Finding]:
    """That no logit and no completion of a few prompts changes under any of ``changes``."""
    lm, site = scene.lm, scene.study.geometry.site
    rows = [lm.chat.prompt(behavior.request).ids for behavior in scene.sets.behaviors[:ANSWERED]]
    rows += [lm.chat.prompt(probe.request).ids for probe in scene.probes[:ANSWERED]]
    budgets = [scene.study.behavior.max_new_tokens] * len(rows)
    plain, logits = greedy(lm, rows, budgets), [_logits(lm, row) for row in rows]
    changed_logits, changed_text = [], []
    for change in changes.values():

        def under(active: Sequence[int], change: Change = change) -> AbstractContextManager[None]:
            return changing(lm, [change] * len(active), site)

        changed_text += [one != other for one, other in zip(plain, greedy(lm, rows, budgets, under), strict=True)]
        with changing(lm, [change], site):
            changed_logits += [not torch.equal(before, _logits(lm, row)) for before, row in zip(logits, rows, strict=True)]
    what = f"{len(changes)} interventions on {len(rows)} prompts"
    yield never(FAKE, "prompts whose logits change by a bit", changed_logits, 0.0, what)
    yield never(FAKE, "completions that change", changed_text, 0.0, what)


@torch.no_grad()
def _logits(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    logits: Tensor = lm.core(input_ids=torch.tensor([list(ids)], device=lm.device)).logits
    return logits
