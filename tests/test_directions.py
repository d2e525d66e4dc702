"""Difference-in-means candidates and the resampling behind every interval of the geometry."""

from __future__ import annotations

import math

import pytest
import torch

from refgeo.errors import EmptyField
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import read
from refgeo.measures.directions import candidates, centered_interval, halves, resampled


def noise(prompts: int, seed: int, pos: int = 2, layers: int = 3, width: int = 16) -> torch.Tensor:
    return torch.randn(prompts, pos, layers, width, generator=torch.Generator().manual_seed(seed))


def test_the_planted_direction_is_found_at_its_place() -> None:
    shift = torch.zeros(2, 3, 16)
    shift[1, 2, 5] = 4.0
    base = noise(40, 0)
    found = candidates(base + shift, base)
    assert found.vectors.dtype == torch.float64
    assert torch.allclose(found.vectors, shift.double(), atol=1e-6)
    assert found.usable.tolist() == [[False] * 3, [False, False, True]]
    assert torch.allclose(found.unit(1, 2), torch.nn.functional.one_hot(torch.tensor(5), 16).double(), atol=1e-7)


def test_noise_is_never_normalized() -> None:
    """The same states up to float32 rounding: a difference, but no direction."""
    base = 1000 * noise(40, 0)
    rounding = base * (1 + 1e-7 * torch.randn(base.shape, generator=torch.Generator().manual_seed(1)))
    found = candidates(rounding, base)
    assert bool((found.norms > 0).all())
    assert not bool(found.usable.any())
    with pytest.raises(EmptyField, match="position index 0, layer 1"):
        found.unit(0, 1)


def test_at_block_input_layer_0_differs_by_nothing_at_a_template_token(tiny_lm: LanguageModel) -> None:
    groups = [
        [tiny_lm.chat.prompt(text).ids for text in texts] for texts in (("cook a fox", "cut the owl"), ("boil root", "stir the soup"))
    ]
    found = candidates(*(read(tiny_lm, group, (-2, -1), "block_input") for group in groups))
    assert found.usable[:, 0].tolist() == [False, False]
    assert bool(found.usable[:, 1:].all())


def test_means_are_accumulated_in_double_precision() -> None:
    big = torch.full((1000, 1, 1, 1), 1e7)
    big[::2] += 1.0
    assert float(candidates(big, torch.full((3, 1, 1, 1), 1e7)).vectors) == pytest.approx(0.5, abs=1e-6)


def test_resampling_is_the_mean_over_drawn_prompts_and_pairs_models() -> None:
    harmful, harmless = noise(7, 0), noise(5, 1)
    draws = resampled(harmful, harmless, 4, seed=3)
    assert torch.equal(draws, resampled(harmful, harmless, 4, seed=3))
    assert not torch.equal(draws, resampled(harmful, harmless, 4, seed=4))
    generator = torch.Generator().manual_seed(3)
    first = [torch.randint(7, (7,), generator=generator) for _ in range(4)]
    second = [torch.randint(5, (5,), generator=generator) for _ in range(4)]
    for draw, left, right in zip(draws, first, second, strict=True):
        assert torch.allclose(draw, harmful[left].double().mean(dim=0) - harmless[right].double().mean(dim=0))
    assert torch.allclose(resampled(2 * harmful, 2 * harmless, 4, seed=3), 2 * draws), "another model, the same prompts"


def test_halves_use_every_prompt_once() -> None:
    harmful, harmless = noise(6, 0), noise(4, 1)
    one, two = halves(harmful, harmless, 5, seed=0)
    whole = candidates(harmful, harmless).vectors
    assert torch.allclose((one + two) / 2, whole.expand(5, -1, -1, -1), atol=1e-6)
    assert not torch.allclose(one, two)
    with pytest.raises(EmptyField, match="cannot be split"):
        halves(harmful[:1], harmless, 5, seed=0)


def test_a_centered_interval_contains_its_value_though_resampling_is_biased() -> None:
    draws = [12.0 + 0.1 * step for step in range(-10, 11)]
    found = centered_interval(10.0, draws, n=21)
    assert found.low < 10.0 < found.high
    assert found.high - found.low == pytest.approx(2 * 0.95, abs=0.01)
    assert centered_interval(10.0, draws, 21, low=9.8).low == 9.8
    assert math.isnan(centered_interval(1.0, [math.nan, 2.0], 3).low)
