"""Does the direction of one checkpoint work in another: every anchor's carrier applied to one anchor (docs/geometry.md).

Only forward passes, on the validation probes that report a carrier and select none. A direction that refusal no longer runs through
moves nothing, however alike the two directions look; a cosine alone cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refgeo.config.measures import GeometrySettings
from refgeo.data.rows import Probe
from refgeo.lm.changes import Change
from refgeo.lm.model import LanguageModel
from refgeo.measures.angles import cosine
from refgeo.measures.applied import apply_changes
from refgeo.measures.controls import change_norm, matched_strength, random_bases
from refgeo.measures.table import Row, frame, integers, row
from refgeo.progress import Progress
from refgeo.statistics import Interval, bootstrap_interval, exact, mean

Norm = Literal["target", "source"]

DRAWS = 10
"""Random directions behind each null."""
DEFAULT_NORM: Norm = "target"
"""Length of an added direction by default: that of the target's own candidate at the same place. Residual streams grow while a model is
trained, and the question is whether the direction is the right one, not whether it is long enough; ``source`` keeps its own length."""
METRICS = ("odds_comply", "odds_refuse", "kl", "cosmic_comply", "cosmic_refuse")
NO_TOKENS = "no refusal was opened on the selection prompts, here or at the start: no log-odds"


@dataclass(frozen=True, eq=False)
class Source:
    """Where a direction comes from: an anchor, its ``carrier`` record and its ``candidates``; ``seed`` is None for the common start."""

    arm: str
    seed: int | None
    step: int
    carrier: Mapping[str, Any]
    candidates: Float[Tensor, "pos layer d_model"]

    def identity(self) -> dict[str, Any]:
        """The columns that name the source."""
        place = {f"source_{name}": self.carrier.get(name) for name in ("layer", "position")}
        return {"source_arm": self.arm, "source_seed": self.seed, "source_step": self.step, **place, "source_status": self.status}

    @property
    def status(self) -> str:
        """Whether the record's top-level candidate is a carrier, admissible, a stand-in, or nothing (``none``)."""
        return str(self.carrier["status"])


class _Effects(NamedTuple):
    """One direction's effects per prompt; a cosine is between the mean states of two groups of prompts."""

    odds_comply: Float[Tensor, " harmful"]
    odds_refuse: Float[Tensor, " safe"]
    kl: Float[Tensor, " safe"]
    cosmic_comply: tuple[Tensor, Tensor]
    cosmic_refuse: tuple[Tensor, Tensor]


class _Direction(NamedTuple):
    """One source's candidate as the target meets it: its place, its unit, and the lengths of both candidates there."""

    layer: int
    place: int
    unit: Float[Tensor, " d_model"]
    norms: dict[Norm, float]


