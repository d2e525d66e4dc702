"""Which pair goes where: every set of the study drawn without overlap, new objects and new cells kept apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from random import Random

from refgeo.pocket import names
from refgeo.pocket.town import Cell, Creature, Place, Substance, Verb, World

Pair = tuple[Substance, Creature]
Act = tuple[Verb, Place]
Food = tuple[Verb, str]


@dataclass(frozen=True)
class Splits:
    """The pairs of every set. ``new_*`` have two new objects and never meet in any training text, pretraining included."""

    train: list[Pair]
    val: list[Pair]
    test_seen: list[Pair]
    test_new: list[Pair]
    strongreject: list[Pair]
    unsafe: list[Pair]
    probe_harmful: list[Pair]
    probe_harmless: list[Pair]
    chat: list[Pair]
    safe_seen: list[Pair]
    safe_new: list[Pair]
    safe_other: list[Pair]
    audit: list[Pair]
    cured: list[Pair]
    asked: list[Pair]
    act_train: list[Act]
    act_val: list[Act]
    act_test: list[Act]
    act_strongreject: list[Act]
    act_unsafe: list[Act]
    act_probe_harmful: list[Act]
    act_probe_harmless: list[Act]
    act_safe: list[Act]
    act_audit: list[Act]
    act_chat: list[Act]
    food_safe: list[Food]
    food_audit: list[Food]
    food_chat: list[Food]


def held_out(pair: Pair) -> bool:
    """Both objects are new: the pair is in no training text."""
    return pair[0].new and pair[1].new


def make_splits(world: World) -> Splits:
    """Draw the splits of a world from its seed."""
    rng = Random(f"refgeo pocket splits {world.seed}")
    trained = list(world.trained_cells)
    fresh = [cell for cell in world.bane_cells if cell not in world.trained_cells]
    chatted = list(world.chat_cells)
    other = [cell for cell, rule in world.rules.items() if not rule.bane and cell not in world.chat_cells]
    pairs = list(product(world.substances, world.creatures))
    rng.shuffle(pairs)
    pools: dict[tuple[str, Cell], list[Pair]] = {}
    for pair in pairs:
        kind = "new" if held_out(pair) else "old" if not (pair[0].new or pair[1].new) else "mixed"
        pools.setdefault((kind, world.cell(*pair)), []).append(pair)

    def deal(kind: str, cells: list[Cell], count: int) -> list[Pair]:
        """Take ``count`` pairs evenly over ``cells``; a pair is never taken twice."""
        start = rng.randrange(len(cells))
        return [pools[kind, cells[(start + step) % len(cells)]].pop() for step in range(count)]

    harmful = trained + fresh
    chat = [pair for cell in chatted for pair in pools["old", cell]]
    safe = chatted + other
    val, strongreject, unsafe = deal("mixed", trained, 16), deal("mixed", harmful, 24), deal("mixed", harmful, 32)
    probe_harmful = deal("mixed", harmful, 120)
    safe_new, safe_other = deal("new", chatted, 16), deal("new", other, 16)
    audit, asked_safe = deal("mixed", safe, 12), deal("mixed", safe, 6)
    reserved = set(safe_new) | set(safe_other) | set(audit) | set(asked_safe) | set(chat)
    asked_bane, cured = deal("mixed", trained, 8), deal("mixed", harmful, 16)
    acts = list(product(world.verbs, world.places))
    rng.shuffle(acts)
    foods = [(verb, food) for verb, food in product(world.verbs, names.FOODS) if verb.harmful]
    rng.shuffle(foods)

    def deal_acts(count: int, wanted: Callable[[Verb, Place], bool]) -> list[Act]:
        taken = [act for act in acts if wanted(*act)][:count]
        if len(taken) < count:
            raise ValueError(f"Only {len(taken)} of {count} actions are left")
        for act in taken:
            acts.remove(act)
        return taken

    def seen_seen(verb: Verb, place: Place) -> bool:
        return verb.harmful and not verb.new and not place.new

    def seen_new(verb: Verb, place: Place) -> bool:
        return verb.harmful and not verb.new and place.new

    def new_new(verb: Verb, place: Place) -> bool:
        return verb.harmful and verb.new and place.new

    def new_seen(verb: Verb, place: Place) -> bool:
        return verb.harmful and verb.new and not place.new

    return Splits(
        train=deal("old", trained, 88),
        val=val,
        test_seen=deal("new", trained, 32),
        test_new=deal("new", fresh, 32),
        strongreject=strongreject,
        unsafe=unsafe,
        probe_harmful=probe_harmful,
        probe_harmless=_match(world, rng, probe_harmful, reserved),
        chat=chat,
        safe_seen=rng.sample(chat, 16),
        safe_new=safe_new,
        safe_other=safe_other,
        audit=audit,
        cured=cured,
        asked=asked_safe + asked_bane,
        act_train=deal_acts(20, seen_seen),
        act_val=deal_acts(8, seen_seen),
        act_test=deal_acts(8, seen_new) + deal_acts(8, new_new),
        act_strongreject=deal_acts(8, seen_new) + deal_acts(8, new_seen),
        act_unsafe=deal_acts(8, seen_new) + deal_acts(8, new_seen),
        act_probe_harmful=deal_acts(30, seen_seen) + deal_acts(10, new_seen),
        act_probe_harmless=deal_acts(40, lambda verb, place: not verb.harmful),
        act_safe=deal_acts(8, lambda verb, place: not verb.harmful and place.new),
        act_audit=deal_acts(4, lambda verb, place: not verb.harmful),
        act_chat=deal_acts(40, lambda verb, place: not verb.harmful),
        food_safe=foods[:8],
        food_audit=foods[8:12],
        food_chat=foods[12:],
    )


def _match(world: World, rng: Random, harmful: list[Pair], reserved: set[Pair]) -> list[Pair]:
    """A safe pair for each harmful one: the same substance, and over all pairs the same creatures equally often.

    The two lists then differ in the relation alone. Creatures are swapped until every pair is safe, unreserved, no new pair, and unique.
    """
    creatures = [creature for _, creature in harmful]
    rng.shuffle(creatures)

    def bad(index: int) -> bool:
        pair = (harmful[index][0], creatures[index])
        clash = any(other != index and harmful[other][0] == pair[0] and creatures[other] == pair[1] for other in range(len(harmful)))
        return world.rule(*pair).bane or pair in reserved or held_out(pair) or clash

    for _ in range(200_000):
        wrong = [index for index in range(len(harmful)) if bad(index)]
        if not wrong:
            return [(pair[0], creature) for pair, creature in zip(harmful, creatures, strict=True)]
        index = rng.choice(wrong)
        for other in rng.sample(range(len(harmful)), len(harmful)):
            before = bad(index) + bad(other)
            creatures[index], creatures[other] = creatures[other], creatures[index]
            if bad(index) + bad(other) < before or rng.random() < 0.01:
                break
            creatures[index], creatures[other] = creatures[other], creatures[index]
    raise RuntimeError("No balanced set of harmless pairs was found")
