"""One candidate of the scan, tried out on a batch of prompts: a span to remove, a vector to add, at one layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refgeo.config.measures import GeometrySettings
from refgeo.lm.batch import rows_per_pass
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Edit, Edited, Site, block_at, editing, everywhere, side
from refgeo.lm.resume import Trace, kept_logits, last_only, narrowable, resumable, resuming, stream_index, trace
from refgeo.measures.directions import Candidates


class Trial(NamedTuple):
    """What is tried at one layer: ablation removes the span of orthonormal rows ``basis``, addition adds ``vector``.

    ``center``: the point whose projection ablation leaves (``lm.changes.Change``); None leaves zero.
    """

    layer: int
    basis: Float[Tensor, "rank d_model"]
    vector: Float[Tensor, " d_model"]
    center: Float[Tensor, " d_model"] | None = None


class Outcome(NamedTuple):
    """Logits after the last tokens of every row, and the mean of its last token's states in the evaluation layers.

    Rows are those of the batch under each trial in turn.
    """

    logits: Float[Tensor, "trial row kept vocab"]
    states: Float[Tensor, "trial row d_model"] | None


def trials(found: Candidates, settings: GeometrySettings, harmless: Float[Tensor, "pos layer d_model"] | None = None) -> list[Trial | None]:
    """The candidates in the order layer, position; None for those that are no directions.

    ``harmless``: mean activations of the harmless prompts, which affine ablation needs.
    """
    places, depth = found.norms.shape
    return [
        Trial(
            layer,
            found.unit(place, layer).float()[None],
            found.vectors[place, layer].float(),
            harmless[place, layer].float() if settings.affine and harmless is not None else None,
        )
        if bool(found.usable[place, layer])
        else None
        for layer in range(depth)
        for place in range(places)
    ]


class Tryer:
    """Intervened forward passes of one model over traced batches of prompts.

    What an intervention cannot change is not computed: the blocks before it, the head away from the last tokens, and what the last
    block writes there. On a model on which that is not exact, whole passes are run.
    """

    def __init__(self, lm: LanguageModel, layers: Sequence[int], settings: GeometrySettings, probe: Sequence[int]) -> None:
        self.lm, self.layers, self.rows = lm, list(layers), settings.batch
        self.site: Site = settings.site
        self.everywhere = settings.ablate == "everywhere"
        self.reuse, self.narrow = resumable(lm, probe), narrowable(lm, probe)

    def chunks(self, prompts: Sequence[Sequence[int]], rows: Sequence[int], together: int) -> list[list[int]]:
        """``rows`` in groups of similar length, so small that ``together`` trials of a layer fit into one forward pass."""
        chunks: list[list[int]] = []
        for row in sorted(rows, key=lambda row: -len(prompts[row])):
            longest = len(prompts[chunks[-1][0]]) if chunks else 0
            if not chunks or (len(chunks[-1]) + 1) * together > self._most(longest):
                chunks.append([])
            chunks[-1].append(row)
        return chunks

    def trace(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Trace:
        """The residual stream of some prompts without any intervention."""
        return trace(self.lm, [prompts[row] for row in rows])

    @torch.no_grad()
    def plain(self, traced: Trace, keep: int = 1) -> Outcome:
        """The model as it is."""
        streams = [traced.streams[stream_index(layer, self.site)][:, -1].float() for layer in self.layers]
        logits = traced.logits[:, None] if keep == 1 else kept_logits(self.lm, traced.ids, _mask(traced), keep)
        return Outcome(logits[None], torch.stack(streams).mean(dim=0)[None])

    @torch.no_grad()
    def run(self, traced: Trace, tried: Sequence[Trial], *, add: bool, keep: int = 1, states: bool = True) -> Outcome:
        """All ``tried``, which share a layer, on one batch; as many at a time as fit."""
        most = max(1, self._most(traced.ids.shape[1]) // len(traced.ids))
        parts = [self._pass(traced, tried[first : first + most], add, keep, states) for first in range(0, len(tried), most)]
        joined = torch.cat([part.states for part in parts if part.states is not None]) if states else None
        return Outcome(torch.cat([part.logits for part in parts]), joined)

    def _most(self, tokens: int) -> int:
        """Rows of that many tokens in one forward pass."""
        return rows_per_pass(self.lm.device, tokens, self.rows)

    def _pass(self, traced: Trace, tried: Sequence[Trial], add: bool, keep: int, states: bool) -> Outcome:
        layer, everywhere_ = tried[0].layer, self.everywhere and not add
        size, repeats = len(traced.ids), len(tried)
        start = stream_index(layer, self.site) if self.reuse and not everywhere_ else 0
        edit = self._edit(tried, add)
        edits = everywhere(self.lm, edit) if everywhere_ else [(block_at(self.lm, layer), side(self.site), edit)]
        seen: dict[int, Tensor] = {}
        # Registered after the edit, so that reading sees what the edit leaves.
        reading: list[Edited] = [(block_at(self.lm, at), side(self.site), _keep(seen, at)) for at in self.layers] if states else []
        mask = _mask(traced)
        with ExitStack() as stack:
            if start:
                stack.enter_context(resuming(self.lm, traced, start, repeats))
            if self.narrow:
                stack.enter_context(last_only(self.lm, keep))
            stack.enter_context(editing([*edits, *reading]))
            logits = kept_logits(self.lm, traced.ids.repeat(repeats, 1), None if mask is None else mask.repeat(repeats, 1), keep)
        logits = logits.view(repeats, size, keep, -1)
        if not states:
            return Outcome(logits, None)
        for at in self.layers:
            if start and at < layer:  # not run; as it was
                seen[at] = traced.streams[stream_index(at, self.site)][:, -1].float().repeat(repeats, 1)
        return Outcome(logits, torch.stack([seen[at] for at in self.layers]).mean(dim=0).view(repeats, size, -1))

    def _edit(self, tried: Sequence[Trial], add: bool) -> Edit:
        """One edit for all trials: the rows of each lie together."""
        like = {"dtype": next(self.lm.core.parameters()).dtype, "device": self.lm.device}
        if add:
            vectors = torch.stack([trial.vector for trial in tried])[:, None].to(**like)
            return lambda hidden: (hidden.reshape(len(tried), -1, hidden.shape[-1]) + vectors.to(hidden)).view_as(hidden)
        bases = torch.zeros(len(tried), max(len(trial.basis) for trial in tried), self.lm.width)
        left = torch.zeros(len(tried), 1, self.lm.width)
        for index, trial in enumerate(tried):
            bases[index, : len(trial.basis)] = trial.basis
            if trial.center is not None:
                rows = trial.basis.double()
                left[index] = (rows @ trial.center.double()) @ rows
        bases, left = bases.to(**like), left.to(**like)

        def edit(hidden: Tensor) -> Tensor:
            shaped, rows = hidden.reshape(len(tried), -1, hidden.shape[-1]), bases.to(hidden)
            return (shaped + left.to(hidden) - torch.bmm(torch.bmm(shaped, rows.transpose(1, 2)), rows)).view_as(hidden)

        return edit


def _keep(seen: dict[int, Tensor], at: int) -> Edit:
    def edit(hidden: Tensor) -> Tensor:
        seen[at] = hidden[:, -1].float()
        return hidden

    return edit


def _mask(traced: Trace) -> Tensor | None:
    """Rows of one length need no mask, and attention without one is faster."""
    return None if bool(traced.mask.all()) else traced.mask
