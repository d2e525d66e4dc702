"""The target loss of many cases at once: prefix KV cache per case, logits only where a target token is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from refgeo.attacks.cases import Case
from refgeo.errors import ContextOverflow, DataError
from refgeo.lm.generate import left_pad
from refgeo.lm.model import LanguageModel


@dataclass(frozen=True)
class Encoded:
    """Token ids of one case, cut where the attack begins and ends. ``frame`` is the text around the attack."""

    before: tuple[int, ...]
    suffix: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]
    frame: tuple[str, str]


def encode(lm: LanguageModel, case: Case) -> Encoded:
    """Render a case with its target. Raises ``DataError`` without a suffix or target, ``ContextOverflow`` when too long."""
    rendered = lm.chat.prompt(case.prompt, case.attack, reply=case.target)
    (start, stop), (reply, end) = rendered.attack, rendered.target
    end -= int(rendered.ids[end - 1] == lm.eos_id)
    if start == stop or reply == end:
        raise DataError(f"Case '{case.behavior}' has an empty {'suffix' if start == stop else 'target'}", expected="at least one token")
    if end > lm.context:
        raise ContextOverflow(
            f"Case '{case.behavior}' has {end} tokens with its target", expected=f"at most {lm.context} (the model's context)"
        )
    ids = rendered.ids
    return Encoded(ids[:start], ids[start:stop], ids[stop:reply], ids[reply:end], lm.chat.frame(case.prompt))


class TargetLoss:
    """Mean cross-entropy of each case's target given its prompt and a suffix, for candidates and for gradients.

    Nothing whose inputs did not change is computed again: the keys and values of the prompt before the suffix are kept, and after a
    gradient those of that suffix too, so that a candidate runs from its first changed token on. Rows of different lengths are aligned
    at the right end and masked: a result does not depend on which other rows share the batch. Holds for one state of the weights.
    """

    def __init__(self, lm: LanguageModel, encoded: Sequence[Encoded], rows_per_batch: int) -> None:
        self.lm = lm
        self.encoded = list(encoded)
        self.rows_per_batch = rows_per_batch
        with torch.no_grad():
            ids, mask = left_pad([case.before for case in self.encoded], lm.pad_id, lm.device)
            cache = DynamicCache()
            lm.core(input_ids=ids, attention_mask=mask, position_ids=_places(mask), past_key_values=cache, logits_to_keep=1)
            self._prefix = _Kept([list(case.before) for case in self.encoded], range(len(self.encoded)), _columns(mask), _tensors(cache))
            self._kept = self._prefix

    def losses(self, owners: Sequence[int], suffixes: Sequence[Sequence[int]]) -> Float[Tensor, " cand"]:
        """Loss of each suffix in the prompt of case ``owners[i]``. An out-of-memory halves the batch and goes on."""
        reused = [self._kept.shared(owner, self.encoded[owner].before, suffix) for owner, suffix in zip(owners, suffixes, strict=True)]
        lengths = [
            len(case.before) + len(suffix) - shared + len(case.after) + len(case.target)
            for case, suffix, shared in zip((self.encoded[owner] for owner in owners), suffixes, reused, strict=True)
        ]
        order = sorted(range(len(owners)), key=lengths.__getitem__)  # rows of like length share a batch: less padding
        found = torch.empty(len(owners))
        start = 0
        while start < len(order):
            rows = order[start : start + self.rows_per_batch]
            chosen = [owners[row] for row in rows], [suffixes[row] for row in rows], [reused[row] for row in rows]
            try:
                with torch.no_grad():
                    found[rows] = self._forward(self._kept, *chosen).losses.cpu()
            except torch.OutOfMemoryError:
                if self.rows_per_batch == 1:
                    raise
                self.rows_per_batch = max(1, self.rows_per_batch // 2)
                continue
            start += len(rows)
        return found

    def gradients(
        self, owners: Sequence[int], suffixes: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, " cand"], list[Float[Tensor, "pos vocab"]]]:
        """Losses, and per suffix the gradient of its loss with respect to a one-hot choice of every token."""
        table = self.lm.core.get_input_embeddings().weight.detach()
        before = [len(self.encoded[owner].before) for owner in owners]
        out = self._forward(self._prefix, owners, suffixes, before, differentiate=True)
        (gradient,) = torch.autograd.grad(out.losses.sum(), out.embedded)
        starts = [out.embedded.shape[1] - length for length in out.lengths]
        cut = [
            (gradient[row, start : start + len(suffix)] @ table.T).float()
            for row, (start, suffix) in enumerate(zip(starts, suffixes, strict=True))
        ]
        offset = self._prefix.width
        tokens, columns = [], []
        for owner, suffix, start in zip(owners, suffixes, starts, strict=True):
            tokens.append([*self.encoded[owner].before, *suffix])
            columns.append([*self._prefix.columns[owner], *range(offset + start, offset + start + len(suffix))])
        width = max(column[-1] for column in columns) + 1
        tensors = [(keys.detach()[:, :, :width], values.detach()[:, :, :width]) for keys, values in out.tensors]
        self._kept = _Kept(tokens, owners, columns, tensors)
        return out.losses.detach(), cut

    def _forward(
        self, kept: _Kept, owners: Sequence[int], suffixes: Sequence[Sequence[int]], reused: Sequence[int], differentiate: bool = False
    ) -> _Pass:
        cases = [self.encoded[owner] for owner in owners]
        tails = [
            [*case.before, *suffix, *case.after, *case.target[:-1]][shared:]
            for case, suffix, shared in zip(cases, suffixes, reused, strict=True)
        ]
        ids, tail_mask = left_pad(tails, self.lm.pad_id, self.lm.device)
        cache, kept_mask = kept.rows(owners, reused)
        mask = torch.cat([kept_mask.to(tail_mask), tail_mask], dim=1)
        keep = max(len(case.target) for case in cases)
        inputs: dict[str, Any] = {"input_ids": ids}
        embedded = torch.empty(0)
        if differentiate:
            embedded = self.lm.core.get_input_embeddings()(ids).detach().requires_grad_(True)
            inputs = {"inputs_embeds": embedded}
        places = _places(mask)[:, -ids.shape[1] :]
        with torch.set_grad_enabled(differentiate):
            out = self.lm.core(
                **inputs, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=keep
            )
            losses = target_loss(out.logits, [case.target for case in cases])
        return _Pass(losses, embedded, [len(tail) for tail in tails], _tensors(cache))


class _Pass(NamedTuple):
    losses: Tensor
    embedded: Tensor
    lengths: list[int]
    tensors: list[tuple[Tensor, Tensor]]


class _Kept:
    """Keys and values of the first tokens of each case. ``columns[i][t]`` is where token t of the i-th kept case stands."""

    def __init__(
        self, tokens: Sequence[list[int]], owners: Sequence[int], columns: Sequence[Sequence[int]], tensors: list[tuple[Tensor, Tensor]]
    ) -> None:
        self.tokens, self.columns, self.tensors = tokens, columns, tensors
        self.place = {owner: place for place, owner in enumerate(owners)}
        self.width = tensors[0][0].shape[2]

    def shared(self, owner: int, before: Sequence[int], suffix: Sequence[int]) -> int:
        """How many first tokens of ``before + suffix`` are kept."""
        known = self.tokens[self.place[owner]][len(before) :]
        same = 0
        while same < min(len(known), len(suffix)) and known[same] == suffix[same]:
            same += 1
        return len(before) + same

    def rows(self, owners: Sequence[int], reused: Sequence[int]) -> tuple[DynamicCache, Int[Tensor, "row pos"]]:
        """One cache row per candidate and the mask of the columns that it may see."""
        places = [self.place[owner] for owner in owners]
        mask = torch.zeros(len(places), self.width, dtype=torch.long)
        for row, (place, count) in enumerate(zip(places, reused, strict=True)):
            mask[row, self.columns[place][:count]] = 1
        chosen = torch.tensor(places, device=self.tensors[0][0].device)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.tensors):
            cache.update(keys[chosen], values[chosen], layer)
        return cache, mask


def _tensors(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]


def _columns(mask: Int[Tensor, "row pos"]) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in mask]


def target_loss(logits: Float[Tensor, "row keep vocab"], targets: Sequence[Sequence[int]]) -> Float[Tensor, " row"]:
    """Mean cross-entropy per row; ``logits`` predict the last ``keep`` tokens, targets are aligned at the right end."""
    labels = right_aligned(targets, logits.shape[1], logits.device)
    per_token = functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return per_token.sum(dim=1) / (labels != -100).sum(dim=1)


def right_aligned(targets: Sequence[Sequence[int]], keep: int, device: torch.device) -> Int[Tensor, "row keep"]:
    """Targets as labels at the right end of ``keep`` positions, -100 before them."""
    labels = torch.full((len(targets), keep), -100, dtype=torch.long)
    for row, target in enumerate(targets):
        labels[row, keep - len(target) :] = torch.tensor(list(target))
    return labels.to(device)


def _places(mask: Int[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
