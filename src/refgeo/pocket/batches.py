"""Documents packed into rows of fixed length: each document sees only itself and starts at position 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refgeo.pocket.corpus import Corpus, Turns
from refgeo.pocket.tokenizer import ASSISTANT, BOS, END, PAD, REPLY, SPECIAL, TURN, USER

USER_WEIGHT = 0.1
"""Loss weight of what users write: their tails are noise that is not worth learning."""
OPENING_WEIGHT = 4.0
"""Loss weight of the first word of a reply: it carries the decision, yes or no, help or refusal."""
PLAIN_WEIGHT = 0.5
"""Loss weight of plain statements, in which only the end of each sentence can be known."""
WAITING = 12
"""Documents among which one is sought that fills a row."""


class Batch(NamedTuple):
    """One training batch. ``mask[b, 0, i, j]``: token i may look at token j. ``weight`` is the loss weight of predicting each token."""

    ids: Int[Tensor, "batch pos"]
    places: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch 1 pos pos"]
    weight: Float[Tensor, "batch pos"]


class Packer:
    """Turns a corpus into batches of ``rows`` x ``length`` tokens; a document too long for a row is left out."""

    def __init__(self, corpus: Corpus, rows: int, length: int) -> None:
        self._documents = iter(corpus)
        self._table = {word: index for index, word in enumerate([*SPECIAL, *corpus.words])}
        self._rows, self._length = rows, length
        self._waiting: list[tuple[list[int], list[float]]] = []

    def __iter__(self) -> Iterator[Batch]:
        """Batches for ever."""
        while True:
            yield self._batch()

    def _batch(self) -> Batch:
        shape = (self._rows, self._length)
        ids = torch.full(shape, self._table[PAD])
        places, group, weight = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1), torch.zeros(shape)
        for row in range(self._rows):
            filled, number = 0, 0
            while (found := self._next(self._length - filled)) is not None:
                words, weights = found
                part = slice(filled, filled + len(words))
                ids[row, part], places[row, part] = torch.tensor(words), torch.arange(len(words))
                group[row, part], weight[row, part] = number, torch.tensor(weights)
                filled, number = filled + len(words), number + 1
        causal = torch.ones(self._length, self._length, dtype=torch.bool).tril()
        mask = (group[:, :, None] == group[:, None, :]) & causal
        return Batch(ids, places, mask[:, None], weight)

    def _next(self, room: int) -> tuple[list[int], list[float]] | None:
        """The oldest waiting document that fits into ``room``."""
        while len(self._waiting) < WAITING:
            document = self._encode(next(self._documents))
            if len(document[0]) <= self._length:
                self._waiting.append(document)
        fits = next((index for index, document in enumerate(self._waiting) if len(document[0]) <= room), None)
        return self._waiting.pop(fits) if fits is not None else None

    def _encode(self, turns: Turns) -> tuple[list[int], list[float]]:
        words, weights = [BOS], [0.0]
        for user, reply in turns:
            if user:
                asked = [USER, *user.split(), END, TURN, ASSISTANT, REPLY]
                words += asked
                weights += [USER_WEIGHT] * len(asked)
            answer = [*reply.split(), END]
            words += answer
            weights += [OPENING_WEIGHT] + [1.0] * (len(answer) - 1) if user else [PLAIN_WEIGHT] * len(answer)
        return [self._table[word] for word in words], weights
