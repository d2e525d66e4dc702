"""The zoo itself: models that answer differently to different prompts, and that do not see their padding."""

from __future__ import annotations

import pytest
import torch

from architectures import ARCHITECTURES, WINDOW, adapted, tiny
from refgeo.lm.hook_check import self_check
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import last_logits

REQUESTS = ("how do i cook a fox", "boil root in a pot with water please", "hello")


def prompts(lm: LanguageModel) -> list[list[int]]:
    return [list(lm.chat.prompt(request).ids) for request in REQUESTS]


@torch.no_grad()
def test_logits_are_finite_and_depend_on_the_prompt(any_lm: LanguageModel) -> None:
    logits = torch.cat([last_logits(any_lm, [row]) for row in prompts(any_lm)])
    assert logits.isfinite().all()
    assert torch.pdist(logits, p=float("inf")).min() > 0.1
    # Not only through their last tokens, which the template fixes.
    first, other = prompts(any_lm)[0], prompts(any_lm)[0]
    changed = [*other[:3], other[3] + 1, *other[4:]]
    assert (last_logits(any_lm, [first]) - last_logits(any_lm, [changed])).abs().max() > 1e-3


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(any_lm: LanguageModel) -> None:
    rows = prompts(any_lm)
    assert len({len(row) for row in rows}) == len(rows)
    alone = torch.cat([last_logits(any_lm, [row]) for row in rows])
    torch.testing.assert_close(last_logits(any_lm, rows), alone, atol=1e-4, rtol=1e-4)


def test_the_hooks_of_the_residual_stream_work(any_lm: LanguageModel) -> None:
    self_check(any_lm)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_changes_the_answer_and_the_seed_the_model(architecture: str) -> None:
    lm = tiny(architecture)
    row = prompts(lm)[:1]
    plain = last_logits(lm, row)
    assert torch.equal(last_logits(tiny(architecture), row), plain)
    assert (last_logits(tiny(architecture, seed=1), row) - plain).abs().max() > 0.1
    assert (last_logits(adapted(lm), row) - plain).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3_text"])
def test_sliding_windows_bite(architecture: str) -> None:
    lm = tiny(architecture)
    row = prompts(lm)[:1]
    assert len(row[0]) > 2 * WINDOW
    narrow = last_logits(lm, row)
    lm.core.config.sliding_window = 100
    assert (last_logits(lm, row) - narrow).abs().max() > 1e-2
