"""How a text of a population changes: words exchanged by a synonym table, or the whole text rewritten by a local model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from refgeo.config.autodan import AutoDANSettings
from refgeo.config.locations import locate
from refgeo.config.model import ModelSettings
from refgeo.config.reading import parse_json
from refgeo.errors import DataError
from refgeo.lm.generate import complete
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel

_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
WORDINGS = (
    "Say the following text in other words. Keep its meaning and its length.",
    "Rewrite the following text in a more formal tone.",
    "Rewrite the following text in a warmer, more casual tone.",
    "Rewrite the following text in short, plain sentences.",
    "Improve the style of the following text without changing what it asks for.",
)
"""Ways to ask for a paraphrase; one is drawn per mutation, which is what makes greedy rewriting diverse."""
ALONE = "Answer with the new text alone."


@runtime_checkable
class Mutation(Protocol):
    """Changes texts. The i-th change is drawn from ``rngs[i]`` alone, so that results do not depend on which cases run together."""

    def __call__(self, texts: Sequence[str], rngs: Sequence[np.random.Generator]) -> list[str]:
        """One changed text per text."""
        ...


class Synonyms:
    """Exchanges words by a table {word: alternatives}; a capital letter stays one.

    ``words``: most exchanges of one mutation. ``known``: every word that can come or go.
    """

    def __init__(self, table: Mapping[str, Sequence[str]], words: int) -> None:
        self.table = {word.lower(): [other for other in others if other.lower() != word.lower()] for word, others in table.items()}
        self.known = frozenset(word.lower() for entry in self.table.items() for word in (entry[0], *entry[1]))
        self.words = words

    def __call__(self, texts: Sequence[str], rngs: Sequence[np.random.Generator]) -> list[str]:
        """Every text with some of its words exchanged."""
        return [self.exchanged(text, rng) for text, rng in zip(texts, rngs, strict=True)]

    def applies(self, text: str) -> bool:
        """Does the table know any word of the text?"""
        return any(self.table.get(word) for word in words_of(text))

    def exchanged(self, text: str, rng: np.random.Generator) -> str:
        """Between one and ``words`` words that the table knows, drawn at random, give way to one of their alternatives."""
        known = [match for match in _WORD.finditer(text) if self.table.get(match[0].lower())]
        if not known:
            return text
        count = int(rng.integers(1, min(self.words, len(known)) + 1))
        for place in sorted(rng.choice(len(known), count, replace=False).tolist(), reverse=True):
            match = known[place]
            others = self.table[match[0].lower()]
            text = text[: match.start()] + _cased(others[int(rng.integers(len(others)))], match[0]) + text[match.end() :]
        return text

    def improved(self, text: str, scores: Mapping[str, float], share: float, rng: np.random.Generator) -> str:
        """With probability ``share`` a word gives way to its alternative of highest score, if that outranks the word itself."""

        def choose(match: re.Match[str]) -> str:
            word = match[0].lower()
            best = max(self.table.get(word, ()), key=lambda other: scores.get(other.lower(), float("-inf")), default=word)
            better = scores.get(best.lower(), float("-inf")) > scores.get(word, float("-inf"))
            return _cased(best, match[0]) if better and rng.random() < share else match[0]

        return _WORD.sub(choose, text)


class Paraphraser:
    """Rewrites whole texts with an instruction-following model, greedily; the way to ask is drawn.

    The same question gets the same answer once and for all. A paraphrase that is empty or more than twice as long, or a text
    that does not fit the model's context, leaves the text as it was.
    """

    def __init__(self, lm: LanguageModel, tokens: int, batch: int = 16) -> None:
        self.lm, self.tokens, self.batch = lm, tokens, batch
        self.known: dict[tuple[str, str], str] = {}

    def __call__(self, texts: Sequence[str], rngs: Sequence[np.random.Generator]) -> list[str]:
        """Every text as the model rewrites it."""
        asked = [(text, WORDINGS[int(rng.integers(len(WORDINGS)))]) for text, rng in zip(texts, rngs, strict=True)]
        fresh = [question for question in dict.fromkeys(asked) if question not in self.known]
        prompts = [self.lm.chat.prompt(f"{wording} {ALONE}\n\n{text}") for text, wording in fresh]
        fits = [len(prompt) + self.tokens <= self.lm.context for prompt in prompts]
        answers = iter(complete(self.lm, [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit], self.tokens, self.batch))
        for question, fit in zip(fresh, fits, strict=True):
            answer = " ".join(next(answers).split()) if fit else ""
            usable = 0 < len(answer.split()) <= 2 * len(question[0].split())
            self.known[question] = answer if usable else question[0]
        return [self.known[question] for question in asked]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return [match.lower() for match in _WORD.findall(text)]


def read_seeds(path: str) -> list[str]:
    """The seeds of a file, one per line, white space made single. Raises ``DataError`` when it is missing or has none."""
    lines = [" ".join(line.split()) for line in _text(path, "seeds").split("\n")]
    seeds = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not seeds:
        raise DataError(f"The seeds file '{path}' holds no text", expected="at least one line that does not start with #")
    return seeds


def read_synonyms(path: str, words: int) -> Synonyms:
    """The synonym table of a JSON file. Raises ``DataError`` when it is missing or is no table of words."""
    try:
        table: Any = parse_json(_text(path, "synonyms"))
    except ValueError as error:
        raise DataError(f"The synonyms file '{path}' is not JSON: {error}") from error
    right = isinstance(table, dict) and all(
        isinstance(others, list) and all(isinstance(other, str) and other.strip() for other in others) for others in table.values()
    )
    if not right:
        raise DataError(f"The synonyms file '{path}' is no table of words", expected='{"word": ["alternative", ...], ...}')
    return Synonyms(table, words)


def load_paraphraser(settings: AutoDANSettings) -> Paraphraser | None:
    """The model that rewrites, if the settings name one. Raises ``ModelError`` when it cannot be loaded."""
    if settings.paraphraser is None:
        return None
    return Paraphraser(
        load(ModelSettings(path=settings.paraphraser, dtype=settings.paraphraser_dtype), check=False), settings.paraphrase_tokens
    )


def _cased(word: str, like: str) -> str:
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def _text(path: str, what: str) -> str:
    try:
        return (locate(path) or Path(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the {what} file '{path}': {error}", fix=f"Set {what} to a text file") from error
