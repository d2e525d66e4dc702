"""The three losses of robust refusal dynamic defense (2402.04249, section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from refgeo.attacks.objective import right_aligned
from refgeo.errors import ContextOverflow
from refgeo.lm.chat import Rendered
from refgeo.lm.generate import left_pad
from refgeo.lm.model import LanguageModel


def clean_loss(
    logits: Float[Tensor, "batch pos vocab"], ids: Int[Tensor, "batch pos"], counted: Bool[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Token-level cross-entropy of next-token prediction over the counted tokens of the whole batch."""
    labels = ids.masked_fill(~counted, -100)[:, 1:]
    return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels.flatten(), ignore_index=-100)


def away_loss(logits: Float[Tensor, "case keep vocab"], targets: Sequence[Sequence[int]], cutoff: float) -> Float[Tensor, ""]:
    """Mean over target tokens of ``-log(1 - p)``; a token whose log p is below ``cutoff`` contributes 0, so it is not pushed further.

    ``logits`` predict the last ``keep`` tokens of each row, where the targets stand right-aligned.
    """
    labels = right_aligned(targets, logits.shape[1], logits.device)
    counted = labels != -100
    log_p = logits.float().log_softmax(dim=-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    # log(1 - p) from log p, stable near p = 1, where float32 would round 1 - p to zero.
    penalty = -torch.log(-torch.expm1(log_p.clamp(max=-1e-6)))
    active = counted & (log_p >= cutoff)
    return torch.where(active, penalty, torch.zeros_like(penalty)).sum() / counted.sum()


def toward_loss(logits: Float[Tensor, "case keep vocab"], targets: Sequence[Sequence[int]]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the fixed refusal over all its tokens."""
    labels = right_aligned(targets, logits.shape[1], logits.device)
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)


def reply_logits(lm: LanguageModel, rows: Sequence[Rendered], end_of_turn: bool) -> tuple[Float[Tensor, "row keep vocab"], list[list[int]]]:
    """Logits that predict each row's reply, and the reply's ids, with or without its end-of-turn token."""
    targets, inputs = [], []
    for row in rows:
        start, stop = row.target
        stop -= int(not end_of_turn and row.ids[stop - 1] == lm.eos_id)
        if stop > lm.context:
            raise ContextOverflow(f"A training case has {stop} tokens", expected=f"at most {lm.context} (the model's context)")
        targets.append(list(row.ids[start:stop]))
        inputs.append(row.ids[: stop - 1])
    ids, mask = left_pad(inputs, lm.pad_id, lm.device)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    keep = max(len(target) for target in targets)
    out = lm.net(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=keep)
    return out.logits, targets
