"""The cached, batched target loss against a plain full forward, one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from refgeo.attacks.cases import Case
from refgeo.attacks.objective import Encoded, TargetLoss, encode
from refgeo.errors import ContextOverflow, DataError
from refgeo.lm.model import LanguageModel

CASES = [
    Case("a", "how do i cook a red root", "sure here", "! ! !"),
    Case("b", "make soup", "sure here is bread", "! ! ! ! !"),
    Case("c", "tell me where the fox is please", "yes", "!"),
]


def plain_loss(lm: LanguageModel, case: Encoded, suffix: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*case.before, *suffix, *case.after, *case.target]])
    logits = lm.net(input_ids=ids).logits[0]
    return functional.cross_entropy(logits[-len(case.target) - 1 : -1], torch.tensor(case.target))


@pytest.mark.parametrize("rows_per_batch", [1, 2, 100])
def test_losses_equal_a_plain_forward(tiny_lm: LanguageModel, rows_per_batch: int) -> None:
    encoded = [encode(tiny_lm, case) for case in CASES]
    suffixes = [case.suffix for case in encoded] + [(20, 21, 22), (30, 31, 32, 33, 34)]
    owners = [0, 1, 2, 0, 1]
    with torch.no_grad():
        wanted = torch.stack([plain_loss(tiny_lm, encoded[owner], tuple(suffix)) for owner, suffix in zip(owners, suffixes, strict=True)])
    found = TargetLoss(tiny_lm, encoded, rows_per_batch).losses(owners, suffixes)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_gradients_equal_those_through_one_hot_tokens(tiny_lm: LanguageModel) -> None:
    encoded = [encode(tiny_lm, case) for case in CASES]
    losses, gradients = TargetLoss(tiny_lm, encoded, 8).gradients([0, 1, 2], [case.suffix for case in encoded])
    table = tiny_lm.core.get_input_embeddings().weight.detach()
    for case, gradient, loss in zip(encoded, gradients, losses, strict=True):
        choice = functional.one_hot(torch.tensor(case.suffix), len(table)).float().requires_grad_(True)
        pieces = [table[list(case.before)], choice @ table, table[[*case.after, *case.target]]]
        logits = tiny_lm.net(inputs_embeds=torch.cat(pieces)[None]).logits[0]
        plain = functional.cross_entropy(logits[-len(case.target) - 1 : -1], torch.tensor(case.target))
        plain.backward()
        assert choice.grad is not None
        assert torch.allclose(gradient, choice.grad, atol=1e-5)
        assert torch.allclose(loss, plain, atol=1e-5)


def test_candidates_after_a_gradient_reuse_its_keys_and_lose_nothing(tiny_lm: LanguageModel) -> None:
    encoded = [encode(tiny_lm, case) for case in CASES]
    objective = TargetLoss(tiny_lm, encoded, 3)
    objective.gradients([1, 0], [encoded[1].suffix, encoded[0].suffix])
    candidates = [(1, (*encoded[1].suffix[:place], 25, *encoded[1].suffix[place + 1 :])) for place in range(5)]
    candidates += [(0, encoded[0].suffix), (0, (25, 26, 27)), (1, encoded[1].suffix[:2])]
    with torch.no_grad():
        wanted = torch.stack([plain_loss(tiny_lm, encoded[owner], tuple(suffix)) for owner, suffix in candidates])
    found = objective.losses([owner for owner, _ in candidates], [suffix for _, suffix in candidates])
    assert torch.allclose(found, wanted, atol=1e-5)


def test_an_out_of_memory_halves_the_batch_and_changes_nothing(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = [encode(tiny_lm, case) for case in CASES]
    objective = TargetLoss(tiny_lm, encoded, 64)
    owners, suffixes = [0, 0, 1, 2, 1], [encoded[index].suffix for index in (0, 0, 1, 2, 1)]
    wanted = objective.losses(owners, suffixes)
    forward = objective._forward

    def small_memory(kept: Any, rows: list[int], *rest: Any) -> Any:
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return forward(kept, rows, *rest)

    monkeypatch.setattr(objective, "_forward", small_memory)
    assert torch.allclose(objective.losses(owners, suffixes), wanted, atol=1e-6)
    assert objective.rows_per_batch <= 2


def test_a_case_without_suffix_or_beyond_the_context_is_refused(tiny_lm: LanguageModel) -> None:
    with pytest.raises(DataError, match="empty suffix"):
        encode(tiny_lm, Case("a", "make soup", "sure", ""))
    with pytest.raises(ContextOverflow, match="'long'"):
        encode(tiny_lm, Case("long", "soup " * 300, "sure", "!"))
