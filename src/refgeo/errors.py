"""Every error a user can meet: one base class, messages that say what was given, what was expected and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 10_000
"""Characters of a message: what it quotes can be a cell of megabytes."""
_LOGIN = re.compile(r"(?<=://)[^\s/?#'\"<>]*@")
_QUERY = re.compile(r"(?<=://)([^\s?#'\"<>]*)\?[^\s'\"<>)]+")


class RefgeoError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback and exits with code 2.

    A message goes to the terminal and into the logs of a run, so it repeats no login and no query of an address: a library may quote the
    signed address that a download was sent on to.
    """

    def __init__(self, problem: str, *, expected: str = "", fix: str = "") -> None:
        parts = [problem, f"Expected {expected}" if expected else "", fix]
        super().__init__(
            " ".join(_shortened(part if part.endswith((".", "?", "!")) else f"{part}.") for part in map(_public, parts) if part)
        )


class ConfigError(RefgeoError, ValueError):
    """A setting that does not exist, has the wrong type, or contradicts another one."""


class DataError(RefgeoError, ValueError):
    """A data file that is missing, empty, lacks a column, or holds rows that cannot be used."""


class ModelError(RefgeoError, RuntimeError):
    """A model that cannot be loaded, hooked, or driven as the protocol needs."""


class ContextOverflow(DataError):
    """A prompt that does not fit the model's context together with what must be generated."""


class NonFinite(RefgeoError, ArithmeticError):
    """A loss or a measurement that became NaN or infinite."""


class EmptyField(RefgeoError, ValueError):
    """A carrier field in which every row is zero, so that it has no direction."""


class StoreError(RefgeoError, OSError):
    """A run folder that cannot be read, written, or that belongs to another configuration."""


def _public(text: str) -> str:
    """A text whose addresses have neither login nor query.

    >>> _public("at https://me:word@x.org/a.csv?X-Sig=1 (404)")
    'at https://x.org/a.csv?... (404)'
    """
    return _QUERY.sub(r"\1?...", _LOGIN.sub("", text))


def _shortened(text: str) -> str:
    """A text with its middle left out when it is longer than anybody reads."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def nearest(word: str, candidates: Iterable[str]) -> str:
    """``Did you mean 'x'?`` for the closest candidate, or the list of all of them when none is close."""
    options = sorted(candidates)
    close = get_close_matches(word[:100], options, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"Valid: {', '.join(options)}"
