"""Forward passes that go on from a cached residual stream."""

from __future__ import annotations

import pytest
import torch

from refgeo.errors import ModelError
from refgeo.lm.batch import left_pad
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site, ablate, last_logits, next_logits, read
from refgeo.lm.resume import kept_logits, last_only, narrowable, resumable, resuming, stream_index, trace

REQUESTS = ("how do i cook a fox", "cut", "what is water and fire to the blue crow")


def test_the_trace_is_the_residual_stream(tiny_lm: LanguageModel) -> None:
    prompts = [tiny_lm.chat.prompt(request).ids for request in REQUESTS]
    traced = trace(tiny_lm, prompts)
    sites: tuple[Site, ...] = ("block_output", "block_input")
    for site in sites:
        seen = read(tiny_lm, prompts, (-2, -1), site)
        for layer in range(tiny_lm.depth):
            assert torch.allclose(traced.streams[stream_index(layer, site)][:, -2:], seen[:, :, layer], atol=1e-6)
    assert torch.equal(traced.logits, last_logits(tiny_lm, prompts))
    assert set(trace(tiny_lm, prompts, keep=(2,)).streams) == {2}


@pytest.mark.parametrize("start", [1, 2, 3])
def test_resuming_gives_the_same_logits_without_running_the_blocks_before(tiny_lm: LanguageModel, start: int) -> None:
    traced = trace(tiny_lm, [tiny_lm.chat.prompt(request).ids for request in REQUESTS])
    ran: list[int] = []
    for layer, block in enumerate(tiny_lm.blocks):
        block.get_submodule("mlp").register_forward_hook(lambda module, args, output, layer=layer: ran.append(layer))
    with resuming(tiny_lm, traced, start, repeats=2):
        again = next_logits(tiny_lm, traced.ids.repeat(2, 1), traced.mask.repeat(2, 1))
    assert torch.allclose(again, traced.logits.repeat(2, 1), atol=1e-5)
    assert ran == list(range(start, 3))


def test_rows_of_a_trace_resume_like_the_whole(tiny_lm: LanguageModel) -> None:
    traced = trace(tiny_lm, [tiny_lm.chat.prompt(request).ids for request in REQUESTS])
    part = traced.rows(1, 3)
    with resuming(tiny_lm, part, 2):
        assert torch.allclose(next_logits(tiny_lm, part.ids, part.mask), traced.logits[1:3], atol=1e-5)


def test_an_intervention_on_the_last_skipped_block_still_acts(tiny_lm: LanguageModel) -> None:
    prompts = [tiny_lm.chat.prompt(request).ids for request in REQUESTS]
    traced = trace(tiny_lm, prompts)
    unit = torch.nn.functional.normalize(torch.randn(1, tiny_lm.width, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad(), ablate(tiny_lm, unit, 1):
        whole = last_logits(tiny_lm, prompts)
        with resuming(tiny_lm, traced, 2):
            short = next_logits(tiny_lm, traced.ids, traced.mask)
    assert torch.allclose(short, whole, atol=1e-5)
    assert not torch.allclose(short, traced.logits, atol=1e-2)


def test_a_model_whose_blocks_depend_on_more_than_the_stream_is_not_resumable(tiny_lm: LanguageModel) -> None:
    prompt = tiny_lm.chat.prompt("how do i cook a fox").ids
    assert resumable(tiny_lm, prompt)
    noted: list[torch.Tensor] = []
    tiny_lm.blocks[0].get_submodule("mlp").register_forward_hook(lambda module, args, output: noted.append(output))
    inner = tiny_lm.blocks[2].forward
    # The last block looks at what the first one's feed-forward part computed last time it ran, and forgets it.
    tiny_lm.blocks[2].__dict__["forward"] = lambda *args, **kwargs: inner(*args, **kwargs) + (noted.pop() if noted else 0.0)
    assert not resumable(tiny_lm, prompt)


def test_blocks_that_run_more_than_once_are_refused(tiny_lm: LanguageModel) -> None:
    layers = tiny_lm.blocks
    tiny_lm.core.model.layers = torch.nn.ModuleList([layers[0], layers[1], layers[1], layers[2]])
    tiny_lm.core.config.num_hidden_layers = 4
    with pytest.raises(ModelError, match="ran 4 blocks"):
        trace(tiny_lm, [tiny_lm.chat.prompt("fox").ids])


def test_the_last_block_runs_for_the_last_tokens_only_and_their_logits_stay(any_lm: LanguageModel) -> None:
    ids = any_lm.chat.prompt("how do i cook a fox in the pot").ids
    assert narrowable(any_lm, ids)
    batch, mask = left_pad([ids, ids[3:]], any_lm.pad_id, any_lm.device)
    with torch.no_grad():
        plain = kept_logits(any_lm, batch, mask, 2)
        with last_only(any_lm, 2):
            assert torch.allclose(kept_logits(any_lm, batch, mask, 2), plain, atol=1e-5)
        assert torch.equal(kept_logits(any_lm, batch, mask, 2), plain), "nothing stays behind"
