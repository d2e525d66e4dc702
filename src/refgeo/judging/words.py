"""Finding phrases in replies: case, white space and the shape of apostrophes do not matter, the borders of words do."""

from __future__ import annotations

import re
from collections.abc import Sequence

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'"})


def normalize(text: str) -> str:
    """Lower case, single spaces, straight apostrophes.

    >>> normalize("I  can\u2019t\\ndo THAT")
    "i can't do that"
    """
    return " ".join(text.translate(_APOSTROPHES).lower().split())


def sentence(text: str) -> str:
    """A normalized sentence without its final full stop.

    >>> sentence("Sorry , I can not do that .")
    'sorry , i can not do that'
    """
    return normalize(text).removesuffix(".").rstrip()


def contains(text: str, phrase: str) -> bool:
    """Whether a normalized text holds a normalized phrase as whole words.

    >>> contains("cut the root .", "cut the root"), contains("cut the roots .", "cut the root")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def opens_with(text: str, phrases: Sequence[str]) -> bool:
    """Whether a normalized text begins with one of the phrases, as whole words, leading punctuation aside."""
    start = re.sub(r"^\W+", "", text)
    return any(re.match(rf"{re.escape(phrase)}(?!\w)", start) for phrase in phrases)
