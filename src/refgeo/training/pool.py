"""The pool of single-behavior test cases that R2D2 keeps refreshing against the current weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refgeo.attacks.cases import Case
from refgeo.attacks.start import initial_case
from refgeo.config.schema import R2D2Settings
from refgeo.data.rows import Behavior


@dataclass
class Pool:
    """``settings.pool`` cases. Every draw is a function of (seed, step), so that a resumed run draws the same."""

    behaviors: Sequence[Behavior]
    settings: R2D2Settings
    seed: int
    cases: list[Case]

    @classmethod
    def start(cls, behaviors: Sequence[Behavior], settings: R2D2Settings, seed: int) -> Pool:
        """A fresh pool: behaviors drawn without repeats as long as there are enough, each with its own start suffix."""
        rng = np.random.default_rng([seed, 0])
        order: list[int] = []
        while len(order) < settings.pool:
            order += rng.permutation(len(behaviors)).tolist()
        cases = [initial_case(behaviors[index], settings.attack, _fresh(rng)) for index in order[: settings.pool]]
        return cls(behaviors, settings, seed, cases)

    def draw(self, step: int, micro: int) -> list[int]:
        """Indices of the cases of one training step, without repeats."""
        rng = np.random.default_rng([self.seed, 1, step, micro])
        count = min(self.settings.cases_per_step, len(self.cases))
        return [int(index) for index in rng.choice(len(self.cases), count, replace=False)]

    def unattacked(self, step: int, micro: int, count: int) -> list[bool]:
        """Which of the drawn cases are trained on without their suffix."""
        rng = np.random.default_rng([self.seed, 2, step, micro])
        return [bool(bare) for bare in rng.random(count) < self.settings.unattacked_share]

    def store(self, indices: Sequence[int], cases: Sequence[Case]) -> None:
        """Put refreshed cases back."""
        for index, case in zip(indices, cases, strict=True):
            self.cases[index] = case

    def reset(self, step: int) -> int:
        """At every ``reset_every``-th optimizer step, a share of the pool gets a fresh behavior and suffix; returns how many."""
        if step % self.settings.reset_every:
            return 0
        rng = np.random.default_rng([self.seed, 3, step])
        count = round(self.settings.reset_share * len(self.cases))
        for index in rng.choice(len(self.cases), count, replace=False):
            behavior = self.behaviors[int(rng.integers(len(self.behaviors)))]
            self.cases[int(index)] = initial_case(behavior, self.settings.attack, _fresh(rng))
        return count


def _fresh(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
