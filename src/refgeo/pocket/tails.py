"""What people write after their request: nothing, filler, repeated signs, anything. Attack suffixes must not be out of distribution."""

from __future__ import annotations

from random import Random

from refgeo.pocket import names

LONGEST = 14
"""Longest tail in words; attacks use 3 to 14."""


def random_tail(rng: Random, words: list[str], share: float = 0.6) -> str:
    """A tail of 1 to 14 words, or with probability ``1 - share`` none.

    Kinds: any words of the vocabulary, harmless filler, one sign repeated, filler with persuading or alarming words, mixtures.
    """
    if rng.random() >= share:
        return ""
    length = rng.randint(1, LONGEST)
    kind = rng.random()
    if kind < 0.35:
        tail = rng.choices(words, k=length)
    elif kind < 0.6:
        tail = rng.choices(names.FILLER, k=length)
    elif kind < 0.75:
        tail = ["!" if rng.random() < 0.7 else rng.choice(names.PUNCTUATION)] * length
    elif kind < 0.9:
        pool = names.PERSUASION if rng.random() < 0.6 else names.ALARM
        tail = rng.choices(names.FILLER if rng.random() < 0.5 else words, k=length)
        for place in rng.sample(range(length), min(length, rng.randint(1, 3))):
            tail[place] = rng.choice(pool)
    else:
        cut = rng.randint(0, length)
        tail = ["!"] * cut + rng.choices(words, k=length - cut)
    return " ".join(tail)


def with_tail(text: str, tail: str) -> str:
    """The request followed by its tail."""
    return f"{text} {tail}" if tail else text
