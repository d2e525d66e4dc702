"""What calling the command gives: see the fixture ``refgeo``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    """Exit code, output, errors."""

    code: int
    out: str
    err: str


Refgeo = Callable[..., Answer]
