"""What a direction must be compared with: random directions and subspaces that disturb the model just as much."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def random_bases(count: int, rank: int, width: int, seed: int) -> Float[Tensor, "draw rank width"]:
    """``count`` uniformly random ``rank``-dimensional subspaces, each as orthonormal rows, in float64."""
    normal = torch.randn(count, width, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    basis, triangle = torch.linalg.qr(normal)
    # The factorization prefers one sign; undone, the directions are uniform, which matters where they are added.
    bases: Tensor = (basis * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]).transpose(1, 2).contiguous()
    return bases


def change_norm(activations: Float[Tensor, "*batch d_model"], basis: Float[Tensor, "rank d_model"]) -> float:
    """Mean length of what removing the span of orthonormal rows ``basis`` takes from ``activations``."""
    return float((activations.double() @ basis.double().T).norm(dim=-1).mean())


def matched_strength(
    target: float, activations: Float[Tensor, "*batch d_model"], basis: Float[Tensor, "rank d_model"], most: float | None = None
) -> float:
    """Strength at which ablating ``basis`` changes ``activations`` by ``target`` on average.

    A random direction meets less of the residual stream than a carrier does, so this is usually above 1: the component is then
    not just removed but pushed beyond zero until the change is as long. ``most`` caps it; a basis that meets nothing keeps 1.
    """
    own = change_norm(activations, basis)
    strength = target / own if own > 0 else 1.0
    return min(strength, most) if most is not None else strength
