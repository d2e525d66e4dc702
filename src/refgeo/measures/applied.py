"""Many changes to the residual stream on the same prompts, read at the next token; only forward passes.

What a change at one layer leaves as it was is not computed again, and several changes share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refgeo.config.measures import GeometrySettings
from refgeo.lm.batch import rows_per_pass
from refgeo.lm.changes import Change, changing
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Edit, block_at, editing, next_logits, side
from refgeo.lm.resume import Trace, resumable, resuming, stream_index, trace
from refgeo.measures.scan import kl_divergence, refusal_log_odds


class Applied(NamedTuple):
    """What changes do to the next token: refusal log-odds, KL(unchanged || changed) in nats, mean last-token state."""

    odds: Float[Tensor, "cand prompt"]
    kl: Float[Tensor, "cand prompt"]
    states: Float[Tensor, "cand prompt d_model"]


@torch.no_grad()
def apply_changes(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    changes: Sequence[Change],
    layers: Sequence[int],
    tokens: Sequence[int],
    settings: GeometrySettings,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[Applied, Applied]:
    """Next-token effects of every change on every prompt: the model as it is (one row), and changed. States average ``layers``.

    A change at one layer goes on from the cached stream that enters it, several changes in one batch.
    """
    reuse, wanted = resumable(lm, prompts[0]), torch.tensor(sorted(tokens), dtype=torch.long)

    def nothing(rows: int) -> Applied:
        odds, kl = (torch.full((rows, len(prompts)), torch.nan, dtype=torch.float64) for _ in range(2))
        return Applied(odds, kl, torch.zeros(rows, len(prompts), lm.width))

    plain, changed = nothing(1), nothing(len(changes))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    most = rows_per_pass(lm.device, len(prompts[order[-1]]), settings.batch)
    starts: dict[int, list[int]] = {}
    for index, change in enumerate(changes):
        start = 0 if change.layer is None or not reuse else stream_index(change.layer, settings.site)
        starts.setdefault(start, []).append(index)
    for begin in range(0, len(order), most):
        chosen = torch.tensor(order[begin : begin + most])
        traced = trace(lm, [prompts[index] for index in chosen])
        before = _log_softmax(traced.logits)
        plain.odds[0, chosen], plain.kl[0, chosen] = refusal_log_odds(before, wanted), 0.0
        plain.states[0, chosen] = torch.stack([_last(traced, layer, settings) for layer in layers]).mean(dim=0)
        size = max(1, most // len(chosen))
        for start, group in starts.items():
            for first in range(0, len(group), size):
                part = group[first : first + size]
                log_probs, states = _changed(lm, traced, [changes[index] for index in part], start, layers, settings)
                where = torch.tensor(part)[:, None], chosen[None]
                changed.odds[where] = refusal_log_odds(log_probs, wanted).view(len(part), -1)
                changed.kl[where] = kl_divergence(before.repeat(len(part), 1), log_probs).view(len(part), -1)
                changed.states[where] = states.view(len(part), len(chosen), -1)
        advance(len(chosen) * len(changes))
    return plain, changed


def _changed(
    lm: LanguageModel, traced: Trace, changes: Sequence[Change], start: int, layers: Sequence[int], settings: GeometrySettings
) -> tuple[Float[Tensor, "row vocab"], Float[Tensor, "row d_model"]]:
    """Every change on one traced batch, change-major."""
    size, repeats = len(traced.ids), len(changes)
    seen: dict[int, Tensor] = {}

    def keep(at: int) -> Edit:
        def edit(hidden: Tensor) -> Tensor:
            seen[at] = hidden[:, -1].float()
            return hidden

        return edit

    per_row = [change for change in changes for _ in range(size)]
    reading = [(block_at(lm, at), side(settings.site), keep(at)) for at in layers]
    resumed = resuming(lm, traced, start, repeats) if start else nullcontext()
    with resumed, changing(lm, per_row, settings.site), editing(reading):
        logits = next_logits(lm, traced.ids.repeat(repeats, 1), traced.mask.repeat(repeats, 1))
    for at in layers:
        if stream_index(at, settings.site) < start:  # not run; as it was
            seen[at] = _last(traced, at, settings).to(logits.device).repeat(repeats, 1)
    return _log_softmax(logits), torch.stack([seen[at] for at in layers]).mean(dim=0).cpu()


def _last(traced: Trace, layer: int, settings: GeometrySettings) -> Float[Tensor, "batch d_model"]:
    return traced.streams[stream_index(layer, settings.site)][:, -1].float().cpu()


def _log_softmax(logits: Tensor) -> Tensor:
    # Apple's devices have no double precision.
    wide = logits.cpu() if logits.device.type == "mps" else logits
    scaled: Tensor = torch.log_softmax(wide.double(), dim=-1).cpu()
    return scaled
