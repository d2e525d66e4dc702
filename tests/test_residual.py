"""The residual stream: what is read is what the model computes, what is removed is gone, and no hook outlives its context."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from refgeo.errors import ModelError
from refgeo.lm.changes import Change, changing
from refgeo.lm.hook_check import self_check
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site, ablate, add, last_logits, projector, read, writers
from refgeo.lm.resume import resuming, trace

REQUESTS = ("how do i cook a fox", "cut", "what is water and fire to the blue crow")


def ids(lm: LanguageModel) -> list[tuple[int, ...]]:
    return [lm.chat.prompt(request).ids for request in REQUESTS]


def orthonormal(rank: int, width: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(width, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis: torch.Tensor = torch.linalg.qr(drawn).Q.T
    return basis


def hooks(lm: LanguageModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.net.modules())


@given(rank=st.integers(1, 8), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_projection_is_idempotent_and_leaves_nothing_of_its_span(rank: int, seed: int) -> None:
    basis = orthonormal(rank, 8, seed)
    hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    once = projector(basis)(hidden)
    assert torch.allclose(projector(basis)(once), once, atol=1e-12)
    assert float((once @ basis.T).abs().max()) < 1e-12
    assert torch.allclose(projector(basis, 0.25)(hidden), 0.75 * hidden + 0.25 * once, atol=1e-12)
    assert torch.equal(projector(torch.zeros_like(basis))(hidden), hidden)


@pytest.mark.parametrize("batch", [1, 2, 128])
def test_reading_gives_the_states_of_an_unpadded_forward_pass(tiny_lm: LanguageModel, batch: int) -> None:
    """The plain twin: one prompt at a time, hidden states as transformers returns them (all but the last, which is normalized)."""
    found = {site: read(tiny_lm, ids(tiny_lm), (-3, -1), site, batch) for site in ("block_output", "block_input")}
    for row, prompt in enumerate(ids(tiny_lm)):
        hidden = tiny_lm.core(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
        for layer in range(tiny_lm.depth):
            assert torch.allclose(found["block_input"][row, :, layer], hidden[layer][0, [-3, -1]], atol=1e-5)
            if layer + 1 < tiny_lm.depth:
                assert torch.allclose(found["block_output"][row, :, layer], hidden[layer + 1][0, [-3, -1]], atol=1e-5)
    last = tiny_lm.core.model.norm(found["block_output"][:, 1, -1])
    assert torch.allclose(tiny_lm.core.lm_head(last), last_logits(tiny_lm, ids(tiny_lm)), atol=1e-4)


@pytest.mark.parametrize("positions", [(-40,), (0,), (-1, 2)])
def test_a_position_that_does_not_exist_is_refused(tiny_lm: LanguageModel, positions: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="do not exist"):
        read(tiny_lm, ids(tiny_lm), positions)


@pytest.mark.parametrize("site", ["block_output", "block_input"])
def test_ablation_at_a_layer_changes_that_place_and_what_follows(tiny_lm: LanguageModel, site: Site) -> None:
    basis = orthonormal(2, tiny_lm.width).float()
    plain = read(tiny_lm, ids(tiny_lm), (-2, -1), site)
    with ablate(tiny_lm, basis, 1, site=site):
        changed = read(tiny_lm, ids(tiny_lm), (-2, -1), site)
    assert torch.equal(changed[:, :, 0], plain[:, :, 0])
    assert torch.allclose(changed[:, :, 1], projector(basis)(plain[:, :, 1]), atol=1e-5)
    assert not torch.allclose(changed[:, :, 2], plain[:, :, 2], atol=1e-3)


def test_ablation_everywhere_leaves_nothing_at_any_layer(tiny_lm: LanguageModel) -> None:
    basis = orthonormal(2, tiny_lm.width).float()
    for site in ("block_output", "block_input"):
        assert float((read(tiny_lm, ids(tiny_lm), (-1,), site) @ basis.T).abs().min()) > 0
        with ablate(tiny_lm, basis, None):
            left = read(tiny_lm, ids(tiny_lm), (-2, -1), site)
        # At a block's input the reading hook comes after the removing one; at its output nothing of the span was ever written.
        assert float((left @ basis.T).abs().max()) < 1e-4


def test_addition_moves_every_position_by_the_vector(tiny_lm: LanguageModel) -> None:
    vector = torch.randn(tiny_lm.width, generator=torch.Generator().manual_seed(3))
    plain = read(tiny_lm, ids(tiny_lm), (-3, -1))
    with add(tiny_lm, vector, 0):
        moved = read(tiny_lm, ids(tiny_lm), (-3, -1))
    assert torch.allclose(moved[:, :, 0], plain[:, :, 0] + vector, atol=1e-5)
    with add(tiny_lm, vector, 0), add(tiny_lm, -vector, 0):
        assert torch.allclose(read(tiny_lm, ids(tiny_lm), (-3, -1)), plain, atol=1e-4)


CONTEXTS: list[Callable[[LanguageModel], AbstractContextManager[None]]] = [
    lambda lm: ablate(lm, orthonormal(1, lm.width), 1),
    lambda lm: ablate(lm, orthonormal(1, lm.width), None),
    lambda lm: add(lm, orthonormal(1, lm.width)[0], 2),
    lambda lm: changing(lm, [Change(0, orthonormal(1, lm.width)), Change(None, orthonormal(1, lm.width))]),
    lambda lm: resuming(lm, trace(lm, ids(lm)), 2),
]


@pytest.mark.parametrize("context", CONTEXTS, ids=["layer", "everywhere", "add", "rows", "resume"])
def test_nothing_is_left_behind_after_an_exception(
    tiny_lm: LanguageModel, context: Callable[[LanguageModel], AbstractContextManager[None]]
) -> None:
    plain, before = last_logits(tiny_lm, ids(tiny_lm)), hooks(tiny_lm)
    weights = {name: weight.clone() for name, weight in tiny_lm.net.named_parameters()}
    entered = context(tiny_lm)
    with pytest.raises(KeyError, match="inside"), entered:
        raise KeyError("inside")
    assert hooks(tiny_lm) == before
    assert not any("forward" in block.__dict__ for block in tiny_lm.blocks)
    assert torch.equal(last_logits(tiny_lm, ids(tiny_lm)), plain)
    assert all(torch.equal(weight, weights[name]) for name, weight in tiny_lm.net.named_parameters())


def test_a_hook_that_cannot_be_placed_leaves_none(tiny_lm: LanguageModel) -> None:
    before = hooks(tiny_lm)
    with pytest.raises(ModelError, match="Layer 7 does not exist"), ablate(tiny_lm, orthonormal(1, tiny_lm.width), 7):
        pass
    del tiny_lm.blocks[2].mlp
    with pytest.raises(ModelError, match="attention and feed-forward"), ablate(tiny_lm, orthonormal(1, tiny_lm.width), None):
        pass
    assert hooks(tiny_lm) == before


def test_writers_are_the_parts_with_weights_and_not_the_norms(tiny_lm: LanguageModel) -> None:
    block = tiny_lm.blocks[0]
    assert writers(block) == [block.self_attn, block.mlp]


def test_a_healthy_model_passes_the_self_check(tiny_lm: LanguageModel) -> None:
    self_check(tiny_lm)
    assert hooks(tiny_lm) == 0


class Detour(nn.Module):
    """Calls its block's forward directly, so that hooks on the block never fire."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden, **kwargs):
        return self.block.forward(hidden, **kwargs)


