"""How many directions a field of vectors spans: ranks of its spectrum. Pure mathematics on arrays."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refgeo.errors import EmptyField


class Spectrum(NamedTuple):
    """Every rank of one field."""

    effective_rank: float
    effective_rank_amplitude: float
    participation_ratio: float
    k90: int
    k95: int
    top1_energy: float
    top3_energy: float


def spectrum(field: Float[Tensor, "row d_model"]) -> Spectrum:
    """All ranks of ``field`` from one singular value decomposition. Raises ``EmptyField`` if every row is zero."""
    values = singular_values(field)
    return Spectrum(
        _entropy_rank(values.square()),
        _entropy_rank(values),
        float(values.square().sum().square() / values.pow(4).sum()),
        _directions_for(values, 0.90),
        _directions_for(values, 0.95),
        _top_energy(values, 1),
        _top_energy(values, 3),
    )


def effective_rank(field: Float[Tensor, "row d_model"], weights: Literal["energy", "amplitude"] = "energy") -> float:
    """Exponential of the entropy of the normalized spectrum: how many directions carry the field.

    ``energy`` weights by squared singular values (2604.27019, section 3.3), ``amplitude`` by the values themselves
    (Roy & Vetterli 2007). At least 1; at most min(row, d_model). Raises ``EmptyField`` if every row is zero.
    """
    values = singular_values(field)
    return _entropy_rank(values.square() if weights == "energy" else values)


def participation_ratio(field: Float[Tensor, "row d_model"]) -> float:
    """``(sum s^2)^2 / sum s^4`` of the singular values s. At least 1. Raises ``EmptyField`` if every row is zero."""
    return spectrum(field).participation_ratio


def directions_for(field: Float[Tensor, "row d_model"], share: float) -> int:
    """How many leading directions hold ``share`` of the energy: k90 for 0.9, k95 for 0.95. Raises ``EmptyField`` if every row is zero."""
    return _directions_for(singular_values(field), share)


def top_energy(field: Float[Tensor, "row d_model"], k: int) -> float:
    """Share of the energy in the ``k`` leading directions, in (0, 1]. Raises ``EmptyField`` if every row is zero."""
    return _top_energy(singular_values(field), k)


def normalize_rows(field: Float[Tensor, "row d_model"], zero: float = 0.0) -> Float[Tensor, "kept d_model"]:
    """Rows at unit norm, so that a rank cannot merely measure norms; rows with a norm of at most ``zero`` are left out.

    Raises ``EmptyField`` if none is left.
    """
    norms = field.double().norm(dim=-1)
    kept = norms > zero
    if not bool(kept.any()):
        raise EmptyField(f"All {len(field)} rows of the field are zero")
    rows: Tensor = field.double()[kept] / norms[kept, None]
    return rows


def singular_values(field: Float[Tensor, "row d_model"]) -> Float[Tensor, " rank"]:
    """Singular values in descending order, float64, scaled so that the largest is 1. Raises ``EmptyField`` if every row is zero."""
    values = torch.linalg.svdvals(field.double())
    if not len(values) or float(values[0]) == 0.0:
        raise EmptyField(f"All {len(field)} rows of the field are zero")
    scaled: Tensor = values / values[0]
    return scaled


def _entropy_rank(weights: Tensor) -> float:
    shares = weights / weights.sum()
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def _directions_for(values: Tensor, share: float) -> int:
    energy = values.square().cumsum(dim=0) / values.square().sum()
    # A share that is met exactly must not be missed by a rounding.
    return int((energy < share - 1e-12).sum()) + 1


def _top_energy(values: Tensor, k: int) -> float:
    return float(values[:k].square().sum() / values.square().sum())
