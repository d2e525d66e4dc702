"""Do harm and refusal share a direction: the coupling indices of 2606.16349, their intervals and what chance gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refgeo.errors import EmptyField
from refgeo.measures.angles import cosine, principal_angles, subspace, subspace_overlap, subspaces
from refgeo.measures.directions import Candidates, candidates, centered_interval
from refgeo.measures.table import Row, row
from refgeo.statistics import bootstrap_interval, exact

FEWEST = 5
"""Prompts that a group needs before its mean is compared with another's."""


class Coupling(NamedTuple):
    """Coupling of one harmfulness carrier and one refusal carrier (docs/geometry.md)."""

    c_cos: float
    c_sub: float
    hrci_repr: float
    c_layer: float
    hrci_full: float


def coupling(
    harm: Float[Tensor, " d_model"],
    refusal: Float[Tensor, " d_model"],
    harm_field: Float[Tensor, "row d_model"],
    refusal_field: Float[Tensor, "other d_model"],
    harm_layer: int,
    refusal_layer: int,
    k: int = 3,
) -> Coupling:
    """``C_cos = |h . r|``, ``C_sub`` = mean squared cosine of the ``k`` principal angles of the two fields at the carriers' layers.

    ``HRCI_repr = (C_cos + C_sub) / 2``, ``C_layer = exp(-|L_H - L_R| / 4)``, ``HRCI_full = 0.4 C_cos + 0.4 C_sub + 0.2 C_layer``.
    All in [0, 1]. Raises ``EmptyField`` when a carrier or a field is zero.
    """
    c_cos = abs(cosine(harm, refusal))
    c_sub = float(subspace_overlap(principal_angles(subspace(harm_field, k), subspace(refusal_field, k))))
    return indices(c_cos, c_sub, math.exp(-abs(harm_layer - refusal_layer) / 4))


def indices(c_cos: float, c_sub: float, c_layer: float) -> Coupling:
    """The combined indices from their parts."""
    return Coupling(c_cos, c_sub, (c_cos + c_sub) / 2, c_layer, 0.4 * c_cos + 0.4 * c_sub + 0.2 * c_layer)


def chance(d_model: int, k: int = 3) -> tuple[float, float]:
    """``C_cos`` and ``C_sub`` expected of unrelated directions and ``k``-subspaces, uniform in ``d_model`` dimensions.

    ``E|cos| = Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2))``, close to ``sqrt(2 / (pi d))``; ``E[mean cos^2] = k / d``. Real residual streams
    vary in far fewer directions than they have dimensions, so this is less than what unrelated directions of a model show.
    """
    c_cos = math.exp(math.lgamma(d_model / 2) - math.lgamma((d_model + 1) / 2)) / math.sqrt(math.pi)
    return c_cos, min(k, d_model) / d_model


