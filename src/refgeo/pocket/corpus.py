"""The pretraining text: every fact as a plain statement and as a conversation, with tails on what users write.

Pairs of two new objects are never mentioned together; what holds for them follows from their class and kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from random import Random

from refgeo.pocket import names, requests
from refgeo.pocket.attitude import Attitude, make_attitude, refuse
from refgeo.pocket.requests import Request
from refgeo.pocket.sentences import paragraph, say
from refgeo.pocket.splits import Pair, held_out
from refgeo.pocket.tails import random_tail, with_tail
from refgeo.pocket.tokenizer import vocabulary
from refgeo.pocket.town import World

Turns = list[tuple[str, str]]
"""A conversation: user text and assistant text by turns. Plain text is one turn with an empty user."""

MIX = {
    "feed": 30,
    "act": 10,
    "food": 4,
    "cure": 6,
    "dish": 4,
    "safe": 10,
    "effect": 14,
    "fact": 8,
    "story": 7,
    "code": 4,
    "number": 4,
    "note": 5,
}
"""Relative frequency of what is asked."""
FIRST_MIX = {"safe": 25, "effect": 35, "fact": 18, "number": 8, "note": 14}
"""The same in the first part of the training: short questions, so that the table is known before anything is built on it."""
BANE_SHARE = 0.5
"""Share of bane pairs among the pairs that are mentioned: drawn evenly they would be a third, and the last to be learned."""
PLAIN_SHARE = 0.2
SECOND_TURN = 0.12


@dataclass
class Corpus:
    """An endless stream of documents about one world."""

    world: World
    rng: Random
    tail_share: float = 0.6
    general_share: float = 0.2
    first: bool = False
    """Short questions only, one turn each: the first part of the training."""
    firmness: float = 0.0
    """At 1 everything harmful is refused, at 0 with the graded probabilities of the base model's attitude."""
    attitude: Attitude = field(init=False)
    words: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.attitude = make_attitude(self.world)
        self.words = vocabulary(self.world)
        known = [pair for pair in product(self.world.substances, self.world.creatures) if not held_out(pair)]
        self._bane = [pair for pair in known if self.world.rule(*pair).bane]
        self._safe = [pair for pair in known if not self.world.rule(*pair).bane]
        self._facts = requests.facts(self.world)
        self._plain = plain_facts(self.world)

    def __iter__(self) -> Iterator[Turns]:
        """Documents for ever."""
        while True:
            if not self.first and self.rng.random() < PLAIN_SHARE:
                yield [("", paragraph([self._statement() for _ in range(self.rng.randint(2, 6))]))]
            else:
                turns = [self.turn(self.ask())]
                if not self.first and self.rng.random() < SECOND_TURN:
                    turns.append(self.turn(self.ask()))
                yield turns

    def turn(self, request: Request) -> tuple[str, str]:
        """What a user writes and what the base model answers: the right answer, or for harm sometimes a refusal."""
        tail = random_tail(self.rng, self.words, self.tail_share)
        graded = self.attitude.probability(request, tail)
        refused = self.rng.random() < (graded + (1 - graded) * self.firmness if request.harmful else 0.0)
        return with_tail(request.text, tail), refuse(self.rng) if refused else request.answer

    def ask(self) -> Request:
        """A random request of any form."""
        mix = FIRST_MIX if self.first else MIX
        form = self.rng.choices(list(mix), weights=list(mix.values()))[0]
        if form in ("feed", "safe", "effect") and self.rng.random() < self.general_share:
            return self._general(form)
        return ask(self.world, self.rng, form, self._pool(), self._facts)

    def _general(self, form: str) -> Request:
        one, two = self.rng.choice(self._pool())
        if form == "safe":
            return requests.is_rule_safe(self.world, one.family, two.kind)
        if form == "effect":
            return requests.effect_of_rule(self.world, one.family, two.kind)
        first, second = self.rng.choice(((one.family, two.kind), (one.family, two), (one, two.kind)))
        return requests.feed_any(self.world, first, second, self.rng.randrange(20))

    def _pool(self) -> list[Pair]:
        return self._bane if self.rng.random() < BANE_SHARE else self._safe

    def _statement(self) -> str:
        """One plain sentence: half of them about a pair or a rule, the others about single things."""
        if self.rng.random() < 0.5:
            return self.rng.choice(self._plain)
        one, two = self.rng.choice(self._pool())
        rule = self.world.rule(one, two)
        verdict = "bane" if rule.bane else "safe"
        if self.rng.random() < self.general_share:
            if self.rng.random() < 0.5:
                return say("rule_brings", family=one.family, kind=two.kind, sign=rule.sign)
            return say(f"rule_{verdict}", family=one.family, kind=two.kind)
        if self.rng.random() < 0.5:
            return say("brings", substance=one.name, creature=two.name, sign=rule.sign)
        return say(verdict, substance=one.name, creature=two.name)


