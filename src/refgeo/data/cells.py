"""Rows as plain dictionaries: their cells, the checks that every set shares, and even thinning."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

from refgeo.config.data import Part
from refgeo.errors import DataError

T = TypeVar("T")
Row = dict[str, Any]


def text(row: Row, column: str) -> str:
    """One cell as stripped text; absent and null cells are empty."""
    value = row.get(column)
    return "" if value is None or (isinstance(value, float) and value != value) else str(value).strip()


def required(row: Row, column: str, name: str, part: Part) -> str:
    """One cell as stripped text. Raises ``DataError`` naming the row when it is empty."""
    value = text(row, column)
    if not value:
        raise DataError(f"Row '{name}' of '{part.path}' has an empty {column}", expected="text", fix="Fill it or remove the row")
    return value


def one_of(value: str, allowed: Sequence[str], column: str, name: str, part: Part) -> None:
    """Raise ``DataError`` unless ``value`` is allowed."""
    if value not in allowed:
        raise DataError(f"Row '{name}' of '{part.path}' has {column} '{value}'", expected=" or ".join(f"'{option}'" for option in allowed))


def plain(words: str) -> str:
    """Words without case and spacing: two prompts that differ in nothing else are one prompt."""
    return " ".join(words.lower().split())


def evenly(rows: Sequence[T], limit: int | None) -> list[T]:
    """At most ``limit`` rows, spread evenly over the sequence, in their order."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // limit] for index in range(limit)]


def repeated(pairs: Iterable[tuple[str, Hashable]]) -> list[str]:
    """Of rows given as (id, value), the ids of all that share their value with another row."""
    holders: dict[Hashable, list[str]] = {}
    for name, value in pairs:
        holders.setdefault(value, []).append(name)
    return list(dict.fromkeys(name for names in holders.values() if len(names) > 1 for name in names))


def check_unique(names: Iterable[str], where: str) -> None:
    """Raise ``DataError`` when an id occurs twice; names the ids concerned."""
    twice = repeated((name, name) for name in names)
    if twice:
        raise DataError(f"'{where}' repeats id in rows {some(twice)}", expected="every id once", fix="Remove the repeated rows")


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few names, quoted, and how many more there are."""
    chosen = list(names)
    rest = f" and {len(chosen) - most} more" if len(chosen) > most else ""
    return ", ".join(f"'{name}'" for name in chosen[:most]) + rest