def residual(direction: Float[Tensor, " d_model"], other: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """What is left of ``direction`` orthogonal to ``other``, re-normalized. Raises ``EmptyField`` if nothing is left."""
    unit = other.double() / other.double().norm()
    rest = direction.double() - (direction.double() @ unit) * unit
    size = float(rest.norm())
    if not size > 1e-9 * float(direction.double().norm()):
        raise EmptyField("The two directions are parallel: nothing of one is orthogonal to the other")
    left: Tensor = rest / size
    return left


def separation(
    positive: Float[Tensor, "prompt pos layer d_model"], negative: Float[Tensor, "other pos layer d_model"]
) -> Float[Tensor, "pos layer"]:
    """How far apart two groups lie along their own difference in means, in pooled standard deviations, cross-fitted.

    The direction comes from one half of the prompts and is measured on the other, both ways, so that a wide residual stream
    cannot separate groups by chance. Needs at least four prompts per group; zero where there is no direction.
    """
    total = torch.zeros(positive.shape[1:3], dtype=torch.float64)
    for side in (0, 1):
        found = candidates(positive[side::2], negative[side::2])
        units = torch.where(found.usable[..., None], found.vectors / found.norms.clamp(min=1e-300)[..., None], 0.0)
        along = [torch.einsum("npld,pld->npl", group[1 - side :: 2].double(), units) for group in (positive, negative)]
        gap = along[0].mean(dim=0) - along[1].mean(dim=0)
        spread = ((along[0].var(dim=0) + along[1].var(dim=0)) / 2).sqrt()
        total += torch.where(spread > 0, gap / spread.clamp(min=1e-300), torch.sign(gap) * math.inf).nan_to_num(
            nan=0.0, posinf=1e9, neginf=-1e9
        )
    return total / 2


def refusal_candidates(
    activations: Float[Tensor, "prompt pos layer d_model"], harmful: Bool[Tensor, " prompt"], refused: Bool[Tensor, " prompt"]
) -> tuple[Candidates, Float[Tensor, "pos layer"]] | None:
    """Refused minus complied means and their separation, each label on its own, so that harm itself cancels.

    A label counts when it has at least ``FEWEST`` refused and as many complied prompts; the labels that count are averaged.
    None when neither does.
    """
    parts = []
    for label in counting(harmful, refused):
        inside = harmful == label
        yes, no = activations[inside & refused], activations[inside & ~refused]
        parts.append((candidates(yes, no), separation(yes, no)))
    if not parts:
        return None
    vectors = torch.stack([part[0].vectors for part in parts]).mean(dim=0)
    usable = torch.stack([part[0].usable for part in parts]).all(dim=0)
    return Candidates(vectors, vectors.norm(dim=-1), usable), torch.stack([part[1] for part in parts]).mean(dim=0)


def counting(harmful: Bool[Tensor, " prompt"], refused: Bool[Tensor, " prompt"]) -> list[bool]:
    """The labels with enough refused and enough complied prompts for a difference between them."""
    labels = (True, False)
    return [one for one in labels if min(int((refused & (harmful == one)).sum()), int((~refused & (harmful == one)).sum())) >= FEWEST]


def strongest(found: Candidates, separated: Float[Tensor, "pos layer"]) -> tuple[int, int]:
    """Position index and layer of the carrier: the usable candidate that separates best. Raises ``EmptyField`` if none is usable."""
    if not bool(found.usable.any()):
        raise EmptyField("No candidate has a norm above zero")
    flat = int(torch.where(found.usable, separated, -math.inf).argmax())
    return flat // separated.shape[1], flat % separated.shape[1]


class Coupled(NamedTuple):
    """Table rows of set ``coupling`` and, when both carriers exist, their unit directions and what each has beside the other."""

    rows: list[Row]
    directions: dict[str, Tensor]


def couple(
    harmful: Float[Tensor, "prompt pos layer d_model"],
    harmless: Float[Tensor, "other pos layer d_model"],
    refused: Bool[Tensor, " all"],
    positions: Sequence[int],
    k: int = 3,
    draws: int = 50,
    seed: int = 0,
) -> Coupled:
    """Harmfulness carrier (harmful minus benign) against refusal carrier (refused minus complied) of one checkpoint.

    ``refused`` says of the harmful prompts and then of the harmless ones whether the model refuses them. Each carrier sits where its
    groups separate best. Without enough refused and complied prompts under one label the rows carry a note and no value.

    Intervals from ``draws`` resamples of the prompts, with the carriers' places as found. ``<metric>_floor`` (mean and 95% range): the
    same index between two directions made of sampling noise alone, at the same places, so of this model's own shape; where it is
    above ``<metric>_chance``, the closed form of ``chance``, the model varies in few directions. A coupling within the floor's range is
    none. ``hrci_full`` keeps its layer term in both.
    """
    if min(len(harmful), len(harmless)) < 4:
        return _absent(f"{len(harmful)} harmful and {len(harmless)} harmless prompts are too few to place a carrier", len(refused))
    labels = torch.arange(len(refused)) < len(harmful)
    refusal = refusal_candidates(torch.cat([harmful, harmless]), labels, refused)
    if refusal is None:
        counts = f"{int(refused[labels].sum())} of {len(harmful)} harmful and {int(refused[~labels].sum())} of {len(harmless)} harmless"
        return _absent(f"{counts} prompts are refused; {FEWEST} refused and {FEWEST} complied ones of one label are needed", len(refused))
    harm = candidates(harmful, harmless)
    try:
        (harm_place, harm_layer), (place, layer) = strongest(harm, separation(harmful, harmless)), strongest(*refusal)
        found = coupling(
            harm.vectors[harm_place, harm_layer],
            refusal[0].vectors[place, layer],
            harm.vectors[:, harm_layer],
            refusal[0].vectors[:, layer],
            harm_layer,
            layer,
            k,
        )
    except EmptyField as reason:
        return _absent(str(reason), len(refused))
    first, second = harm.unit(harm_place, harm_layer).float(), refusal[0].unit(place, layer).float()
    directions = {"harm_carrier": first, "refusal_carrier": second}
    if 1 - found.c_cos > 1e-6:
        directions |= {"harm_beside_refusal": residual(first, second).float(), "refusal_beside_harm": residual(second, first).float()}
    pooled = torch.cat([harmful[:, :, [harm_layer, layer]], harmless[:, :, [harm_layer, layer]]])
    weights = _weights(labels, refused, draws, seed)
    usable = harm.usable[:, harm_layer], refusal[0].usable[:, layer]
    again, noise = (_redrawn(pooled, some, (harm_place, place), usable, found.c_layer, k) for some in weights)
    rows = _index_rows(found, again, noise, indices(*chance(harmful.shape[-1], k), found.c_layer), len(refused))
    places = {"harm_layer": harm_layer, "harm_position": positions[harm_place]}
    places |= {"refusal_layer": layer, "refusal_position": positions[place]}
    return Coupled(rows + [row("coupling", metric, exact(float(value), len(refused))) for metric, value in places.items()], directions)


Weights = tuple[Float[Tensor, "draw prompt"], Float[Tensor, "draw prompt"]]
"""Weights of the prompts in the harm field and in the refusal field: both are weighted sums of the same activations."""


def _weights(harmful: Tensor, refused: Tensor, draws: int, seed: int) -> tuple[Weights, Weights]:
    """Weights of resampled prompts, and weights of noise alone: of random signs, other ones for each field.

    Resampling keeps the number of refused prompts under each label, without which a draw could lose a side. Signs are drawn half and
    half in each of these groups, so that the groups' means cancel and the sampling error of the full fields is left.
    """
    generator = torch.Generator().manual_seed(seed)
    counted = counting(harmful, refused)
    harm = torch.where(harmful, 1.0 / harmful.sum(), -1.0 / (~harmful).sum()).double()
    refusal = torch.zeros_like(harm)
    groups = [torch.nonzero((harmful == one) & (refused == two))[:, 0] for one in (True, False) for two in (True, False)]
    for group in groups:
        if len(group) and bool(harmful[group[0]]) in counted:
            refusal[group] = (1.0 if bool(refused[group[0]]) else -1.0) / len(group) / len(counted)
    counts = torch.zeros(draws, len(harm), dtype=torch.float64)
    signs = torch.zeros(2, draws, len(harm), dtype=torch.float64)
    for group in filter(len, groups):
        for draw in range(draws):
            counts[draw, group] = torch.randint(len(group), (len(group),), generator=generator).bincount(minlength=len(group)).double()
            for field in (0, 1):
                half = (torch.randperm(len(group), generator=generator) % 2).double() * 2 - 1
                # An odd group has one sign left over, whose share of the mean must go too.
                signs[field, draw, group] = half - half.mean()
    return (counts * harm, counts * refusal), (signs[0] * harm, signs[1] * refusal)


def _redrawn(
    pooled: Tensor, weights: Weights, places: tuple[int, int], usable: tuple[Tensor, Tensor], c_layer: float, k: int
) -> list[Coupling]:
    """The indices under each draw of weights; draws without a direction are left out."""
    fields = [torch.einsum("rn,npd->rpd", some, pooled[:, :, side].double()) for side, some in enumerate(weights)]
    harm, refusal = (field[:, place] for field, place in zip(fields, places, strict=True))
    cosines = ((harm * refusal).sum(dim=1) / (harm.norm(dim=1) * refusal.norm(dim=1))).abs().clamp(max=1.0)
    bases = [subspaces(field[:, mask], k) for field, mask in zip(fields, usable, strict=True)]
    overlaps = subspace_overlap(principal_angles(bases[0][0], bases[1][0]))
    kept = bases[0][1] & bases[1][1] & torch.isfinite(cosines)
    return [indices(c_cos, c_sub, c_layer) for c_cos, c_sub in zip(cosines[kept].tolist(), overlaps[kept].tolist(), strict=True)]


def _index_rows(found: Coupling, again: list[Coupling], noise: list[Coupling], unrelated: Coupling, prompts: int) -> list[Row]:
    rows = []
    for metric, value in found._asdict().items():
        if metric == "c_layer":
            rows.append(row("coupling", metric, exact(value, prompts)))
            continue
        drawn, level = ([getattr(one, metric) for one in some] for some in (again, noise))
        rows.append(row("coupling", metric, centered_interval(value, drawn, prompts, 0.0, 1.0)))
        if level:
            rows.append(row("coupling", metric + "_floor", bootstrap_interval(sum(level) / len(level), level, prompts)))
        rows.append(row("coupling", metric + "_chance", exact(getattr(unrelated, metric), prompts)))
    return rows


def _absent(reason: str, prompts: int) -> Coupled:
    return Coupled([row("coupling", metric, exact(math.nan, prompts), note=reason) for metric in ("hrci_repr", "hrci_full")], {})