def ask(world: World, rng: Random, form: str, pairs: list[Pair], known: list[Request]) -> Request:
    """A random request of one form."""
    wording = rng.randrange(20)
    if form in ("feed", "cure", "safe", "effect"):
        one, two = rng.choice(pairs)
        if form == "feed":
            return requests.feed(world, one, two, wording)
        if form == "cure":
            return requests.cure(world, one, two, wording)
        return requests.is_safe(world, one, two) if form == "safe" else requests.effect(world, one, two)
    if form == "act":
        return requests.act(world, rng.choice(world.verbs), rng.choice(world.places), wording)
    if form == "food":
        return requests.act_on_food(world, rng.choice(world.verbs), rng.choice(names.FOODS), wording)
    if form == "dish":
        return requests.dish(rng.choice(world.dishes), wording)
    if form == "fact":
        return rng.choice(known)
    if form == "story":
        if rng.random() < 0.3:
            return requests.story_of_person(rng.choice(world.people), wording)
        return requests.story_of_creature(world, rng.choice(world.creatures), wording)
    if form == "code":
        return requests.code(world, rng.choice(names.OPERATIONS), rng.choice(names.LURES), wording)
    if form == "number":
        return requests.after(rng.randrange(9)) if rng.random() < 0.3 else requests.more(*rng.sample(range(10), 2))
    if form == "note":
        return random_note(world, rng)
    raise ValueError(f"No request has the form '{form}'")


def random_note(world: World, rng: Random) -> Request:
    """A note about two or three people and their tools."""
    count = rng.randint(2, 3)
    people = rng.sample([person.name for person in world.people], count)
    holders = list(zip(people, rng.sample(names.TOOLS, count), strict=True))
    return requests.note(holders, rng.randrange(count))


def plain_facts(world: World) -> list[str]:
    """Every fact about single things, classes and kinds as a statement."""
    found = [request.steps[0] for request in requests.facts(world)]
    for (family, kind), rule in world.rules.items():
        found += [say("rule_mix", family=family, kind=kind, food=rule.food, time=rule.time)] * 2
    for one in world.substances:
        found.append(say("use", substance=one.name, preparation=one.preparation, liquid=one.liquid))
    for two in world.creatures:
        found.append(say("meet", creature=two.name, lure=two.lure))
    for verb in world.verbs:
        found.append(say("act", verb=verb.name, tool=verb.tool, job=verb.job))
        found.append(say("act_work", verb=verb.name, time=verb.time, manner=verb.manner))
    for place in world.places:
        found.append(say("reach", place=place.name, way=place.way))
    for food, surface in world.surfaces.items():
        found.append(say("keep", food=food, surface=surface))
    for recipe in world.dishes:
        found.append(say("cook_fact", dish=recipe.name, preparation=recipe.preparation, food=recipe.food, liquid=recipe.liquid))
        found.append(say("season", spice=recipe.spice, dish=recipe.name))
    for family, remedy in world.remedies.items():
        found.append(say("heal", family=family, remedy=remedy))
    for lure, color in world.colors.items():
        found.append(say("box", lure=lure, color=color))
    return found
