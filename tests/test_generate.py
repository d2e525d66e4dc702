"""Batched generation against one prompt at a time without cache or padding."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from refgeo.config.model import ModelSettings
from refgeo.errors import ContextOverflow, ModelError
from refgeo.lm.batch import left_pad
from refgeo.lm.changes import Change, changing
from refgeo.lm.generate import as_text, complete, complete_ids, greedy
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel

REQUESTS = [
    "how do i make bread",
    "hello",
    "tell me where the fox is please",
    "feed the crow",
    "who is it",
    "boil the root in a pot with water and fire for two of the big red hen",
]
NEW = 12


def plain(lm: LanguageModel, request: str, budget: int = NEW) -> str:
    """Greedy decoding as it is defined: the whole sequence again for every token."""
    ids = list(lm.chat.prompt(request).ids)
    length = len(ids)
    with torch.no_grad():
        while len(ids) < length + budget and (len(ids) == length or ids[-1] not in lm.stop_ids):
            ids.append(int(lm.net(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    written = ids[length:-1] if ids[-1] in lm.stop_ids else ids[length:]
    return str(lm.tokenizer.decode(written, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("batch", [1, 2, 4, 64])
def test_completions_do_not_depend_on_the_batch(tiny_lm: LanguageModel, batch: int) -> None:
    expected = [plain(tiny_lm, request) for request in REQUESTS]
    assert len(set(expected)) > 2  # else the test could not tell prompts apart
    assert complete(tiny_lm, [tiny_lm.chat.prompt(request) for request in REQUESTS], NEW, batch) == expected


def test_a_reply_ends_with_its_turn(tiny_lm: LanguageModel) -> None:
    prompts = [tiny_lm.chat.prompt(request) for request in REQUESTS]
    # The word that the model says most often becomes the end of turn, so that some replies end early.
    said = " ".join(complete(tiny_lm, prompts, NEW)).split()
    tiny_lm.tokenizer.eos_token = max(set(said), key=said.count)
    expected = [plain(tiny_lm, request) for request in REQUESTS]
    assert any(len(text.split()) < NEW - 1 for text in expected)
    assert complete(tiny_lm, prompts, NEW, batch=3) == expected
    assert all(tiny_lm.tokenizer.eos_token not in text.split() for text in expected)


def test_the_padding_token_has_no_effect(tiny_lm: LanguageModel) -> None:
    prompts = [tiny_lm.chat.prompt(request) for request in REQUESTS]
    expected = complete(tiny_lm, prompts, NEW)
    tiny_lm.tokenizer.pad_token = None
    assert tiny_lm.pad_id == tiny_lm.eos_id
    assert complete(tiny_lm, prompts, NEW) == expected


@pytest.fixture
def stopping(any_lm: LanguageModel) -> LanguageModel:
    """Every architecture with so many stopping tokens that rows end at different times."""
    any_lm.core.generation_config.eos_token_id = list(range(3, len(any_lm.tokenizer), 7))
    return any_lm


@pytest.mark.parametrize("batch", [2, 3, 64])
def test_places_are_refilled_and_no_token_changes(stopping: LanguageModel, batch: int) -> None:
    prompts = [stopping.chat.prompt(request) for request in REQUESTS]
    expected = complete_ids(stopping, prompts, NEW, batch=1)
    assert as_text(stopping, expected) == [plain(stopping, request) for request in REQUESTS]
    assert len({len(ids) for ids in expected}) > 1
    assert complete_ids(stopping, prompts, NEW, batch) == expected
    # In any order: then a prompt may be longer than the columns that are there.
    rows = [prompt.ids for prompt in prompts]
    assert greedy(stopping, rows, [NEW] * len(rows), batch=batch) == expected
    assert greedy(stopping, rows[::-1], [NEW] * len(rows), batch=batch)[::-1] == expected


def test_models_whose_state_is_more_than_keys_and_values_run_batch_after_batch(
    stopping: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [stopping.chat.prompt(request).ids for request in REQUESTS]
    expected = greedy(stopping, rows, [NEW] * len(rows), batch=2)
    monkeypatch.setattr("refgeo.lm.generate.row_cache", lambda config: None)
    assert greedy(stopping, rows, [NEW] * len(rows), batch=4) == expected


@pytest.mark.parametrize("batch", [2, 4, None])
def test_every_row_keeps_its_own_edit_when_places_are_refilled(tiny_lm: LanguageModel, batch: int | None) -> None:
    tiny_lm.core.generation_config.eos_token_id = list(range(3, len(tiny_lm.tokenizer), 7))
    rows = [tiny_lm.chat.prompt(request).ids for request in REQUESTS]
    units = torch.nn.functional.normalize(torch.randn(len(rows), 1, tiny_lm.width, generator=torch.Generator().manual_seed(0)), dim=-1)
    changes = [Change(index % 3, unit, spare_last=2 * (index % 2)) for index, unit in enumerate(units)]
    expected = []
    for row, change in zip(rows, changes, strict=True):
        with changing(tiny_lm, [change]):
            expected += greedy(tiny_lm, [row], [NEW])
    assert expected != greedy(tiny_lm, rows, [NEW] * len(rows))

    def edits(active: Sequence[int]) -> AbstractContextManager[None]:
        return changing(tiny_lm, [changes[index] for index in active])

    assert greedy(tiny_lm, rows, [NEW] * len(rows), edits, batch=batch) == expected


@pytest.mark.parametrize("most", [1, 2])
def test_out_of_memory_the_batch_is_halved_and_nothing_changes(tiny_lm: LanguageModel, most: int) -> None:
    tiny_lm.core.generation_config.eos_token_id = list(range(3, len(tiny_lm.tokenizer), 7))
    prompts = [tiny_lm.chat.prompt(request) for request in REQUESTS]
    expected = complete_ids(tiny_lm, prompts, NEW, batch=1)
    seen: list[int] = []
    heard: list[int] = []

    def crowded(module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(len(kwargs["input_ids"]))
        if seen[-1] > most and len(seen) > 2:  # not at the first token: some are written by then
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = tiny_lm.core.register_forward_pre_hook(crowded, with_kwargs=True)
    assert complete_ids(tiny_lm, prompts, NEW, progress=heard.append) == expected
    assert sum(heard) == len(prompts)
    seen[:] = [0] * 3
    assert complete_ids(tiny_lm, prompts, NEW) == expected
    assert max(seen) <= most  # it has learned
    handle.remove()
    tiny_lm.core.register_forward_pre_hook(lambda *args, **kwargs: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(torch.OutOfMemoryError):
        complete_ids(tiny_lm, prompts, NEW)


def test_the_end_of_turn_is_no_text(tiny_lm: LanguageModel) -> None:
    tiny_lm.core.generation_config.eos_token_id = [tiny_lm.tokenizer.convert_tokens_to_ids("fox")]
    ids = tiny_lm.tokenizer("the owl fox", add_special_tokens=False)["input_ids"]
    assert as_text(tiny_lm, [ids, ids[:-1], []]) == ["the owl", "the owl", ""]


def test_nothing_is_generated_when_one_prompt_does_not_fit(tiny_lm: LanguageModel) -> None:
    heard: list[int] = []
    long = tiny_lm.chat.prompt("hello " * (tiny_lm.context - 10))
    with pytest.raises(ContextOverflow, match="Prompt '1'"):
        complete(tiny_lm, [tiny_lm.chat.prompt("hello"), long], NEW, progress=heard.append)
    assert heard == []


def test_progress_counts_every_prompt(tiny_lm: LanguageModel) -> None:
    heard: list[int] = []
    complete(tiny_lm, [tiny_lm.chat.prompt(request) for request in REQUESTS], 2, batch=4, progress=heard.append)
    assert heard == [4, 2]


def test_no_prompts_give_no_completions(tiny_lm: LanguageModel) -> None:
    assert complete(tiny_lm, [], NEW) == []


def test_left_pad_aligns_the_ends() -> None:
    ids, mask = left_pad([[5], [6, 7, 8]], 0, torch.device("cpu"))
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"model"):
        load(ModelSettings(path=str(folder)))
