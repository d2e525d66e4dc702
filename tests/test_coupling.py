"""Coupling of harm and refusal on planted groups."""

from __future__ import annotations

import math

import pytest
import torch

from refgeo.errors import EmptyField
from refgeo.measures.coupling import couple, coupling, refusal_candidates, residual, separation, strongest
from refgeo.measures.directions import candidates

WIDTH, LAYERS, POSITIONS = 24, 4, 3
AXES = torch.eye(WIDTH)


def planted(
    harm_axis: int, refusal_axis: int, harm_layer: int, refusal_layer: int, per_group: int = 12
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Harmful and harmless activations; within each label half of the prompts is refused. Harm and refusal each shift one axis."""
    generator = torch.Generator().manual_seed(0)
    groups, refused = [], []
    for harmful in (1, 0):
        base = 0.1 * torch.randn(2 * per_group, POSITIONS, LAYERS, WIDTH, generator=generator)
        base[:, :, harm_layer] += 3 * harmful * AXES[harm_axis]
        no = torch.arange(2 * per_group) % 2 == 0
        base[no, :, refusal_layer] += 2 * AXES[refusal_axis]
        groups.append(base)
        refused.append(no)
    return groups[0], groups[1], torch.cat(refused)


def values(harmful: torch.Tensor, harmless: torch.Tensor, refused: torch.Tensor) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in couple(harmful, harmless, refused, (-3, -2, -1)).rows}


def test_orthogonal_carriers_are_hardly_coupled() -> None:
    found = values(*planted(harm_axis=0, refusal_axis=1, harm_layer=1, refusal_layer=3))
    assert found["c_cos"] < 0.1
    assert (found["harm_layer"], found["refusal_layer"]) == (1, 3)
    assert found["c_layer"] == pytest.approx(math.exp(-0.5))
    assert found["hrci_repr"] == pytest.approx((found["c_cos"] + found["c_sub"]) / 2)
    assert found["hrci_full"] == pytest.approx(0.4 * found["c_cos"] + 0.4 * found["c_sub"] + 0.2 * found["c_layer"])


def test_one_shared_direction_is_fully_coupled() -> None:
    found = values(*planted(harm_axis=0, refusal_axis=0, harm_layer=2, refusal_layer=2))
    assert found["c_cos"] > 0.99
    assert found["c_layer"] == 1.0
    assert found["hrci_repr"] > 0.5


def test_identical_fields_have_an_index_of_one() -> None:
    field = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    found = coupling(field[0], -field[0], field, field, 7, 3)
    assert found == pytest.approx((1, 1, 1, math.exp(-1), 0.8 + 0.2 * math.exp(-1)))


def test_refusal_is_compared_within_a_label_so_that_harm_cancels() -> None:
    """Every harmful prompt is refused and no harmless one: there is nothing that is refusal and not harm."""
    harmful, harmless, _ = planted(0, 1, 1, 3)
    refused = torch.arange(48) < 24
    assert refusal_candidates(torch.cat([harmful, harmless]), refused, refused) is None
    rows = couple(harmful, harmless, refused, (-3, -2, -1)).rows
    assert all(math.isnan(row["value"]) for row in rows)
    assert all("24 of 24 harmful and 0 of 24 harmless prompts are refused" in row["note"] for row in rows)


def test_what_one_carrier_has_beside_the_other_is_orthogonal_and_unit() -> None:
    found = couple(*planted(0, 1, 1, 1), (-3, -2, -1)).directions
    for left, other in (("harm_beside_refusal", "refusal_carrier"), ("refusal_beside_harm", "harm_carrier")):
        assert float(found[left].norm()) == pytest.approx(1)
        assert abs(float(found[left] @ found[other])) < 1e-6
    with pytest.raises(EmptyField, match="parallel"):
        residual(AXES[0], -2 * AXES[0])


def test_separation_is_cross_fitted_so_that_width_alone_separates_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.randn(10, 1, 1, 2000, generator=generator) for _ in range(2))
    assert abs(float(separation(first, second))) < 1.5
    second[:, :, :, 0] += 60
    assert float(separation(second, first)) > 10
    assert strongest(candidates(second, first), separation(second, first)) == (0, 0)
    with pytest.raises(EmptyField):
        strongest(candidates(first, first), separation(first, first))