class Scaled(Detour):
    """Does something to the stream between two blocks."""

    def forward(self, hidden, **kwargs):
        return self.block(2 * hidden, **kwargs)


class Noisy(Detour):
    """Gives another answer every time, as a model that was left in training mode does."""

    def forward(self, hidden, **kwargs):
        return self.block(hidden + 1e-3 * torch.randn_like(hidden), **kwargs)


@pytest.mark.parametrize(
    ("wrapper", "complaint"),
    [(Detour, "never ran"), (Scaled, "not what enters"), (Noisy, "bit-equal|not what enters")],
)
def test_the_self_check_catches_a_broken_model(tiny_lm: LanguageModel, wrapper: type[Detour], complaint: str) -> None:
    layers = tiny_lm.blocks  # found before the model is broken, as a wrong guess would find them
    tiny_lm.core.model.layers = nn.ModuleList([layers[0], wrapper(layers[1]), layers[2]])
    with pytest.raises(ModelError, match=complaint):
        self_check(tiny_lm)
    assert hooks(tiny_lm) == 0


def test_the_self_check_catches_a_part_that_ablation_everywhere_misses(tiny_lm: LanguageModel) -> None:
    inner = tiny_lm.blocks[1].forward
    tiny_lm.blocks[1].__dict__["forward"] = lambda *args, **kwargs: inner(*args, **kwargs) + 1.0
    with pytest.raises(ModelError, match=r"everywhere .* leaves some of it in block 1"):
        self_check(tiny_lm)


def test_the_self_check_catches_a_block_that_ignores_what_enters_it(tiny_lm: LanguageModel) -> None:
    inner, remembered = tiny_lm.blocks[2].forward, []

    def stubborn(*args, **kwargs):
        remembered.append(inner(*args, **kwargs))
        return remembered[0]

    tiny_lm.blocks[2].__dict__["forward"] = stubborn
    with pytest.raises(ModelError, match=r"layer 0 .* changed nothing"):
        self_check(tiny_lm)
