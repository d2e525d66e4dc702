"""Batched greedy generation: prompts sorted by length, left-padded; results do not depend on the batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from refgeo.lm.chat import Rendered, check_length
from refgeo.lm.model import LanguageModel


@torch.no_grad()
def complete(
    lm: LanguageModel,
    prompts: Sequence[Rendered],
    max_new_tokens: int,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy completions as text, in the order of ``prompts``, without special tokens.

    Raises ``ContextOverflow`` before anything is generated when a prompt does not fit. ``progress`` hears of finished prompts.
    """
    for index, prompt in enumerate(prompts):
        check_length(prompt, lm.context, max_new_tokens, str(index))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        ids, mask = left_pad([prompts[index].ids for index in chosen], lm.pad_id, lm.device)
        out = lm.core.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=lm.pad_id,
            eos_token_id=lm.eos_id,
        )
        decoded = lm.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, decoded, strict=True):
            texts[index] = text.strip()
        if progress is not None:
            progress(len(chosen))
    return texts


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both ``batch pos``, aligned at the right end."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)
