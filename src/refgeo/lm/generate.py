"""Batched greedy generation: prompts sorted by length, left-padded; finished rows leave the batch; each row may undergo its own edit.

Our own loop rather than the library's: it takes interventions per row, lets finished rows go, and stays greedy whatever sampling or
penalty a hub model's generation configuration asks for. Results do not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from refgeo.lm.chat import Rendered, check_length
from refgeo.lm.model import LanguageModel

Edits = Callable[[Sequence[int]], AbstractContextManager[None]]
SHRINK = 0.875
"""Finished rows leave the batch when less than this share of it is still being written; each time the cache is copied once."""


def complete(
    lm: LanguageModel,
    prompts: Sequence[Rendered],
    max_new_tokens: int,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy completions as text, in the order of ``prompts``, without special tokens. Raises as ``complete_ids`` does."""
    return as_text(lm, complete_ids(lm, prompts, max_new_tokens, batch, progress))


def complete_ids(
    lm: LanguageModel,
    prompts: Sequence[Rendered],
    max_new_tokens: int,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Greedy completions as token ids, the end-of-turn token included, in the order of ``prompts``.

    Raises ``ContextOverflow`` before anything is generated when a prompt does not fit. ``progress`` hears of finished prompts.
    """
    for index, prompt in enumerate(prompts):
        check_length(prompt, lm.context, max_new_tokens, str(index))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    completions: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        for index, ids in zip(chosen, greedy(lm, [prompts[index].ids for index in chosen], [max_new_tokens] * len(chosen)), strict=True):
            completions[index] = ids
        if progress is not None:
            progress(len(chosen))
    return completions


def as_text(lm: LanguageModel, completions: Sequence[Sequence[int]]) -> list[str]:
    """Completions as text without special tokens, stripped."""
    return [str(lm.tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in completions]


@torch.no_grad()
def greedy(lm: LanguageModel, rows: Sequence[Sequence[int]], budgets: Sequence[int], edits: Edits | None = None) -> list[list[int]]:
    """Greedy continuation of every row in one batch: up to its end-of-turn token (included) or ``budgets[row]`` tokens.

    Rows that are done leave the batch together once an eighth of it is done. ``edits`` gets the indices of the rows that are
    in the batch, in order, and returns the context in which they are run; it is asked again whenever the batch shrinks.
    """
    written: list[list[int]] = [[] for _ in rows]
    active = list(range(len(rows)))
    ids, mask = left_pad(rows, lm.pad_id, lm.device)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = None
    while active:
        with edits(active) if edits is not None else nullcontext():
            while True:
                out = lm.core(
                    input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                cache, tokens = out.past_key_values, out.logits[:, -1].argmax(dim=-1)
                alive = _append(written, active, tokens.tolist(), budgets, lm.eos_id)
                ids, places = tokens[:, None], places[:, -1:] + 1
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                if len(alive) < SHRINK * len(active) or not alive:
                    break
        if alive:
            kept = torch.tensor(alive, device=lm.device)
            ids, places, mask = ids[kept], places[kept], mask[kept]
            cache.batch_select_indices(kept)
        active = [active[row] for row in alive]
    return written


def _append(written: list[list[int]], active: Sequence[int], tokens: Sequence[int], budgets: Sequence[int], eos_id: int) -> list[int]:
    """Note each row's token unless it is done; the places in the batch of the rows that go on."""
    alive = []
    for place, (row, token) in enumerate(zip(active, tokens, strict=True)):
        line = written[row]
        if len(line) < budgets[row] and (not line or line[-1] != eos_id):
            line.append(token)
        if len(line) < budgets[row] and line[-1] != eos_id:
            alive.append(place)
    return alive


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both ``batch pos``, aligned at the right end."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)
