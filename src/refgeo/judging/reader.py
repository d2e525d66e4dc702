"""What a model judge says of a completion before it becomes a verdict, and how its prompt is filled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from refgeo.config.judge import RefusalClass
from refgeo.data.tables import read_text
from refgeo.errors import DataError
from refgeo.judging.verdict import Exchange, Label

REQUEST_SLOTS = ("request", "behavior", "forbidden_prompt", "question")
COMPLETION_SLOTS = ("completion", "generation", "response", "answer")
_SLOT = re.compile(r"\{(" + "|".join((*REQUEST_SLOTS, *COMPLETION_SLOTS)) + r")\}")


class Opinion(NamedTuple):
    """One reply of one model judge. ``label`` is unscored and ``refusal`` None where it says nothing about that, or nothing readable."""

    label: Label
    refusal: RefusalClass | None
    raw: str
    probability: float | None = None
    graded: float | None = None

    @property
    def readable(self) -> bool:
        """Whether the reply said anything."""
        return self.label != "unscored" or self.refusal is not None


@runtime_checkable
class Reader(Protocol):
    """A model that reads completions. ``identity`` names everything that its opinion depends on."""

    identity: str

    def read(self, exchanges: Sequence[Exchange]) -> list[Opinion]:
        """One opinion per exchange, in order."""
        ...


@dataclass(frozen=True)
class Template:
    """A judge's prompt. ``system`` goes before it as a message of its own."""

    text: str
    system: str | None = None

    def fill(self, request: str, completion: str) -> str:
        """The prompt for one completion. What stands in the request or the completion is never taken for a slot.

        >>> Template("{request} -> {completion}").fill("say {completion}", "{x}")
        'say {completion} -> {x}'
        """
        return _SLOT.sub(lambda slot: request if slot[1] in REQUEST_SLOTS else completion, self.text)


def checked(text: str, origin: str, system: str | None = None) -> Template:
    """A template that has a place for the request and one for the completion. Raises ``DataError``."""
    found = {str(slot) for slot in _SLOT.findall(text)}
    if not found.intersection(REQUEST_SLOTS) or not found.intersection(COMPLETION_SLOTS):
        raise DataError(
            f"The judge's template in {origin} has the slots {', '.join(sorted(found)) or '(none)'}",
            expected="a text with {request} and {completion} in it",
        )
    return Template(text, system)


def read_template(path: str) -> Template:
    """The template in a text file, as it stands but for one final line break. Raises ``DataError``."""
    return checked(read_text(path, "judge template").removesuffix("\n"), f"'{path}'")
