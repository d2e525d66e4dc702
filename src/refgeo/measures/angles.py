"""Angles between directions and between subspaces. Pure mathematics on arrays."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from refgeo.errors import EmptyField


def subspace(field: Float[Tensor, "row d_model"], k: int) -> Float[Tensor, "rank d_model"]:
    """Orthonormal rows that span the ``k`` leading right singular directions of ``field``, in float64.

    Fewer than ``k`` when the field has fewer directions. Raises ``EmptyField`` if every row is zero.
    """
    values, rows = torch.linalg.svd(field.double(), full_matrices=False)[1:]
    if not len(values) or float(values[0]) == 0.0:
        raise EmptyField(f"All {len(field)} rows of the field are zero")
    rank = int((values > values[0] * max(field.shape) * torch.finfo(torch.float64).eps).sum())
    basis: Tensor = rows[: min(k, rank)]
    return basis


def principal_angles(first: Float[Tensor, "rank d_model"], second: Float[Tensor, "other d_model"]) -> Float[Tensor, " angle"]:
    """Principal angles between the spans of two sets of orthonormal rows, ascending, in radians, each in [0, pi/2].

    There are as many as the smaller span has dimensions. Angles below 45 degrees come from sines, the others from cosines
    (Bjorck & Golub 1973), so that small ones keep their digits: an arccosine alone cannot tell 1e-9 from zero.
    """
    small, large = sorted((first.double(), second.double()), key=len)
    overlap = small @ large.T
    cosines = torch.linalg.svdvals(overlap).clamp(0.0, 1.0)
    sines = torch.linalg.svdvals(small - overlap @ large).clamp(0.0, 1.0).flip(0)
    angles: Tensor = torch.where(cosines.square() >= 0.5, torch.asin(sines[: len(cosines)]), torch.acos(cosines))
    return angles


def cosine(first: Float[Tensor, " d_model"], second: Float[Tensor, " d_model"]) -> float:
    """Cosine of the angle between two vectors, in [-1, 1]. Raises ``EmptyField`` if one of them is zero."""
    left, right = first.double(), second.double()
    size = float(left.norm() * right.norm())
    if size == 0.0:
        raise EmptyField("The cosine with a zero vector does not exist")
    return max(-1.0, min(1.0, float(left @ right) / size))
