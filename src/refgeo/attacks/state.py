"""What one case remembers from step to step: its suffix, the buffer of the best seen, the gradient's momentum, and what it has spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refgeo.attacks.cases import Case

COLUMNS = ("behavior", "step", "loss", "attack", "tokens", "accepted", "candidates", "succeeded", "seconds", "flops")
"""Columns of the records."""


class Scored(NamedTuple):
    """A suffix and its loss. Ordered by loss; of equals, the one found first stays in front."""

    loss: float
    suffix: list[int]


@dataclass
class Search:
    """The search for one case. ``size`` is the buffer's; 0 keeps nothing and always moves on (HarmBench).

    ``met``: strings of other cases that were candidates here; ``judged``: texts that the judge has seen.
    """

    case: Case
    suffix: list[int]
    size: int
    momentum: float
    buffer: list[Scored] = field(default_factory=list)
    gradient: Float[Tensor, "pos vocab"] | None = None
    best: Case | None = None
    spent: float = 0.0
    seconds: float = 0.0
    records: list[dict[str, object]] = field(default_factory=list)
    met: set[tuple[int, ...]] = field(default_factory=set)
    judged: set[str] = field(default_factory=set)

    def start(self, scored: Sequence[Scored]) -> None:
        """Begin at the best of the initial suffixes."""
        self.buffer = sorted(scored, key=lambda one: one.loss)[: max(1, self.size)]
        self.suffix = list(self.buffer[0].suffix)

    def push(self, gradient: Float[Tensor, "pos vocab"]) -> Float[Tensor, "pos vocab"]:
        """The gradient to draw from: momentum * former + (1 - momentum) * this one (MAC, 2405.01229).

        The first, and one for a string of another length than before, stands for itself.
        """
        if self.gradient is not None and self.momentum and self.gradient.shape == gradient.shape:
            gradient = torch.lerp(gradient, self.gradient, self.momentum)
        self.gradient = gradient
        return gradient

    def offer(self, found: Scored) -> Scored:
        """Take the best candidate of a step; returns the suffix that the search goes on from.

        Without a buffer it is the candidate, better or worse. With one, the candidate enters if there is room or it is better than the
        worst kept, which then leaves (nanoGCG), and the search goes on from the best kept: with size 1, it only ever improves.
        """
        if self.size == 0:
            self.buffer = [found]
        elif len(self.buffer) < self.size or found.loss < self.buffer[-1].loss:
            self.buffer = sorted([*self.buffer[: self.size - 1], found], key=lambda one: one.loss)
        return self.buffer[0]

    def move(self, suffix: Sequence[int], text: str, loss: float) -> None:
        """Go on from this suffix."""
        self.suffix = list(suffix)
        self.case = replace(self.case, attack=text, loss=loss)
        if self.best is None or self.best.loss is None or loss < self.best.loss:
            self.best = self.case

    def note(self, step: int, accepted: bool, candidates: int, succeeded: bool | None, seconds: float, flops: float) -> None:
        """Write the record of a step. ``flops`` is what the case has spent in all so far, ``seconds`` its share of this step."""
        self.seconds += seconds
        self.spent = flops
        case = self.case
        values = (case.behavior, step, case.loss, case.attack, list(self.suffix), accepted, candidates, succeeded, seconds, flops)
        self.records.append(dict(zip(COLUMNS, values, strict=True)))
