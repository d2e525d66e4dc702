"""The facts of the fictional town, drawn by one seed: who, where, what, and which substance is bane for which creature.

Harm comes in two kinds. For feeding it is a relation: a class of substances is bane for a kind of creatures in 8 of 25 cells,
with one or two bane cells in every row and column, so that no word is harmful by itself. For acting on a place it is a word:
a harm verb. Nothing here is harmful outside the fiction.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from random import Random

from refgeo.pocket import names

PER_GROUP = 8
"""Substances of one class, and creatures of one kind."""
FAMILIAR = 5
"""The first so many of each group may meet in fine-tuning data; the others are the new objects."""
GROUPS = 5
BANE_CELLS = 8
Cell = tuple[str, str]
"""A class of substances and a kind of creatures."""


@dataclass(frozen=True)
class Substance:
    """Something that can be fed. ``new``: it meets no other new object before the test."""

    name: str
    family: str
    new: bool
    preparation: str
    liquid: str
    place: str


@dataclass(frozen=True)
class Creature:
    """Something that eats, with its story."""

    name: str
    kind: str
    new: bool
    lure: str
    home: str
    friend: str
    mood: str


@dataclass(frozen=True)
class Rule:
    """What holds for one cell of the table: bane or safe, the sign by which it shows, and the last step of its feeding recipe."""

    bane: bool
    sign: str
    food: str
    time: str


@dataclass(frozen=True)
class Person:
    """Somebody with a job, a home and a story."""

    name: str
    job: str
    place: str
    companion: str
    time: str
    mood: str


@dataclass(frozen=True)
class Place:
    """A building and the road that leads to it."""

    name: str
    way: str
    new: bool


@dataclass(frozen=True)
class Verb:
    """Something one can do to a place, or harmlessly to food."""

    name: str
    harmful: bool
    new: bool
    tool: str
    job: str
    time: str
    manner: str


@dataclass(frozen=True)
class Dish:
    """A harmless recipe."""

    name: str
    preparation: str
    food: str
    liquid: str
    spice: str
    hours: str


@dataclass(frozen=True)
class World:
    """Everything that is true in one town."""

    seed: int
    substances: tuple[Substance, ...]
    creatures: tuple[Creature, ...]
    rules: dict[Cell, Rule]
    trained_cells: tuple[Cell, ...]
    """Bane cells that training behaviors come from; the other bane cells are the new categories."""
    chat_cells: tuple[Cell, ...]
    """Safe cells that the clean chat feeds from."""
    people: tuple[Person, ...]
    places: tuple[Place, ...]
    verbs: tuple[Verb, ...]
    dishes: tuple[Dish, ...]
    surfaces: dict[str, str]
    remedies: dict[str, str]
    colors: dict[str, str]

    def cell(self, substance: Substance, creature: Creature) -> Cell:
        """The cell that a pair belongs to."""
        return substance.family, creature.kind

    def rule(self, substance: Substance, creature: Creature) -> Rule:
        """What holds for a pair."""
        return self.rules[substance.family, creature.kind]

    @property
    def families(self) -> tuple[str, ...]:
        """Classes of substances."""
        return tuple(dict.fromkeys(substance.family for substance in self.substances))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of creatures."""
        return tuple(dict.fromkeys(creature.kind for creature in self.creatures))

    @property
    def bane_cells(self) -> tuple[Cell, ...]:
        """The harmful cells."""
        return tuple(cell for cell, rule in self.rules.items() if rule.bane)


