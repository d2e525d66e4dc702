"""Completions under many interventions at once. Most leave most completions as they were, so each is first checked against a draft.

One forward pass over prompt and draft shows where an intervention first changes the greedy choice; only from there on is
anything generated. Blocks before the intervention are run once per prompt and shared by all interventions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from refgeo.lm.batch import places_of, rows_per_pass
from refgeo.lm.changes import Change, changing
from refgeo.lm.chat import Rendered
from refgeo.lm.generate import greedy
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site
from refgeo.lm.resume import Trace, resumable, resuming, stream_index, trace

LOGITS = 1 << 26
"""Most logits that one checking pass may hold."""
_IGNORED, _UNKNOWN = -1, -2


class _Fork(NamedTuple):
    """Where one intervention on one prompt leaves the draft: after ``kept`` tokens it writes ``token`` instead."""

    change: int
    prompt: int
    kept: int
    token: int


def complete_changed(
    lm: LanguageModel,
    prompts: Sequence[Rendered],
    drafts: Sequence[Sequence[int]],
    changes: Sequence[Change],
    max_new_tokens: int,
    site: Site = "block_output",
    batch: int = 256,
    progress: Callable[[int], None] | None = None,
) -> list[list[list[int]]]:
    """Greedy completions ``[change][prompt]`` as token ids, equal to generating every prompt under every change from scratch.

    ``drafts`` are best the completions of the same prompts without any change; another guess costs time but changes no result.
    ``batch`` is the number of rows per forward pass. ``progress`` hears of finished rows.
    """
    stop_ids = lm.stop_ids
    drafts = [_cut(draft, max_new_tokens, stop_ids) for draft in drafts]
    completions = [[list(draft) for draft in drafts] for _ in changes]
    forks: list[_Fork] = []
    reuse = bool(prompts) and resumable(lm, prompts[0].ids)
    for start, group in by_start(changes, site, reuse).items():
        for chunk, traced in traced_chunks(lm, [prompt.ids for prompt in prompts], drafts, start, batch):
            for rows, part in pieces(lm, traced, len(group), max(len(drafts[index]) for index in chunk), batch):
                inside = [chunk[row] for row in rows], [group[entry] for entry in part]
                found = _check(lm, drafts, changes, *inside, traced.rows(rows.start, rows.stop), start, max_new_tokens, site)
                forks += found
                if progress is not None:
                    progress(len(rows) * len(part) - len(found))
    forks.sort(key=lambda fork: len(prompts[fork.prompt]) + fork.kept)
    for first in range(0, len(forks), batch):
        batched = forks[first : first + batch]
        for fork, ids in zip(batched, _continue(lm, prompts, drafts, changes, batched, max_new_tokens, site), strict=True):
            completions[fork.change][fork.prompt] = ids
        if progress is not None:
            progress(len(batched))
    return completions


def _continue(
    lm: LanguageModel,
    prompts: Sequence[Rendered],
    drafts: Sequence[Sequence[int]],
    changes: Sequence[Change],
    forks: Sequence[_Fork],
    max_new_tokens: int,
    site: Site,
) -> list[list[int]]:
    """Completions of one batch of forks: what was kept of the draft, the token that differs, and what follows from it."""
    heads = [[*drafts[fork.prompt][: fork.kept], fork.token] for fork in forks]
    stop_ids = lm.stop_ids
    going = [row for row, head in enumerate(heads) if head[-1] not in stop_ids and len(head) < max_new_tokens]
    edits = [changes[forks[row].change].after(len(heads[row])) for row in going]

    def changed(active: Sequence[int]) -> AbstractContextManager[None]:
        return changing(lm, [edits[place] for place in active], site)

    rows = [[*prompts[forks[row].prompt].ids, *heads[row]] for row in going]
    if rows:
        budgets = [max_new_tokens - len(heads[row]) for row in going]
        for row, rest in zip(going, greedy(lm, rows, budgets, changed), strict=True):
            heads[row] += rest
    return heads


def _cut(draft: Sequence[int], max_new_tokens: int, stop_ids: frozenset[int]) -> list[int]:
    """A draft can be no longer than a completion: up to its end-of-turn token and the budget."""
    ids = list(draft[:max_new_tokens])
    return ids[: next((place + 1 for place, token in enumerate(ids) if token in stop_ids), len(ids))]


def by_start(changes: Sequence[Change], site: Site, reuse: bool) -> dict[int, list[int]]:
    """Changes that can share a forward pass: by the entry of the residual stream at which they act."""
    groups: dict[int, list[int]] = {}
    for index, change in enumerate(changes):
        groups.setdefault(stream_index(min(change.layers), site) if reuse and change.layers else 0, []).append(index)
    return groups


def traced_chunks(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]], start: int, batch: int
) -> Iterator[tuple[list[int], Trace]]:
    """Prompts of similar length with their drafts, and the residual stream at ``start`` without any change."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]) + len(drafts[index]))
    for first in range(0, len(order), batch):
        chunk = order[first : first + batch]
        yield chunk, trace(lm, [[*prompts[index], *drafts[index]] for index in chunk], keep=(start,))


