"""The losses of R2D2 on logits whose answer is known, and against unbatched twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from refgeo.lm.model import LanguageModel
from refgeo.training.losses import away_loss, clean_loss, reply_logits, toward_loss


def logits_for(*rows: tuple[float, ...]) -> torch.Tensor:
    """Logits over two tokens under which token 0 has the given probabilities."""
    return torch.tensor([[[math.log(p), math.log1p(-p)] for p in row] for row in rows])


def test_away_is_the_mean_of_minus_log_one_minus_p() -> None:
    found = away_loss(logits_for((0.5, 0.9)), [[0, 0]], cutoff=-5.0)
    assert found.item() == pytest.approx((-math.log(0.5) - math.log(0.1)) / 2, rel=1e-5)


def test_a_token_that_is_already_unlikely_contributes_nothing_and_gets_no_gradient() -> None:
    logits = logits_for((0.5, math.exp(-6))).requires_grad_(True)
    found = away_loss(logits, [[0, 0]], cutoff=-5.0)
    assert found.item() == pytest.approx(-math.log(0.5) / 2, rel=1e-5)
    found.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].abs().sum() > 0
    assert logits.grad[0, 1].abs().sum() == 0


def test_away_stays_finite_where_the_target_is_certain() -> None:
    logits = torch.tensor([[[100.0, 0.0]]]).requires_grad_(True)
    found = away_loss(logits, [[0]], cutoff=-5.0)
    found.backward()
    assert torch.isfinite(found)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_shorter_targets_count_only_their_own_tokens() -> None:
    together = away_loss(logits_for((0.3, 0.5), (0.7, 0.9)), [[0, 0], [0]], cutoff=-5.0)
    assert together.item() == pytest.approx((-math.log(0.7) - math.log(0.5) - math.log(0.1)) / 3, rel=1e-5)


def test_toward_and_clean_are_cross_entropies_of_what_is_counted() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    plain = functional.cross_entropy(torch.cat([logits[0], logits[1, 1:]]), torch.tensor([1, 2, 3, 4, 0]))
    assert toward_loss(logits, [[1, 2, 3], [4, 0]]).item() == pytest.approx(plain.item(), rel=1e-5)
    ids, counted = torch.tensor([[1, 2, 3], [4, 0, 2]]), torch.tensor([[False, True, True], [False, False, True]])
    plain = functional.cross_entropy(torch.stack([logits[0, 0], logits[0, 1], logits[1, 1]]), torch.tensor([2, 3, 2]))
    assert clean_loss(logits, ids, counted).item() == pytest.approx(plain.item(), rel=1e-5)


def test_reply_logits_of_padded_rows_equal_those_of_single_rows(tiny_lm: LanguageModel) -> None:
    rows = [tiny_lm.chat.prompt("make soup", "! !", "sure here is soup"), tiny_lm.chat.prompt("how do i cook a red root", "", "yes")]
    for end_of_turn in (False, True):
        logits, targets = reply_logits(tiny_lm, rows, end_of_turn)
        for row, rendered, target in zip(logits, rows, targets, strict=True):
            assert target == list(rendered.ids[rendered.target[0] : rendered.target[1] - (0 if end_of_turn else 1)])
            single, _ = reply_logits(tiny_lm, [rendered], end_of_turn)
            assert torch.allclose(row[-len(target) :], single[0], atol=1e-5)
