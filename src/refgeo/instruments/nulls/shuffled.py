"""The study's own model with labels that mean nothing: what the estimators find in real activations when there is nothing to find.

A plain permutation would not do. By chance it leaves more harmful prompts in one group than in the other, and the difference of the
groups then points along the very direction that it should be free of. So each label is dealt out in equal parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from refgeo.data.probes import SPLITS
from refgeo.data.rows import Probe
from refgeo.instruments.nulls.finding import LEVEL, Finding, Null
from refgeo.instruments.nulls.scene import DRAWS, Scene, no_carrier
from refgeo.lm.residual import read
from refgeo.measures.directions import Candidates, estimate, halves
from refgeo.measures.geometry import Geometry
from refgeo.measures.ranks import no_difference, rank_rows
from refgeo.statistics import Interval, exact, over_seeds, percentile_of

GROUP = "shuffled"
SHUFFLES = 6
TOLD = tuple(f"shuffled labels, {draw + 1} of {SHUFFLES}" for draw in range(SHUFFLES))


def shuffled_labels(probes: Sequence[Probe], seed: int) -> list[Probe]:
    """The same probes, half of each label and split, drawn at random, with the other label."""
    rng = np.random.default_rng(seed)
    flipped: set[str] = set()
    for split in SPLITS:
        for harmful in (True, False):
            names = [probe.id for probe in probes if probe.split == split and probe.harmful == harmful]
            flipped |= {names[place] for place in rng.permutation(len(names))[: len(names) // 2]}
    return [replace(probe, harmful=probe.harmful != (probe.id in flipped)) for probe in probes]


def check_shuffled(scene: Scene) -> Iterator[Finding]:
    """The geometry of the study's model under ``SHUFFLES`` labelings that mean nothing."""
    found = []
    for draw, told in enumerate(TOLD):
        scene.tell(told)
        found.append(scene.geometry(scene.lm, shuffled_labels(scene.probes, scene.study.seed + 1 + draw)))
    fields = [estimate(scene.study.geometry.directions, one.tensors["harmful"], one.tensors["harmless"]) for one in found]
    norms, ranks = [], []
    for one, field in zip(found, fields, strict=True):
        given = one.tensors["harmful"], one.tensors["harmless"]
        split = halves(*given, DRAWS, scene.study.seed, scene.study.geometry.directions)
        norms.append(_norm(field, split))
        ranks.append(_rank(scene, field, split, len(given[0]) + len(given[1])))
    words = f"noise of {SHUFFLES} shuffles stretched to {LEVEL:g}, Bonferroni over the shuffles"
    yield _worst(Null(GROUP, "norm of the field over noise", "1 or less, as noise", words), norms)
    yield _worst(Null(GROUP, "effective rank over noise", "1 or more, as noise", words), ranks)
    yield no_carrier(GROUP, found, "shuffles")
    yield _inside(found)
    yield _transfer(scene, fields)


class _Beyond(NamedTuple):
    """A ratio to its noise level, and by how many standard deviations of the noise it lies on the side that would mean something."""

    ratio: float
    deviations: float


def _norm(field: Candidates, split: tuple[Tensor, Tensor]) -> _Beyond | None:
    """The mean norm of the candidates beside that of fields of sampling noise alone (``ranks.no_difference``)."""
    noise = no_difference(*split).norm(dim=-1)
    usual = noise.mean(dim=0)
    there = field.usable & (usual > 0)
    if not bool(there.any()):
        return None
    drawn = (noise / usual)[:, there].mean(dim=1)
    ratio = float((field.norms / usual)[there].mean())
    return _Beyond(ratio, (ratio - 1.0) / max(float(drawn.std()), 1e-12))


def _rank(scene: Scene, field: Candidates, split: tuple[Tensor, Tensor], prompts: int) -> _Beyond | None:
    """The effective rank of the row-normalized field beside that of such noise: few real directions lie below it."""
    rows = rank_rows(field, split[0], scene.study.geometry.positions, prompts, split)
    known = {row["metric"]: row for row in rows if row["set"] == "field" and row.get("matrix") == "normalized"}
    rank, level = known.get("effective_rank"), known.get("effective_rank_floor")
    if rank is None or level is None:
        return None
    # The range of the draws is 95%: 1.96 deviations to each side.
    spread = max((level["high"] - level["low"]) / (2 * 1.96), 1e-12)
    return _Beyond(rank["value"] / level["value"], (level["value"] - rank["value"]) / spread)


def _worst(null: Null, levels: Sequence[_Beyond | None]) -> Finding:
    """The labeling that lies farthest out; the interval is the range over all of them."""
    known = [level for level in levels if level is not None]
    if not known:
        return null.unchecked("no candidate has a direction")
    limit = float(stats.t.ppf(1 - LEVEL / len(known), DRAWS - 1))  # the deviation is itself estimated, from so many draws
    worst = max(known, key=lambda level: level.deviations)
    ratios = [level.ratio for level in known]
    reason = f"{worst.deviations:+.1f} standard deviations of the noise, limit {limit:.1f}; range over the shuffles"
    return null.decided(Interval(worst.ratio, min(ratios), max(ratios), len(known)), worst.deviations <= limit, reason)


def _inside(found: Sequence[Geometry]) -> Finding:
    """The highest S_total of the first labeling, among those of the others."""
    totals = [float(one.scan["s_total"].max()) for one in found]
    handling = f"prediction interval from the other shuffles at {1 - LEVEL:g} (Student's t)"
    if not np.isfinite(totals).all() or len(totals) < 3:
        return Null(GROUP, "S_total", "what other shuffles give", handling).unchecked("no candidate could be scored")
    first, others = totals[0], np.array(totals[1:])
    reach = float(stats.t.ppf(1 - LEVEL / 2, len(others) - 1)) * float(others.std(ddof=1)) * math.sqrt(1 + 1 / len(others))
    low, high = float(others.mean()) - reach, float(others.mean()) + reach
    null = Null(GROUP, "S_total", f"{low:.3g} to {high:.3g}, as other shuffles", handling)
    return null.decided(exact(first, len(found)), low - 1e-9 <= first <= high + 1e-9, "highest of all candidates")


def _transfer(scene: Scene, fields: Sequence[Candidates]) -> Finding:
    """Whether the fields tell the real labels of held-out prompts apart: AUC, mean over candidates."""
    settings = scene.study.geometry
    groups = []
    for label in (True, False):
        texts = [probe.request for probe in scene.probes if probe.split == "validate" and probe.harmful == label]
        groups.append(read(scene.lm, [scene.lm.chat.prompt(text).ids for text in texts], settings.positions, settings.site, settings.batch))
    null = Null(GROUP, "transfer to the real labels, AUC", "0.5", f"Student-t interval over the shuffles at {1 - LEVEL:g}")
    known = [field for field in fields if bool(field.usable.any())]
    if len(known) < 2:
        return null.unchecked("no candidate has a direction")
    return null.contains(0.5, over_seeds([area(field, *groups) for field in known], 1 - LEVEL), "held-out probes; mean over candidates")


def area(
    field: Candidates, harmful: Float[Tensor, "prompt pos layer d_model"], harmless: Float[Tensor, "other pos layer d_model"]
) -> float:
    """Area under the ROC curve of the projection on each usable candidate, as a score of harm; mean over the candidates."""
    scores = [torch.einsum("npld,pld->npl", group.double(), field.vectors)[:, field.usable].numpy() for group in (harmful, harmless)]
    places = zip(scores[0].T, scores[1].T, strict=True)
    return float(np.mean([np.mean([percentile_of(score, below) for score in above]) for above, below in places]))
