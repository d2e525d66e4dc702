"""Random directions that disturb the stream as much as what they are compared with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refgeo.lm.residual import projector
from refgeo.measures.controls import change_norm, matched_strength, random_bases


@given(rank=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_random_bases_are_orthonormal_and_reproducible(rank: int, seed: int) -> None:
    bases = random_bases(3, rank, 9, seed)
    assert torch.allclose(bases @ bases.transpose(1, 2), torch.eye(rank, dtype=torch.float64).expand(3, -1, -1), atol=1e-12)
    assert torch.equal(bases, random_bases(3, rank, 9, seed))
    assert not torch.allclose(bases[0], bases[1])


def test_random_directions_prefer_no_axis() -> None:
    drawn = random_bases(4000, 1, 3, 0)[:, 0]
    assert float(drawn.mean(dim=0).abs().max()) < 0.05
    assert drawn.square().mean(dim=0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


@given(rank=st.integers(1, 3), asked=st.floats(0.1, 2.0), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_matched_control_changes_the_stream_by_exactly_as_much(rank: int, asked: float, seed: int) -> None:
    activations = torch.randn(6, 2, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 3
    carrier, control = random_bases(2, rank, 9, seed)
    target = asked * change_norm(activations, carrier)
    strength = matched_strength(target, activations, control)
    change = activations - projector(control, strength)(activations)
    assert float(change.norm(dim=-1).mean()) == pytest.approx(target)
    assert matched_strength(target, activations, control, most=0.5) == min(strength, 0.5)


def test_a_direction_that_meets_nothing_keeps_its_strength() -> None:
    activations = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert matched_strength(5.0, activations, torch.tensor([[0.0, 1.0]])) == 1.0
