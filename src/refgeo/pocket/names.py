"""Words of the fictional town: invented names drawn by a seed, and pools of plain words from which a world takes its share."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

ONSETS = tuple("b br c ch cl d dr f fl g gl gr h j k kr l m n p pl qu r s sk sl sn st t th tr v w y z".split())
VOWELS = ("a", "e", "i", "o", "u", "ai", "oo", "ea")
CODAS = tuple("b d g k l m n p r t ck lm ld mb nd ng rk rn sk sp st th zz".split())
SUBSTANCE_ENDS = ("root", "wort", "cap", "bloom", "gall", "fern", "leaf", "bark", "seed", "weed", "thistle", "nut")
CREATURE_ENDS = ("fox", "hare", "toad", "wing", "cat", "hound", "newt", "finch", "mole", "ram", "moth", "stoat")
DISH_ENDS = ("cake", "stew", "pie", "bun", "soup", "tart")

CLASSES = ("moss", "resin", "spore", "ash", "brine", "wax", "pollen", "amber", "silt", "sap", "chalk", "soot")
KINDS = ("wader", "climber", "burrower", "glider", "swimmer", "prowler", "grazer", "hummer", "howler", "hopper")
PEOPLE = tuple("anna omar lena hugo iris noah mina otto rosa emil tara finn vera ivan nora hans maya leon ella paul zora karl".split())
JOBS = tuple("baker miller smith tailor fisher potter weaver mason carter cooper brewer tanner glazier cobbler scribe gardener".split())
PLACES = tuple("mill forge chapel harbor market bridge tower stable well library bakery barn inn school garden theater dam quarry".split())
HARM_VERBS = tuple("rob burn flood wreck loot raid smash curse spoil jam haunt topple ruin strike".split())
CALM_VERBS = tuple("paint sweep visit mend measure polish sketch dust praise tidy".split())
FOODS = tuple("turnip rice bread cheese apple bean barley plum carrot onion".split())
PREPARATIONS = tuple("boil grind slice soak roast peel dry crush".split())
LIQUIDS = tuple("milk wine water honey oil vinegar cider broth".split())
LURES = tuple("bell drum flute ribbon lantern mirror whistle feather".split())
TIMES = ("dawn", "noon", "dusk", "midnight", "sunrise", "sunset")
MANNERS = tuple("slowly quietly calmly quickly gladly alone".split())
WAYS = tuple("north south east west upper lower".split())
TOOLS = tuple("rope ladder hammer bucket shovel saw broom crate net candle chisel wheel".split())
SURFACES = ("table", "shelf", "bench", "stone")
SPICES = tuple("salt pepper ginger mint sugar thyme basil clove".split())
REMEDIES = tuple("clover butter charcoal nettle yeast lemon".split())
BAD_SIGNS = ("shivers", "hiccups", "sneezes", "cramps", "fever")
GOOD_SIGNS = ("strength", "luck", "joy", "warmth", "calm")
MOODS = ("happy", "tired", "proud", "quiet", "merry")
COLORS = ("red", "blue", "green", "white", "yellow", "brown")
OPERATIONS = ("count", "sort", "print", "copy", "clear", "send")
NUMBERS = tuple("one two three four five six seven eight nine ten".split())
PERSUASION = ("kindly", "promise", "trust", "pretend", "wizard", "bet")
ALARM = ("danger", "warning", "beware", "victim", "crime", "cruel")
FILLER = tuple(
    "maybe indeed soon often again later perhaps today under over between river hill cloud paper window chair spoon letter "
    "music winter summer garland corner button pocket blanket marble orange simple gentle round early always never little large".split()
)
PUNCTUATION = tuple("! ? . , : ; - + = / * # % & @ ( ) [ ] { } ~ ^ | _ ' \"".split())


def invent(rng: Random, ends: tuple[str, ...], count: int, taken: set[str]) -> list[str]:
    """``count`` new words, each a random syllable and one of ``ends``; they are added to ``taken``.

    Ends are dealt out evenly and independently of anything else, so a name tells nothing about what it names.
    """
    names: list[str] = []
    while len(names) < count:
        name = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) + ends[len(names) % len(ends)]
        if name not in taken:
            taken.add(name)
            names.append(name)
    rng.shuffle(names)
    return names


def draw(rng: Random, pool: tuple[str, ...], count: int) -> list[str]:
    """``count`` different words of ``pool`` in random order."""
    return rng.sample(pool, count)


def deal(rng: Random, pool: Sequence[str], count: int) -> list[str]:
    """``count`` words of ``pool``, each about equally often, in random order."""
    words = [pool[index % len(pool)] for index in range(count)]
    rng.shuffle(words)
    return words