def measure_transfer(
    lm: LanguageModel,
    probes: Sequence[Probe],
    sources: Sequence[Source],
    geometry: Mapping[str, Tensor],
    carrier: Mapping[str, Any],
    settings: GeometrySettings,
    seed: int,
    start_tokens: Sequence[str] = (),
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Set ``transfer``: the top-level candidate of every source ablated and added in ``lm``, whose own ``geometry`` and ``carrier``
    are those of ``measure_geometry``.

    ``odds_comply`` (fall of the mean refusal log-odds on harmful probes, ablated at the source's layer), ``odds_refuse`` (rise on safe
    ones, added), ``kl`` (first token, safe, ablated), ``cosmic_comply`` and ``cosmic_refuse`` with intervals over prompts; an anchor's
    own carrier gets the reported scores of its scan. Additions come in both lengths (column ``addition_norm``, see ``DEFAULT_NORM``).
    Rows of direction ``random`` hold the mean and the 95% range over ``DRAWS`` random directions at the same layer that change the
    target's probes by the same norm. ``cosine`` and ``norm_ratio`` compare with the target's own candidate at that place. Log-odds use
    the target's refusal tokens, else ``start_tokens`` with a note.
    """
    tokens, token_note = _refusal_tokens(lm, carrier, start_tokens)
    layers = [int(layer) for layer in carrier["evaluation_layers"]]
    prompts = [_reporting(lm, probes, harmful=label) for label in (True, False)]
    own = geometry["candidates"].double()
    rows: list[Row] = []
    usable: list[tuple[Source, _Direction]] = []
    for source in sources:
        found = _direction(source, own, settings.site)
        if isinstance(found, str):
            rows += [
                row("transfer", metric, exact(math.nan, 0), **source.identity(), direction="carrier", note=found) for metric in METRICS
            ]
        else:
            usable.append((source, found))
    draws = random_bases(DRAWS, 1, lm.width, seed)
    removed: dict[tuple[int, int], Change] = {}
    added: dict[tuple[Any, ...], Change] = {}
    for number, (_, found) in enumerate(usable):
        for draw in range(-1, DRAWS):
            removed[number, draw] = _ablation(found, None if draw < 0 else draws[draw], geometry, settings)
        for name, length in found.norms.items():
            added[_addition_key(number, found, name, -1)] = Change(found.layer, vector=(length * found.unit).float())
        for draw in range(DRAWS):
            vector = (found.norms[DEFAULT_NORM] * draws[draw, 0]).float()
            added[_addition_key(number, found, DEFAULT_NORM, draw)] = Change(found.layer, vector=vector)
    total, done = len(removed) * (len(prompts[0]) + len(prompts[1])) + len(added) * len(prompts[1]), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total, "transfer")

    bad, ablated_bad = apply_changes(lm, prompts[0], list(removed.values()), layers, tokens, settings, advance)
    changes = [*removed.values(), *added.values()]
    safe, changed_safe = apply_changes(lm, prompts[1], changes, layers, tokens, settings, advance)
    at_removed = {key: index for index, key in enumerate(removed)}
    at_added = {key: len(removed) + index for index, key in enumerate(added)}
    for number, (source, found) in enumerate(usable):
        identity = source.identity()

        def values(draw: int, name: Norm, number: int = number, found: _Direction = found) -> _Effects:
            index, other = at_removed[number, draw], at_added[_addition_key(number, found, name, draw)]
            return _Effects(
                bad.odds[0] - ablated_bad.odds[index],
                changed_safe.odds[other] - safe.odds[0],
                changed_safe.kl[index],
                (ablated_bad.states[index], safe.states[0]),
                (changed_safe.states[other], bad.states[0]),
            )

        null = [values(draw, DEFAULT_NORM) for draw in range(DRAWS)]
        for name in found.norms:
            effects = values(-1, name)
            for metric in METRICS if name == DEFAULT_NORM else ("odds_refuse", "cosmic_refuse"):
                where = {**identity, "addition_norm": name if metric.endswith("refuse") else None}
                note = token_note if metric.startswith("odds") else None
                interval = _interval(getattr(effects, metric), settings.bootstrap, seed)
                rows.append(row("transfer", metric, interval, **where, direction="carrier", note=note))
                if name == DEFAULT_NORM:
                    drawn = _range([_point(getattr(one, metric)) for one in null])
                    rows.append(row("transfer", metric, drawn, **where, direction="random", note=note))
        compared = {
            "cosine": cosine(own[found.place, found.layer], found.unit),
            "norm_ratio": found.norms["source"] / found.norms["target"],
        }
        rows += [row("transfer", metric, exact(value), **identity, direction="carrier") for metric, value in compared.items()]
    return integers(frame(rows), "source_seed", "source_step", "source_layer", "source_position")


def _refusal_tokens(lm: LanguageModel, carrier: Mapping[str, Any], start_tokens: Sequence[str]) -> tuple[list[int], str | None]:
    """Token ids, and why they are not the model's own."""
    own = _known(lm, carrier.get("refusal_tokens") or ())
    if own:
        return own, None
    others = _known(lm, start_tokens)
    return others, "this model opened no refusal: the start's opening tokens" if others else NO_TOKENS


def _known(lm: LanguageModel, tokens: Iterable[str]) -> list[int]:
    vocabulary = lm.tokenizer.get_vocab()
    return sorted({vocabulary[token] for token in tokens if token in vocabulary})


def _reporting(lm: LanguageModel, probes: Sequence[Probe], *, harmful: bool) -> list[tuple[int, ...]]:
    """Token ids of the validation probes of one label that report a carrier and select none: every other one."""
    chosen = [probe for probe in probes if probe.split == "validate" and probe.harmful == harmful]
    return [tuple(lm.chat.prompt(probe.request).ids) for probe in chosen[1::2]]


def _direction(source: Source, own: Float[Tensor, "place depth width"], site: str) -> _Direction | str:
    """The source's candidate, or why it cannot be applied here."""
    if source.status == "none":
        return f"the source has no direction: {source.carrier.get('reason', 'no candidate has one')}"
    if source.carrier.get("site", site) != site:
        return f"the source was read at {source.carrier['site']}, this anchor at {site}"
    layer, place = int(source.carrier["layer"]), int(source.carrier["place"])
    if source.candidates.shape != own.shape:
        sizes = [f"{shape[1]} layers of width {shape[2]}" for shape in (source.candidates.shape, own.shape)]
        return f"the source has {sizes[0]}, this anchor {sizes[1]}"
    vector = source.candidates[place, layer].double()
    norms: dict[Norm, float] = {"target": float(own[place, layer].norm()), "source": float(vector.norm())}
    if not min(norms.values()) > 0:
        return f"a candidate at layer {layer}, position {source.carrier['position']} is a zero vector"
    return _Direction(layer, place, vector / norms["source"], norms)


def _ablation(
    found: _Direction, control: Float[Tensor, "rank width"] | None, geometry: Mapping[str, Tensor], settings: GeometrySettings
) -> Change:
    everywhere = settings.ablate == "everywhere"
    layer = None if everywhere else found.layer
    center = geometry["harmless"][:, found.place, found.layer].double().mean(dim=0) if settings.affine and not everywhere else None
    kept = None if center is None else center.float()
    if control is None:
        return Change(layer, found.unit.float()[None], center=kept)
    here = torch.cat([geometry["harmful"][:, :, found.layer], geometry["harmless"][:, :, found.layer]]).double()
    here = here if center is None else here - center
    # Removed everywhere, a scale above 1 would compound from layer to layer.
    strength = matched_strength(change_norm(here, found.unit[None]), here, control, 1.0 if everywhere else None)
    return Change(layer, control.float(), strength, center=kept)


def _addition_key(number: int, found: _Direction, norm: Norm, draw: int) -> tuple[Any, ...]:
    """What tells additions apart: random ones of the target's length are the same for all sources of one place."""
    return (found.layer, found.place, draw) if draw >= 0 else (number, norm)


def _point(found: Tensor | tuple[Tensor, Tensor]) -> float:
    """A mean over prompts, or the cosine of two mean states."""
    if isinstance(found, Tensor):
        return float(found.mean())
    return float(torch.cosine_similarity(found[0].double().mean(dim=0), found[1].double().mean(dim=0), dim=0))


def _interval(found: Tensor | tuple[Tensor, Tensor], resamples: int, seed: int) -> Interval:
    """The same with an interval over prompts; both groups behind a cosine are resampled. NaN where the model is broken."""
    point = _point(found)
    if isinstance(found, Tensor):
        return mean(found.numpy(), seed) if bool(found.isfinite().all()) else exact(math.nan, 0)
    rng = np.random.default_rng(seed)
    means = []
    for group in found:
        weights = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), resamples) / len(group)
        means.append(torch.from_numpy(weights) @ group.double())
    draws = torch.cosine_similarity(means[0], means[1]).numpy()
    return bootstrap_interval(point, draws, len(found[0])) if math.isfinite(point) else exact(math.nan, 0)


def _range(values: Sequence[float]) -> Interval:
    """Mean and 95% range of the draws; ``n`` counts them."""
    return bootstrap_interval(float(np.mean(values)), values, len(values)) if np.isfinite(values).all() else exact(math.nan, 0)
