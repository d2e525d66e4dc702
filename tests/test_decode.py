"""Greedy decoding with a shrinking batch: the same tokens as plain generation, whatever the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from refgeo.errors import ContextOverflow
from refgeo.lm.generate import as_text, complete_ids, greedy
from refgeo.lm.model import LanguageModel

REQUESTS = (
    "how do i cook a fox",
    "cut",
    "what is water and fire to the blue crow",
    "help me",
    "boil root in a pot with water please",
    "one two three",
)


@torch.no_grad()
def one_by_one(lm: LanguageModel, row: Sequence[int], budget: int) -> list[int]:
    """The plain twin: no cache, no batch, every token from a whole forward pass."""
    ids = list(row)
    while len(ids) - len(row) < budget and (len(ids) == len(row) or ids[-1] != lm.eos_id):
        ids.append(int(lm.core(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(row) :]


def test_greedy_equals_the_plain_twin_for_rows_of_every_length_and_budget(tiny_lm: LanguageModel) -> None:
    rows = [tiny_lm.chat.prompt(request).ids for request in REQUESTS]
    budgets = [1, 12, 7, 12, 3, 9]
    # A token that some rows reach early ends a turn, so that rows leave the batch at different times.
    tiny_lm.tokenizer.eos_token = tiny_lm.tokenizer.convert_ids_to_tokens(one_by_one(tiny_lm, rows[1], 5)[2])
    expected = [one_by_one(tiny_lm, row, budget) for row, budget in zip(rows, budgets, strict=True)]
    assert greedy(tiny_lm, rows, budgets) == expected
    assert len({len(line) for line in expected}) > 2


def test_completions_do_not_depend_on_the_batch_and_equal_generation(tiny_lm: LanguageModel) -> None:
    prompts = [tiny_lm.chat.prompt(request) for request in REQUESTS]
    heard: list[int] = []
    whole = complete_ids(tiny_lm, prompts, 10, batch=6, progress=heard.append)
    assert whole == complete_ids(tiny_lm, prompts, 10, batch=1) == complete_ids(tiny_lm, prompts[::-1], 10, batch=4)[::-1]
    first = torch.tensor([prompts[0].ids])
    library = tiny_lm.core.generate(first, max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=tiny_lm.eos_id)
    assert as_text(tiny_lm, whole)[0] == as_text(tiny_lm, library[:, len(prompts[0]) :].tolist())[0]
    assert heard == [6]


def test_the_context_is_asked_again_for_the_rows_that_are_left(tiny_lm: LanguageModel) -> None:
    asked: list[list[int]] = []

    @contextmanager
    def edits(rows: Sequence[int]) -> Iterator[None]:
        asked.append(list(rows))
        yield

    rows = [tiny_lm.chat.prompt(request).ids for request in REQUESTS[:4]]
    greedy(tiny_lm, rows, [2, 9, 2, 5], edits)
    assert asked == [[0, 1, 2, 3], [1, 3], [1]]


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_generated(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ContextOverflow, match="256"):
        complete_ids(tiny_lm, [tiny_lm.chat.prompt("fox")], 250)
