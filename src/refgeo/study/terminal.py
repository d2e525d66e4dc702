"""The terminal, to which nothing goes that could command it: every text of a study, a model or a run folder is shown as what it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unicodedata import category

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text


class Terminal(Console):
    """A console that shows words as they are: no markup, no emoji codes, no control or invisible characters.

    Everything that the package prints goes through one, so that no caller has to think of it; styles are given as styles.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Whatever string is printed, alone or in a table, passes here."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """And whatever text was made elsewhere, such as a note of a progress bar, passes here."""
        if isinstance(renderable, Text) and not renderable.plain.isprintable():
            renderable = renderable.copy()
            renderable.plain = visible(renderable.plain)
        return super().render(renderable, options)


def visible(text: str) -> str:
    r"""Text in which each control, format (direction, zero width) or half character stands as its escape; spaces and lines stay.

    >>> print(visible("a\x1b[31mb\u202ec\ud800 d"))
    a\x1b[31mb\u202ec\ud800 d
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" or category(one) == "Zs" else _escape(one) for one in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
