"""Do harm and refusal share a direction: the coupling indices of 2606.16349. Pure mathematics on arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refgeo.errors import EmptyField
from refgeo.measures.angles import cosine, principal_angles, subspace
from refgeo.measures.directions import Candidates, candidates
from refgeo.measures.table import Row, row
from refgeo.statistics import exact

FEWEST = 5
"""Prompts that a group needs before its mean is compared with another's."""


class Coupling(NamedTuple):
    """Coupling of one harmfulness carrier and one refusal carrier (PROTOCOL section 4)."""

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
    c_sub = float(principal_angles(subspace(harm_field, k), subspace(refusal_field, k)).cos().square().mean())
    c_layer = math.exp(-abs(harm_layer - refusal_layer) / 4)
    return Coupling(c_cos, c_sub, (c_cos + c_sub) / 2, c_layer, 0.4 * c_cos + 0.4 * c_sub + 0.2 * c_layer)


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
    for label in (True, False):
        inside = harmful == label
        yes, no = activations[inside & refused], activations[inside & ~refused]
        if min(len(yes), len(no)) >= FEWEST:
            parts.append((candidates(yes, no), separation(yes, no)))
    if not parts:
        return None
    vectors = torch.stack([part[0].vectors for part in parts]).mean(dim=0)
    usable = torch.stack([part[0].usable for part in parts]).all(dim=0)
    return Candidates(vectors, vectors.norm(dim=-1), usable), torch.stack([part[1] for part in parts]).mean(dim=0)


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
) -> Coupled:
    """Harmfulness carrier (harmful minus benign) against refusal carrier (refused minus complied) of one checkpoint.

    ``refused`` says of the harmful prompts and then of the harmless ones whether the model refuses them. Each carrier sits where its
    groups separate best. Without enough refused and complied prompts under one label the rows carry a note and no value.
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
    values = {**found._asdict(), "harm_layer": harm_layer, "harm_position": positions[harm_place]}
    values |= {"refusal_layer": layer, "refusal_position": positions[place]}
    return Coupled([row("coupling", metric, exact(float(value), len(refused))) for metric, value in values.items()], directions)


def _absent(reason: str, prompts: int) -> Coupled:
    return Coupled([row("coupling", metric, exact(math.nan, prompts), note=reason) for metric in ("hrci_repr", "hrci_full")], {})
