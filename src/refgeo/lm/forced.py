"""Given completions read under many interventions at once: how far next-token distributions move, and what it costs in likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refgeo.lm.batch import places_of
from refgeo.lm.changes import Change, changing
from refgeo.lm.drafts import by_start, pieces, traced_chunks
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site
from refgeo.lm.resume import Trace, resumable, resuming


class Forced(NamedTuple):
    """What each change does while every prompt's given completion is read; NaN where a completion has no token.

    ``kl_first`` and ``kl_mean``: KL(as it is || changed) in nats, of the first token's distribution and averaged over the completion.
    ``nll``: mean negative log-likelihood of the completion's tokens in nats; ``nll_before`` without any change.
    """

    kl_first: Float[Tensor, "cand prompt"]
    kl_mean: Float[Tensor, "cand prompt"]
    nll: Float[Tensor, "cand prompt"]
    nll_before: Float[Tensor, " prompt"]


@torch.no_grad()
def read_forced(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    changes: Sequence[Change],
    site: Site = "block_output",
    batch: int = 256,
) -> Forced:
    """Read ``completions`` after ``prompts`` (token ids) under every change, many in one forward pass; nothing is generated.

    Tokens of a completion count as generated ones. Results do not depend on ``batch``, the number of rows per pass.
    """
    shape = len(changes), len(prompts)
    first, mean, nll = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(3))
    before = torch.full((len(prompts),), torch.nan, dtype=torch.float64)
    reuse = bool(prompts) and resumable(lm, prompts[0])
    groups = by_start(changes, site, reuse) or {0: []}
    known = False
    for start, group in groups.items():
        for chunk, traced in traced_chunks(lm, prompts, completions, start, batch):
            longest = max(len(completions[index]) for index in chunk)
            if not longest:
                continue
            targets, inside = _targets(completions, chunk, longest)
            plain = _log_probs(lm, traced, 1, longest)
            if not known:
                before[torch.tensor(chunk)] = _likelihood(plain, targets, inside)
            for rows, part in pieces(lm, traced, len(group), longest, batch):
                at = slice(rows.start, rows.stop)
                where = torch.tensor([group[entry] for entry in part])[:, None], torch.tensor([chunk[row] for row in rows])[None]
                edits = [changes[group[entry]].after(len(completions[chunk[row]])) for entry in part for row in rows]
                some = traced.rows(rows.start, rows.stop)
                with resuming(lm, some, start, len(part)) if start else nullcontext(), changing(lm, edits, site):
                    after = _log_probs(lm, some, len(part), longest)
                base, wanted, mask = (each[at].repeat(len(part), *[1] * (each.ndim - 1)) for each in (plain, targets, inside))
                kl = (base.exp() * (base - after)).sum(dim=-1).clamp(min=0.0)
                begins = longest - mask.sum(dim=1, keepdim=True)
                opened = torch.where(mask.any(dim=1), kl.gather(1, begins.clamp(max=longest - 1))[:, 0], torch.nan)
                for table, found in ((first, opened), (mean, _mean(kl, mask)), (nll, _likelihood(after, wanted, mask))):
                    table[where] = found.double().view(len(part), len(rows))
        known = True
    return Forced(first, mean, nll, before)


def _targets(completions: Sequence[Sequence[int]], chunk: Sequence[int], longest: int) -> tuple[Tensor, Tensor]:
    """Token ids of the completions aligned at their ends, and which columns of a row belong to it."""
    ids = torch.zeros(len(chunk), longest, dtype=torch.long)
    inside = torch.zeros(len(chunk), longest, dtype=torch.bool)
    for row, index in enumerate(chunk):
        count = len(completions[index])
        if count:
            ids[row, longest - count :], inside[row, longest - count :] = torch.tensor(completions[index]), True
    return ids, inside


def _log_probs(lm: LanguageModel, traced: Trace, repeats: int, keep: int) -> Tensor:
    """Log-probabilities behind each of the last ``keep`` tokens, ``row pos vocab``, in float32 on the CPU."""
    ids, mask = traced.ids.repeat(repeats, 1), traced.mask.repeat(repeats, 1)
    places = places_of(mask)
    out = lm.core(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=keep + 1)
    scaled: Tensor = torch.log_softmax(out.logits[:, :-1].float(), dim=-1).cpu()
    return scaled


def _likelihood(log_probs: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    return _mean(-log_probs.gather(2, targets[:, :, None])[:, :, 0], inside)


def _mean(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over a row's own columns, in float64; NaN where it has none."""
    total: Tensor = torch.where(inside, values, 0.0).double().sum(dim=1) / inside.sum(dim=1)
    return total
