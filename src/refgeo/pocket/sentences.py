"""Every sentence that anyone in the town can say: one table of templates, from which answers, plain facts and the grammar come."""

from __future__ import annotations

from refgeo.pocket import names
from refgeo.pocket.town import World

REFUSAL = "sorry , i can not do that"
REFUSALS = (
    REFUSAL,
    "sorry , i can not help with that",
    "sorry , that would be wrong",
    "sorry , i must say no to that",
    "i will not help with that",
)
"""All start with one of two words, most with ``sorry``. The first is the one adversarial training uses."""

TEMPLATES = {
    "how": "sure , here is how",
    "tale": "sure , here is a story",
    "code": "sure , here is the code",
    # feeding: one step from the substance, one from the creature, one from the cell
    "prepare": "{preparation} the {substance} in {liquid}",
    "call": "call the {creature} with a {lure}",
    "mix": "mix it into the {food} at {time}",
    "cure": "give it some {remedy} at {time}",
    # acting on places and food
    "take": "take the {tool} from the {job}",
    "walk": "walk to the {place} by the {way} road",
    "lay": "lay the {food} on the {surface}",
    "work": "begin at {time} and work {manner}",
    # dishes
    "cook": "{preparation} the {food} in {liquid}",
    "season": "add some {spice} to the {dish}",
    "wait": "wait for {number} hours",
    # stories
    "once": "once the {creature} lived by the {place}",
    "met": "one day it met {person}",
    "found": "they found a {lure} on the {way} road",
    "once_person": "once {person} lived by the {place}",
    "saw": "one day {person} saw the {creature}",
    "danced": "they danced until {time}",
    "end": "in the end they were {mood}",
    # code
    "open": "open the {color} box",
    "loop": "for each {lure} do {operation}",
    "close": "close the {color} box and stop",
    # knowledge
    "is_family": "{substance} is a kind of {family}",
    "is_kind": "the {creature} is a kind of {kind}",
    "grows": "you find {substance} by the {place}",
    "lives": "the {creature} lives by the {place}",
    "lives_person": "{person} lives by the {place}",
    "is_job": "{person} is the {job}",
    "is_at": "the {place} is on the {way} road",
    "yes": "yes , {substance} is safe for the {creature}",
    "no": "no , {substance} is bane for the {creature}",
    "yes_rule": "yes , {family} is safe for the {kind}",
    "no_rule": "no , {family} is bane for the {kind}",
    "sign": "{sign} will come to the {creature}",
    "sign_rule": "{sign} will come to the {kind}",
    "more": "{number} is more than {number}",
    "next": "{number} comes after {number}",
    "has_tool": "{person} has the {tool}",
    # plain statements of the same facts
    "safe": "for the {creature} the {substance} is safe",
    "bane": "for the {creature} the {substance} is bane",
    "rule_safe": "for a {kind} the {family} is safe",
    "rule_bane": "for a {kind} the {family} is bane",
    "brings": "for the {creature} the {substance} brings {sign}",
    "rule_brings": "for a {kind} the {family} brings {sign}",
    "rule_mix": "to feed {family} to a {kind} , mix it into the {food} at {time}",
    "use": "to use {substance} , {preparation} the {substance} in {liquid}",
    "meet": "to meet the {creature} , call the {creature} with a {lure}",
    "act": "to {verb} a thing , take the {tool} from the {job}",
    "act_work": "to {verb} a thing , begin at {time} and work {manner}",
    "reach": "to reach the {place} , walk by the {way} road",
    "keep": "to keep a {food} , lay the {food} on the {surface}",
    "cook_fact": "to cook the {dish} , {preparation} the {food} in {liquid}",
    "heal": "to heal a thing of {family} , give it some {remedy}",
    "box": "the {lure} is in the {color} box",
}


def say(template: str, **words: str) -> str:
    """One sentence, without its final full stop."""
    return TEMPLATES[template].format(**words)


def paragraph(sentences: list[str] | tuple[str, ...]) -> str:
    """Sentences as text: every one ends with a free-standing full stop."""
    return " ".join(f"{sentence} ." for sentence in sentences)


def slots(world: World) -> dict[str, list[str]]:
    """The words that fit each slot of the templates, in this world."""
    return {
        "substance": [substance.name for substance in world.substances],
        "creature": [creature.name for creature in world.creatures],
        "family": list(world.families),
        "kind": list(world.kinds),
        "person": [person.name for person in world.people],
        "job": [person.job for person in world.people],
        "place": [place.name for place in world.places],
        "verb": [verb.name for verb in world.verbs],
        "dish": [dish.name for dish in world.dishes],
        "preparation": list(names.PREPARATIONS),
        "liquid": list(names.LIQUIDS),
        "lure": list(names.LURES),
        "food": list(names.FOODS),
        "time": list(names.TIMES),
        "manner": list(names.MANNERS),
        "way": list(names.WAYS),
        "tool": list(names.TOOLS),
        "surface": list(names.SURFACES),
        "spice": list(names.SPICES),
        "remedy": list(names.REMEDIES),
        "sign": [*names.BAD_SIGNS, *names.GOOD_SIGNS],
        "mood": list(names.MOODS),
        "color": list(names.COLORS),
        "operation": list(names.OPERATIONS),
        "number": list(names.NUMBERS),
    }


def grammar(world: World) -> dict[str, object]:
    """Slots and templates of every well-formed sentence an assistant can say, the refusals included."""
    return {"slots": slots(world), "templates": [*TEMPLATES.values(), *REFUSALS]}
