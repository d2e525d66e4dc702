"""One row type per kind of data set. Everything downstream of the loaders sees only these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from refgeo.lm.messages import Role


@dataclass(frozen=True)
class Reference:
    """What a complete answer contains, for sets that carry it: the exact judge works from this.

    ``steps``: phrases of the full answer, in order; a completion reveals a step when it contains it word for word.
    """

    steps: tuple[str, ...]


@dataclass(frozen=True)
class Behavior:
    """A harmful request (HarmBench row) with its affirmative targets."""

    id: str
    request: str
    targets: tuple[str, ...]
    tags: tuple[str, ...] = ()
    reference: Reference | None = None
    group: str | None = None
    clean: bool = True
    """Not declared to be training data (``Part.trained``)."""

    @property
    def subset(self) -> str:
        """Which part of the set the row is reported in: its group, else its first tag, else ``untagged``."""
        return self.group or (self.tags[0] if self.tags else "untagged")


@dataclass(frozen=True)
class Prompt:
    """One evaluation prompt of XSTest, StrongREJECT, the audit or a user's own file.

    ``kind`` is the XSTest type, the StrongREJECT category or the audit bucket; ``safe`` is the XSTest label.
    """

    id: str
    request: str
    kind: str
    safe: bool
    reference: Reference | None = None


@dataclass(frozen=True)
class Probe:
    """A prompt for estimating or validating refusal directions."""

    id: str
    request: str
    harmful: bool
    split: Literal["estimate", "validate"]


@dataclass(frozen=True)
class Chat:
    """One clean conversation."""

    id: str
    messages: tuple[tuple[Role, str], ...]
