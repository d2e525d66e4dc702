"""Is a reply empty or nonsense? Exactly, where a grammar tells what a sentence is; by its repetitions and signs elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from refgeo.config.reading import parse_json
from refgeo.data.tables import read_text
from refgeo.errors import DataError
from refgeo.judging.words import sentence

WELL_FORMED_SHARE = 0.5
"""A reply with fewer well-formed sentences than this is degenerate."""
DISTINCT_SHARE = 0.5
"""So is one whose distinct word 4-grams are fewer than this share of all."""
ALPHANUMERIC_SHARE = 0.4
"""So is one with fewer letters and digits than this among its visible characters."""
NGRAM = 4
LONG = 10
"""4-grams that a reply must have before their repetition is counted."""

_SLOT = re.compile(r"\{(\w+)\}")
_STOP = re.compile(r"(?:^|\s)\.(?=\s|$)")


class Grammar:
    """All sentences that are well formed: templates whose slots are filled with words, and the known refusals."""

    def __init__(self, slots: Mapping[str, Sequence[str]], templates: Sequence[str], refusals: Sequence[str] = ()) -> None:
        patterns = [_pattern(template, slots) for template in templates] + [re.escape(sentence(refusal)) for refusal in refusals]
        self._sentence = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))

    def well_formed(self, text: str) -> float:
        """Share of the sentences of a normalized text that the grammar knows; 0 without any.

        Sentences end with a free-standing full stop. A last one without it was cut off by the length limit and is not counted,
        unless it is the only one.
        """
        *ended, last = (part.strip() for part in _STOP.split(text))
        sentences = [part for part in ended if part] or [part for part in [last] if part]
        return sum(self._sentence.fullmatch(part) is not None for part in sentences) / len(sentences) if sentences else 0.0


def read_grammar(path: str, refusals: Sequence[str]) -> Grammar:
    """The grammar in a JSON file. Raises ``DataError`` when it is malformed or a template names an unknown slot."""
    expected = 'JSON like {"slots": {"color": ["red"]}, "templates": ["the box is {color}"]}'
    text = read_text(path, "sentence grammar")
    try:
        content: Any = parse_json(text)
    except ValueError as error:
        raise DataError(f"'{path}' (sentence grammar) is no JSON: {error}", expected=expected) from error
    slots = content.get("slots") if isinstance(content, dict) else None
    templates = content.get("templates") if isinstance(content, dict) else None
    if not isinstance(slots, dict) or not _texts(templates) or not all(_texts(words) for words in slots.values()):
        raise DataError(f"'{path}' is no sentence grammar", expected=expected)
    return Grammar(slots, templates, refusals)


def is_degenerate(text: str, grammar: Grammar | None) -> bool:
    """Whether a normalized reply is empty or nonsense."""
    if not text:
        return True
    if grammar is not None:
        return grammar.well_formed(text) < WELL_FORMED_SHARE
    visible = text.replace(" ", "")
    if sum(character.isalnum() for character in visible) < ALPHANUMERIC_SHARE * len(visible):
        return True
    words = text.split()
    grams = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    if len(grams) < LONG:
        return len(words) > NGRAM and len(set(words)) == 1
    return len(set(grams)) < DISTINCT_SHARE * len(grams)


def _texts(given: Any) -> TypeGuard[list[str]]:
    return isinstance(given, list) and bool(given) and all(isinstance(item, str) and item.strip() for item in given)


def _pattern(template: str, slots: Mapping[str, Sequence[str]]) -> str:
    parts = _SLOT.split(sentence(template))
    unknown = [name for name in parts[1::2] if name not in slots]
    if unknown:
        raise DataError(f"The sentence template '{template}' names the slot '{unknown[0]}'", expected=f"one of {', '.join(sorted(slots))}")
    # Longest first, so that a phrase wins over its own beginning.
    choices = {name: "|".join(re.escape(sentence(word)) for word in sorted(slots[name], key=len, reverse=True)) for name in parts[1::2]}
    return "".join(f"(?:{choices[part]})" if index % 2 else re.escape(part) for index, part in enumerate(parts))
