"""Means of what is read of the residual stream: equal to a plain twin, whatever the order, the batches and the padding."""

from __future__ import annotations

import pytest
import torch

from architectures import tiny
from refgeo.errors import ModelError
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site, read

WORDS = "cook the fox with water and fire then stir a red stew for me please".split()
POSITIONS = (-4, -1)
SITES: tuple[Site, ...] = ("block_output", "block_input")


def prompts(lm: LanguageModel, count: int = 12) -> list[tuple[int, ...]]:
    return [lm.chat.prompt(" ".join(WORDS[index % 5 : index % 5 + 1 + index])).ids for index in range(count)]


def mean(states: torch.Tensor) -> torch.Tensor:
    return states.mean(dim=0, dtype=torch.float64)


def plain(lm: LanguageModel, rows: list[tuple[int, ...]], site: Site) -> torch.Tensor:
    """The twin: one prompt at a time, the library's hidden states; what leaves the last block it does not tell without its norm."""
    total = torch.zeros(len(POSITIONS), lm.depth - (site == "block_output"), lm.width, dtype=torch.float64)
    for row in rows:
        hidden = lm.core(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        chosen = hidden[1:-1] if site == "block_output" else hidden[:-1]
        total += torch.stack([states[0, list(POSITIONS)] for states in chosen], dim=1).double()
    return total / len(rows)


@pytest.mark.parametrize("site", SITES)
def test_means_equal_one_prompt_at_a_time_on_every_architecture(any_lm: LanguageModel, site: Site) -> None:
    rows = prompts(any_lm)
    found = mean(read(any_lm, rows, POSITIONS, site))
    wanted = plain(any_lm, rows, site)
    scale = float(wanted.abs().max())
    assert float((found[:, : wanted.shape[1]] - wanted).abs().max()) < 1e-6 * max(1.0, scale)


def test_no_batch_and_no_order_matters() -> None:
    lm = tiny("llama", dtype="float64")
    rows = prompts(lm)
    wanted = plain(lm, rows, "block_output")
    for batch, order in ((128, rows), (1, rows), (3, rows[::-1]), (5, rows[7:] + rows[:7])):
        assert torch.allclose(mean(read(lm, order, POSITIONS, batch=batch))[:, :-1], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_does_not_matter(tiny_lm: LanguageModel, side: str) -> None:
    before = read(tiny_lm, prompts(tiny_lm), POSITIONS)
    tiny_lm.tokenizer.padding_side = side
    assert torch.equal(read(tiny_lm, prompts(tiny_lm), POSITIONS), before)


def test_the_head_is_not_run_and_no_hook_stays(tiny_lm: LanguageModel) -> None:
    ran = []
    tiny_lm.core.lm_head.register_forward_hook(lambda *_: ran.append(True))
    read(tiny_lm, prompts(tiny_lm), POSITIONS)
    assert not ran
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in tiny_lm.blocks)


def test_nothing_to_read_is_refused(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match="no prompts"):
        read(tiny_lm, [], POSITIONS)
    with pytest.raises(ModelError, match="do not exist"):
        read(tiny_lm, prompts(tiny_lm), (-50,))
