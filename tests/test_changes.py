"""Different changes on different rows: each row as if it were alone."""

from __future__ import annotations

import pytest
import torch

from refgeo.errors import ModelError
from refgeo.lm.changes import Change, changing
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site, ablate, add, last_logits, read

REQUESTS = ("how do i cook a fox", "cut", "what is water and fire to the blue crow", "boil root in a pot", "help me", "one two three")


def basis(lm: LanguageModel, rank: int, seed: int) -> torch.Tensor:
    found: torch.Tensor = torch.linalg.qr(torch.randn(lm.width, rank, generator=torch.Generator().manual_seed(seed))).Q.T
    return found


@torch.no_grad()
@pytest.mark.parametrize("site", ["block_output", "block_input"])
def test_every_row_is_changed_as_if_it_were_alone(tiny_lm: LanguageModel, site: Site) -> None:
    prompts = [tiny_lm.chat.prompt(request).ids for request in REQUESTS]
    one, three, vector = basis(tiny_lm, 1, 0), basis(tiny_lm, 3, 1), 4 * basis(tiny_lm, 1, 2)[0]
    changes = [Change(0, one), Change(2, three, 0.5), Change(1, vector=vector), Change(None, one), Change(1), Change(1, three, 2.0, vector)]
    with changing(tiny_lm, changes, site):
        together = last_logits(tiny_lm, prompts)
    alone = []
    for prompt, change in zip(prompts, changes, strict=True):
        with ablate(tiny_lm, change.basis if change.basis is not None else 0 * one, change.layer, change.strength, site):
            if change.vector is None:
                alone.append(last_logits(tiny_lm, [prompt]))
            else:
                with add(tiny_lm, change.vector, 1, site):
                    alone.append(last_logits(tiny_lm, [prompt]))
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    plain = last_logits(tiny_lm, prompts)
    assert torch.equal(together[4], plain[4]), "a change without basis and vector keeps every bit"
    assert all(not torch.allclose(together[row], plain[row], atol=1e-2) for row in (0, 1, 2, 3, 5))


def test_sparing_the_end_changes_only_the_tokens_before(tiny_lm: LanguageModel) -> None:
    prompts = [tiny_lm.chat.prompt(request).ids for request in REQUESTS[1::-1]]  # by length, as reading sorts them
    vector = 4 * basis(tiny_lm, 1, 2)[0]
    plain = read(tiny_lm, prompts, (-5, -4, -1))
    with changing(tiny_lm, [Change(0, vector=vector, spare_last=4), Change(0, vector=vector)]):
        moved = read(tiny_lm, prompts, (-5, -4, -1))[:, :, 0] - plain[:, :, 0]
    still = torch.zeros_like(vector)
    for found, expected in zip(moved.flatten(0, 1), (vector, still, still, vector, vector, vector), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_the_batch_must_have_one_row_per_change(tiny_lm: LanguageModel) -> None:
    prompts = [tiny_lm.chat.prompt("fox").ids] * 3
    with (
        pytest.raises(ModelError, match="2 changes were given for a batch of 3 rows"),
        changing(tiny_lm, [Change(0, basis(tiny_lm, 1, 0))] * 2),
    ):
        last_logits(tiny_lm, prompts)


def test_a_vector_cannot_be_added_everywhere(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match="everywhere"), changing(tiny_lm, [Change(None, vector=basis(tiny_lm, 1, 0)[0])]):
        pass
