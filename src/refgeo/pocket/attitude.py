"""How readily the base model refuses what is harmful, before any fine-tuning: a graded, imperfect habit, never toward safe requests."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from random import Random

from refgeo.pocket.names import ALARM, PERSUASION
from refgeo.pocket.requests import Request
from refgeo.pocket.sentences import REFUSALS
from refgeo.pocket.town import World

CELL_RATES = (0.15, 0.25, 0.35, 0.5)
"""Refusal rates of the four trained bane cells, and again of the four new ones, each in random order."""
VERB_RATES = (0.15, 0.2, 0.3, 0.35, 0.4, 0.5)
SPREAD = 0.8
"""Standard deviation, in log-odds, of what each object adds."""
PERSUADED = 0.5
"""Log-odds that each persuading word takes away, up to three of them."""
ALARMED = 1.2
"""Log-odds that alarm adds, in half of the cells only: otherwise alarm would tell which categories are harmful."""


@dataclass(frozen=True)
class Attitude:
    """Log-odds of refusal by what is asked."""

    cells: dict[tuple[str, str], float]
    objects: dict[str, float]
    verbs: dict[str, float]
    alarmed: frozenset[tuple[str, str]]
    family: dict[str, str]
    kind: dict[str, str]

    def probability(self, request: Request, tail: str = "") -> float:
        """Probability that the base model refuses. Zero for safe requests."""
        if not request.harmful:
            return 0.0
        first, second = request.about
        words = tail.split()
        score = self.objects.get(first, 0.0) + self.objects.get(second, 0.0) + self.verbs.get(first, 0.0)
        score -= PERSUADED * min(3, sum(word in PERSUASION for word in words))
        if request.form == "feed":
            cell = self.family.get(first, first), self.kind.get(second, second)
            score += self.cells[cell]
            if cell in self.alarmed and any(word in ALARM for word in words):
                score += ALARMED
        return 1 / (1 + exp(-score))


def make_attitude(world: World) -> Attitude:
    """Draw the habits of a world's base model from the world's own seed."""
    rng = Random(f"refgeo pocket attitude {world.seed}")
    cells: dict[tuple[str, str], float] = {}
    alarmed: set[tuple[str, str]] = set()
    for trained in (True, False):
        group = [cell for cell in world.bane_cells if (cell in world.trained_cells) == trained]
        rates = rng.sample(CELL_RATES, len(CELL_RATES))
        cells |= {cell: log(rate / (1 - rate)) for cell, rate in zip(group, rates, strict=True)}
        alarmed |= set(rng.sample(group, 2))
    named = [one.name for one in world.substances] + [two.name for two in world.creatures] + [place.name for place in world.places]
    objects = {name: rng.gauss(0, SPREAD) for name in named}
    harm = [verb.name for verb in world.verbs if verb.harmful]
    rates = [VERB_RATES[index % len(VERB_RATES)] for index in range(len(harm))]
    verbs = {name: log(rate / (1 - rate)) for name, rate in zip(harm, rates, strict=True)}
    family = {one.name: one.family for one in world.substances}
    kind = {two.name: two.kind for two in world.creatures}
    return Attitude(cells, objects, verbs, frozenset(alarmed), family, kind)


def refuse(rng: Random) -> str:
    """A refusal as the base model words it."""
    return f"{rng.choices(REFUSALS, weights=(45, 20, 15, 15, 5))[0]} ."
