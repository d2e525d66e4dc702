"""Difference-in-means directions at every position and layer, and the bootstrap over the prompts behind them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refgeo.errors import EmptyField
from refgeo.statistics import Interval, exact

ZERO = 1e-5
"""A difference smaller than this share of the activations' own norm is rounding, not a direction."""


class Candidates(NamedTuple):
    """Un-normalized candidate directions in float64, their norms, and which of them are directions at all."""

    vectors: Float[Tensor, "pos layer d_model"]
    norms: Float[Tensor, "pos layer"]
    usable: Bool[Tensor, "pos layer"]

    def unit(self, place: int, layer: int) -> Float[Tensor, " d_model"]:
        """The normalized candidate. Raises ``EmptyField`` for one that is numerically zero: noise is never normalized."""
        if not bool(self.usable[place, layer]):
            raise EmptyField(
                f"The candidate at position index {place}, layer {layer} has norm {float(self.norms[place, layer]):.3g}, which is zero"
            )
        return self.vectors[place, layer] / self.norms[place, layer]


def candidates(harmful: Float[Tensor, "prompt pos layer d_model"], harmless: Float[Tensor, "other pos layer d_model"]) -> Candidates:
    """Mean of ``harmful`` minus mean of ``harmless``, accumulated in float64 (2406.11717, section 2.3).

    Read at a block's input, layer 0 differs by exactly nothing at a template token; such candidates are marked unusable.
    """
    vectors = _mean(harmful) - _mean(harmless)
    norms = vectors.norm(dim=-1)
    scale = torch.maximum(_size(harmful), _size(harmless))
    return Candidates(vectors, norms, torch.isfinite(norms) & (norms > ZERO * scale))


def resampled(
    harmful: Float[Tensor, "prompt pos layer d_model"],
    harmless: Float[Tensor, "other pos layer d_model"],
    count: int,
    seed: int,
) -> Float[Tensor, "draw pos layer d_model"]:
    """Candidates of ``count`` bootstrap resamples of the prompts, each label resampled on its own.

    The same numbers of prompts and the same seed draw the same prompts, so two models can be resampled together.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.stack([torch.randint(len(group), (len(group),), generator=generator).bincount(minlength=len(group)) for _ in range(count)])
        for group in (harmful, harmless)
    )
    return _weighted(harmful, first) - _weighted(harmless, second)


def halves(
    harmful: Float[Tensor, "prompt pos layer d_model"],
    harmless: Float[Tensor, "other pos layer d_model"],
    count: int,
    seed: int,
) -> tuple[Float[Tensor, "draw pos layer d_model"], Float[Tensor, "draw pos layer d_model"]]:
    """Candidates of both halves of ``count`` random splits of the prompts: what two estimates differ by without any cause.

    Raises ``EmptyField`` when a label has fewer than two prompts.
    """
    if min(len(harmful), len(harmless)) < 2:
        raise EmptyField(f"{len(harmful)} harmful and {len(harmless)} harmless prompts cannot be split in halves")
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.stack([(torch.randperm(len(group), generator=generator) % 2).long() for _ in range(count)]) for group in (harmful, harmless)
    )
    return (_weighted(harmful, 1 - first) - _weighted(harmless, 1 - second)), (_weighted(harmful, first) - _weighted(harmless, second))


def centered_interval(value: float, draws: list[float], n: int, low: float = float("-inf"), high: float = float("inf")) -> Interval:
    """Interval of a quantity that resampling itself biases upward (ranks, angles): the spread of the draws around their mean.

    Plain percentiles of such a quantity need not even contain it. Bounds are cut to ``[low, high]``; NaN draws are left out.
    """
    sample = torch.tensor(draws, dtype=torch.float64)
    sample = sample[torch.isfinite(sample)]
    if len(sample) < 2:
        return exact(value, n)
    around = torch.quantile(sample - sample.mean(), torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Interval(value, max(low, value + float(around[0])), min(high, value + float(around[1])), n)


def _mean(activations: Tensor) -> Tensor:
    mean: Tensor = activations.mean(dim=0, dtype=torch.float64)
    return mean


def _size(activations: Tensor) -> Tensor:
    size: Tensor = activations.norm(dim=-1).mean(dim=0, dtype=torch.float64)
    return size


def _weighted(activations: Tensor, counts: Tensor) -> Tensor:
    """Means under each row of prompt counts, in float64; a layer at a time, so that no double-precision copy of everything is made."""
    weights = counts.double() / counts.sum(dim=1, keepdim=True)
    layers = [torch.einsum("rn,npd->rpd", weights, activations[:, :, layer].double()) for layer in range(activations.shape[2])]
    return torch.stack(layers, dim=2)