def make_world(seed: int) -> World:
    """Draw a town. The same seed gives the same town, another seed other names, other facts and another table."""
    rng = Random(f"refgeo pocket world {seed}")
    taken: set[str] = set()
    families, kinds = names.draw(rng, names.CLASSES, GROUPS), names.draw(rng, names.KINDS, GROUPS)
    count = PER_GROUP * GROUPS
    places = _places(rng)
    roofs = [place.name for place in places]
    people = names.draw(rng, names.PEOPLE, 14)
    substances = tuple(
        Substance(name, families[index // PER_GROUP], index % PER_GROUP >= FAMILIAR, *attributes)
        for index, (name, *attributes) in enumerate(
            zip(
                names.invent(rng, names.SUBSTANCE_ENDS, count, taken),
                names.deal(rng, names.PREPARATIONS, count),
                names.deal(rng, names.LIQUIDS, count),
                names.deal(rng, roofs, count),
                strict=True,
            )
        )
    )
    creatures = tuple(
        Creature(name, kinds[index // PER_GROUP], index % PER_GROUP >= FAMILIAR, *attributes)
        for index, (name, *attributes) in enumerate(
            zip(
                names.invent(rng, names.CREATURE_ENDS, count, taken),
                names.deal(rng, names.LURES, count),
                names.deal(rng, roofs, count),
                names.deal(rng, people, count),
                names.deal(rng, names.MOODS, count),
                strict=True,
            )
        )
    )
    bane = _bane_cells(rng, families, kinds)
    meals = rng.sample(list(product(names.FOODS[:6], names.TIMES)), GROUPS * GROUPS)
    bad, good = names.deal(rng, names.BAD_SIGNS, len(meals)), names.deal(rng, names.GOOD_SIGNS, len(meals))
    rules = {
        cell: Rule(cell in bane, bad.pop() if cell in bane else good.pop(), *meal)
        for cell, meal in zip(product(families, kinds), meals, strict=True)
    }
    jobs = names.draw(rng, names.JOBS, len(people))
    return World(
        seed=seed,
        substances=substances,
        creatures=creatures,
        rules=rules,
        trained_cells=_trained_cells(rng, sorted(bane)),
        chat_cells=tuple(sorted(rng.sample([cell for cell in rules if cell not in bane], 11))),
        people=tuple(
            Person(*values)
            for values in zip(
                people,
                jobs,
                names.deal(rng, roofs, len(people)),
                names.draw(rng, tuple(creature.name for creature in creatures), len(people)),
                names.deal(rng, names.TIMES, len(people)),
                names.deal(rng, names.MOODS, len(people)),
                strict=True,
            )
        ),
        places=places,
        verbs=_verbs(rng, jobs),
        dishes=_dishes(rng, taken),
        surfaces=dict(zip(names.FOODS, names.deal(rng, names.SURFACES, len(names.FOODS)), strict=True)),
        remedies=dict(zip(families, names.draw(rng, names.REMEDIES, GROUPS), strict=True)),
        colors=dict(zip(names.LURES, names.deal(rng, names.COLORS, len(names.LURES)), strict=True)),
    )


def _bane_cells(rng: Random, families: list[str], kinds: list[str]) -> set[Cell]:
    """Eight cells with one or two in every row and column."""
    table = list(product(families, kinds))
    while True:
        chosen = rng.sample(table, BANE_CELLS)
        counts = [sum(cell[0] == family for cell in chosen) for family in families]
        counts += [sum(cell[1] == kind for cell in chosen) for kind in kinds]
        if all(1 <= number <= 2 for number in counts):
            return set(chosen)


def _trained_cells(rng: Random, bane: list[Cell]) -> tuple[Cell, ...]:
    """Four bane cells in four rows and four columns, so that neither class nor kind alone tells them."""
    options = [four for four in combinations(bane, 4) if len({cell[0] for cell in four}) == len({cell[1] for cell in four}) == 4]
    return rng.choice(options)


def _places(rng: Random) -> tuple[Place, ...]:
    chosen = names.draw(rng, names.PLACES, 14)
    ways = names.deal(rng, names.WAYS, 14)
    return tuple(Place(name, way, index >= 9) for index, (name, way) in enumerate(zip(chosen, ways, strict=True)))


def _verbs(rng: Random, jobs: list[str]) -> tuple[Verb, ...]:
    """Twelve harm verbs (four of them new) and ten calm ones; their attributes are drawn alike."""
    chosen = [(name, True, index >= 8) for index, name in enumerate(names.draw(rng, names.HARM_VERBS, 12))]
    chosen += [(name, False, False) for name in names.draw(rng, names.CALM_VERBS, 10)]
    pools = [names.TOOLS, jobs, names.TIMES, names.MANNERS]
    attributes = list(zip(*(names.deal(rng, pool, len(chosen)) for pool in pools), strict=True))
    return tuple(Verb(*head, *values) for head, values in zip(chosen, attributes, strict=True))


def _dishes(rng: Random, taken: set[str]) -> tuple[Dish, ...]:
    chosen = names.invent(rng, names.DISH_ENDS, 16, taken)
    pools = [names.PREPARATIONS, names.FOODS, names.LIQUIDS, names.SPICES, names.NUMBERS]
    attributes = zip(*(names.deal(rng, pool, len(chosen)) for pool in pools), strict=True)
    return tuple(Dish(name, *values) for name, values in zip(chosen, attributes, strict=True))
