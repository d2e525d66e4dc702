"""Clean chat as token batches: the order of the data is a function of (seed, position), so that any position can be resumed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from refgeo.data.rows import Chat
from refgeo.errors import DataError
from refgeo.lm.model import LanguageModel


class CleanBatches:
    """Conversations rendered once, drawn in a fresh random order in every epoch."""

    def __init__(self, lm: LanguageModel, chats: Sequence[Chat], batch: int, max_tokens: int, loss_on: str, seed: int) -> None:
        self._lm, self._batch, self._seed = lm, batch, seed
        self._rows: list[tuple[list[int], list[bool]]] = []
        limit = min(max_tokens, lm.context)
        for chat in chats:
            ids, written = lm.chat.conversation(chat.messages)
            ids, written = ids[:limit], written[:limit]
            if any(written):
                self._rows.append((ids, written if loss_on == "assistant" else [True] * len(ids)))
        if not self._rows:
            raise DataError("No conversation has an assistant turn within the token limit", fix="Check data.chat and train.max_tokens")
        self._epochs: dict[int, list[int]] = {}

    def batch(self, index: int) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """The ``index``-th batch of the run: ids, which tokens the loss counts, and the attention mask, padded at the right."""
        rows = [self._rows[self._place(index * self._batch + offset)] for offset in range(self._batch)]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), longest), self._lm.pad_id, dtype=torch.long)
        counted = torch.zeros_like(ids, dtype=torch.bool)
        mask = torch.zeros_like(ids)
        for place, (tokens, loss) in enumerate(rows):
            ids[place, : len(tokens)] = torch.tensor(tokens)
            counted[place, : len(tokens)] = torch.tensor(loss)
            mask[place, : len(tokens)] = 1
        device = self._lm.device
        return ids.to(device), counted.to(device), mask.to(device)

    def _place(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._rows))
        if epoch not in self._epochs:
            self._epochs = {epoch: np.random.default_rng([self._seed, 4, epoch]).permutation(len(self._rows)).tolist(), **self._epochs}
        return self._epochs[epoch][offset]
