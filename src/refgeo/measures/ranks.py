"""Ranks of the carrier field as table rows: the whole field, each layer over positions, each position over layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from refgeo.errors import EmptyField
from refgeo.measures.directions import Candidates, centered_interval
from refgeo.measures.spectrum import Spectrum, normalize_rows, spectrum
from refgeo.measures.table import Row, row
from refgeo.statistics import exact

MATRICES = ("raw", "normalized")


def rank_rows(found: Candidates, draws: Float[Tensor, "draw pos layer d_model"], positions: Sequence[int], prompts: int) -> list[Row]:
    """Every rank of ``spectrum`` in sets ``field``, ``layer`` and ``position``, for the raw and the row-normalized matrix.

    Intervals from ``draws``, the candidates of resampled prompts. Candidates that are no directions are left out; where none is
    left, one row without a value says so.
    """
    everything = torch.ones_like(found.usable)
    scopes: list[tuple[str, dict[str, Any], Tensor]] = [("field", {}, everything)]
    for layer in range(found.usable.shape[1]):
        inside = torch.zeros_like(everything)
        inside[:, layer] = True
        scopes.append(("layer", {"layer": layer}, inside))
    for place, position in enumerate(positions):
        inside = torch.zeros_like(everything)
        inside[place] = True
        scopes.append(("position", {"position": position}, inside))
    rows: list[Row] = []
    for name, identity, inside in scopes:
        chosen = inside & found.usable
        for matrix in MATRICES:
            rows += _rows(name, matrix, found.vectors[chosen], draws[:, chosen], prompts, identity)
    return rows


def _rows(name: str, matrix: str, field: Tensor, draws: Tensor, prompts: int, identity: dict[str, Any]) -> list[Row]:
    identity = {"matrix": matrix, **identity}
    try:
        point = _spectrum(field, matrix)
    except EmptyField as reason:
        return [row(name, "effective_rank", exact(float("nan"), prompts), **identity, note=str(reason))]
    resampled = [_spectrum(draw, matrix) for draw in draws]
    most = float(min(field.shape))
    bounds = {"top1_energy": (0.0, 1.0), "top3_energy": (0.0, 1.0)}
    return [
        row(
            name,
            metric,
            centered_interval(
                float(value), [float(getattr(draw, metric)) for draw in resampled], prompts, *bounds.get(metric, (1.0, most))
            ),
            **identity,
        )
        for metric, value in point._asdict().items()
    ]


def _spectrum(field: Tensor, matrix: str) -> Spectrum:
    if not len(field):
        raise EmptyField("No candidate here has a norm above zero")
    return spectrum(field if matrix == "raw" else normalize_rows(field))
