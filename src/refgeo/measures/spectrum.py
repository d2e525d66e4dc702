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
    stable_rank: float
    k90: int
    k95: int
    top1_energy: float
    top3_energy: float


def spectrum(field: Float[Tensor, "row d_model"]) -> Spectrum:
    """All ranks of ``field`` from one singular value decomposition. Raises ``EmptyField`` if every row is zero."""
    found = _ranks(singular_values(field).square()[None])[0].tolist()
    energy, amplitude, participation, stable, k90, k95, top1, top3 = found
    return Spectrum(energy, amplitude, participation, stable, int(k90), int(k95), top1, top3)


def gram_spectra(grams: Float[Tensor, "draw row row"]) -> Float[Tensor, "draw metric"]:
    """The ranks of many fields, in the order of ``Spectrum``, from the products of their rows: no singular vectors are needed.

    Float64. Squaring costs half of the digits of the weakest directions, so this is for resamples, whose spread is larger by far.
    A field of zeros gives NaN.
    """
    return _ranks(torch.linalg.eigvalsh(grams.double()).flip(-1).clamp(min=0.0))


def normalized_grams(grams: Float[Tensor, "draw row row"]) -> Float[Tensor, "draw row row"]:
    """The products of the same rows at unit norm; a zero row stays zero and adds no direction."""
    norms = grams.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    return grams * inverse[..., :, None] * inverse[..., None, :]


def effective_rank(field: Float[Tensor, "row d_model"], weights: Literal["energy", "amplitude"] = "energy") -> float:
    """Exponential of the entropy of the normalized spectrum: how many directions carry the field.

    ``energy`` weights by squared singular values (2604.27019, section 3.3), ``amplitude`` by the values themselves
    (Roy & Vetterli 2007). At least 1; at most min(row, d_model). Raises ``EmptyField`` if every row is zero.
    """
    found = spectrum(field)
    return found.effective_rank if weights == "energy" else found.effective_rank_amplitude


def participation_ratio(field: Float[Tensor, "row d_model"]) -> float:
    """``(sum s^2)^2 / sum s^4`` of the singular values s. At least 1. Raises ``EmptyField`` if every row is zero."""
    return spectrum(field).participation_ratio


def stable_rank(field: Float[Tensor, "row d_model"]) -> float:
    """``||A||_F^2 / ||A||_2^2``: the whole energy in units of the strongest direction's (Rudelson & Vershynin 2007).

    The reciprocal of ``top_energy(field, 1)``; at least 1 and at most the rank. Raises ``EmptyField`` if every row is zero.
    """
    return spectrum(field).stable_rank


def directions_for(field: Float[Tensor, "row d_model"], share: float) -> int:
    """How many leading directions hold ``share`` of the energy: k90 for 0.9, k95 for 0.95. Raises ``EmptyField`` if every row is zero."""
    return int(_directions_for(singular_values(field).square()[None], share))


def top_energy(field: Float[Tensor, "row d_model"], k: int) -> float:
    """Share of the energy in the ``k`` leading directions, in (0, 1]. Raises ``EmptyField`` if every row is zero."""
    return float(_top_energy(singular_values(field).square()[None], k))


def normalize_rows(field: Float[Tensor, "row d_model"]) -> Float[Tensor, "kept d_model"]:
    """Rows at unit norm, so that a rank cannot merely measure norms; zero rows are left out.

    Raises ``EmptyField`` if none is left.
    """
    norms = field.double().norm(dim=-1)
    kept = norms > 0
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


def _ranks(energy: Tensor) -> Tensor:
    """Every rank from squared singular values in descending order, one field per row."""
    amplitude = energy.sqrt()
    total = energy.sum(dim=-1)
    columns = (
        _entropy_rank(energy),
        _entropy_rank(amplitude),
        total.square() / energy.square().sum(dim=-1),
        total / energy[..., 0],
        _directions_for(energy, 0.90),
        _directions_for(energy, 0.95),
        _top_energy(energy, 1),
        _top_energy(energy, 3),
    )
    table = torch.stack([column.double() for column in columns], dim=-1)
    return torch.where(total[..., None] > 0, table, torch.nan)


def _entropy_rank(weights: Tensor) -> Tensor:
    shares = weights / weights.sum(dim=-1, keepdim=True)
    rank: Tensor = torch.exp(-torch.special.xlogy(shares, shares).sum(dim=-1))
    return rank


def _directions_for(energy: Tensor, share: float) -> Tensor:
    shares = energy.cumsum(dim=-1) / energy.sum(dim=-1, keepdim=True)
    # A share that is met exactly must not be missed by a rounding.
    return (shares < share - 1e-12).sum(dim=-1) + 1


def _top_energy(energy: Tensor, k: int) -> Tensor:
    return energy[..., :k].sum(dim=-1) / energy.sum(dim=-1)
