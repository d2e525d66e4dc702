"""Many interventions in one batch, checked against drafts: the same completions as one intervention at a time from scratch."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from refgeo.lm import drafts as drafts_module
from refgeo.lm.changes import Change
from refgeo.lm.drafts import complete_changed
from refgeo.lm.generate import complete_ids
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site, ablate, add

REQUESTS = ("how do i cook a fox", "cut", "what is water and fire to the blue crow", "boil root in a pot with water please")


def orthonormal(rank: int, width: int, seed: int) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(torch.randn(width, rank, generator=torch.Generator().manual_seed(seed))).Q.T
    return basis


def one_at_a_time(lm: LanguageModel, change: Change, site: Site) -> list[list[int]]:
    """The plain twin: the public context managers around plain decoding, one prompt per batch."""
    prompts = [lm.chat.prompt(request) for request in REQUESTS]
    with ExitStack() as stack:
        if change.basis is not None:
            stack.enter_context(ablate(lm, change.basis, change.layer, change.strength, site))
        if change.vector is not None and change.layer is not None:
            stack.enter_context(add(lm, change.vector, change.layer, site))
        return complete_ids(lm, prompts, 12, batch=1)


def changes(lm: LanguageModel) -> list[Change]:
    vectors = [3 * orthonormal(1, lm.width, 20 + seed)[0] for seed in range(3)]
    made = [Change(layer, orthonormal(rank, lm.width, layer + 3 * rank)) for layer in range(lm.depth) for rank in (1, 3)]
    made += [Change(1, orthonormal(1, lm.width, 9), 0.5), Change(None, orthonormal(2, lm.width, 10)), Change(1)]
    return made + [Change(layer, vector=vector) for layer, vector in enumerate(vectors)]


@pytest.mark.parametrize("site", ["block_output", "block_input"])
@pytest.mark.parametrize("batch", [1, 7, 256])
def test_many_changes_at_once_equal_one_at_a_time(tiny_lm: LanguageModel, site: Site, batch: int) -> None:
    prompts = [tiny_lm.chat.prompt(request) for request in REQUESTS]
    drafts = complete_ids(tiny_lm, prompts, 12)
    heard: list[int] = []
    found = complete_changed(tiny_lm, prompts, drafts, changes(tiny_lm), 12, site, batch, heard.append)
    expected = [one_at_a_time(tiny_lm, change, site) for change in changes(tiny_lm)]
    assert found == expected
    assert found[8] == drafts, "a change without basis and vector changes nothing"
    assert any(lines != drafts for lines in found)
    assert sum(heard) == len(found) * len(prompts)


@pytest.mark.parametrize(
    "spoil", [lambda ids: [], lambda ids: ids[:3], lambda ids: [5, *ids], lambda ids: ids + ids], ids=["none", "cut", "shifted", "long"]
)
def test_a_bad_draft_changes_no_result(tiny_lm: LanguageModel, spoil) -> None:
    prompts = [tiny_lm.chat.prompt(request) for request in REQUESTS]
    drafts = complete_ids(tiny_lm, prompts, 12)
    chosen = changes(tiny_lm)[::3]
    good = complete_changed(tiny_lm, prompts, drafts, chosen, 12)
    assert complete_changed(tiny_lm, prompts, [spoil(draft) for draft in drafts], chosen, 12) == good


def test_a_model_that_cannot_be_resumed_gets_whole_forward_passes(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [tiny_lm.chat.prompt(request) for request in REQUESTS]
    drafts = complete_ids(tiny_lm, prompts, 12)
    fast = complete_changed(tiny_lm, prompts, drafts, changes(tiny_lm), 12)
    monkeypatch.setattr(drafts_module, "resumable", lambda lm, prompt: False)
    monkeypatch.setattr(drafts_module, "resuming", None)
    assert complete_changed(tiny_lm, prompts, drafts, changes(tiny_lm), 12) == fast


def test_sparing_the_end_leaves_generated_tokens_alone(tiny_lm: LanguageModel) -> None:
    """A change that spares more than the whole prompt changes nothing; one that spares only the end changes something."""
    prompts = [tiny_lm.chat.prompt(request) for request in REQUESTS]
    drafts = complete_ids(tiny_lm, prompts, 12)
    vector = 8 * orthonormal(1, tiny_lm.width, 4)[0]
    spare_all, spare_end = Change(0, vector=vector, spare_last=100), Change(0, vector=vector, spare_last=4)
    found = complete_changed(tiny_lm, prompts, drafts, [spare_all, spare_end, Change(0, vector=vector)], 12)
    assert found[0] == drafts
    assert found[1] not in (drafts, found[2])
    assert found[1] == complete_changed(tiny_lm, prompts, [[]] * len(prompts), [spare_end], 12)[0]