def pieces(lm: LanguageModel, traced: Trace, changes: int, longest: int, batch: int) -> Iterator[tuple[range, range]]:
    """Some traced prompts times some changes: at most ``batch`` rows that go well into one pass, and ``LOGITS`` logits, at a time."""
    prompts, tokens = traced.ids.shape
    rows = min(batch, LOGITS // ((longest + 1) * int(lm.core.config.get_text_config().vocab_size)))
    rows = rows_per_pass(lm.device, tokens, rows)
    per_pass = max(1, rows // changes)
    for first in range(0, prompts, per_pass):
        for begin in range(0, changes, rows):
            yield range(first, min(first + per_pass, prompts)), range(begin, min(begin + rows, changes))


@torch.no_grad()
def _check(
    lm: LanguageModel,
    drafts: Sequence[Sequence[int]],
    changes: Sequence[Change],
    chunk: Sequence[int],
    group: Sequence[int],
    traced: Trace,
    start: int,
    max_new_tokens: int,
    site: Site,
) -> list[_Fork]:
    """Forks of every change in ``group`` on every prompt in ``chunk``."""
    stop_ids = lm.stop_ids
    edits = [changes[which].after(len(drafts[index])) for which in group for index in chunk]
    longest = max(len(drafts[index]) for index in chunk)
    with resuming(lm, traced, start, len(group)) if start else nullcontext(), changing(lm, edits, site):
        predicted = _choices(lm, traced, len(group), longest + 1)
    # Column ``longest`` is what follows the draft: of no interest unless the draft stops short of a completion.
    expected = torch.full((len(chunk), longest + 1), _IGNORED, dtype=torch.long)
    for row, index in enumerate(chunk):
        draft = list(drafts[index])
        finished = len(draft) == max_new_tokens or (bool(draft) and draft[-1] in stop_ids)
        expected[row, longest - len(draft) :] = torch.tensor([*draft, _IGNORED if finished else _UNKNOWN])
    expected = expected.repeat(len(group), 1)
    wrong = (predicted != expected) & (expected != _IGNORED)
    forks = []
    for row in torch.nonzero(wrong.any(dim=1)).flatten().tolist():
        which, index = group[row // len(chunk)], chunk[row % len(chunk)]
        place = int(wrong[row].int().argmax())
        forks.append(_Fork(which, index, place - (longest - len(drafts[index])), int(predicted[row, place])))
    return forks


def _choices(lm: LanguageModel, traced: Trace, repeats: int, keep: int) -> torch.Tensor:
    """Greedy choices after each of the last ``keep`` tokens of every row, ``row pos``, on the CPU."""
    ids, mask = traced.ids.repeat(repeats, 1), traced.mask.repeat(repeats, 1)
    places = places_of(mask)
    out = lm.core(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=keep)
    choices: torch.Tensor = out.logits.argmax(dim=-1).cpu()
    return choices
