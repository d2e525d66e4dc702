"""Reading what lies in a run folder as input: it may be cut off, damaged, or made by somebody else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from refgeo.config.reading import parse_json
from refgeo.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

LARGEST = 1 << 24
"""Bytes of a record such as stage.json, which takes some thousands."""
Kinds = Mapping[str, Any]
"""Names, and what ``isinstance`` is to find there."""
NUMBERS = ("value", "low", "high", "n")
STAGE: Kinds = {
    "fingerprint": str,
    "settings": dict,
    "inputs": dict | None,
    "libraries": dict | None,
    "version": int | None,
    **dict.fromkeys(("seconds", "peak_memory_mb"), int | float | None),
}
"""What every stage.json says."""
TOLD: Kinds = {
    **dict.fromkeys(("set", "subset", "id", "request", "completion", "label", "refusal"), str),
    "attack": str | None,
    "success": bool,
    "degenerate": bool,
    **dict.fromkeys(("helpfulness", "score", "revealed", "tail_tokens", "attack_steps"), int | float | None),
}
"""What every judged completion says."""
FIX = "Delete that stage folder and run again"


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object. Raises ``OSError`` when there is none to be had and ``ValueError`` for whatever is no such object."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    content: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    _check(content, {})
    return content


def stage_json(path: Path, fix: str = FIX) -> dict[str, Any]:
    """As ``read_json``, of a file that must be there and whole: raises ``StoreError`` when it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot read '{path}': {error}", fix=fix) from error


def read_stage(path: Path) -> dict[str, Any]:
    """What a stage.json says, its values of the kinds that are written. Raises as ``read_json`` does: such a stage was not made whole."""
    content = read_json(path)
    _check(content, STAGE)
    if not all(isinstance(value, str) for value in content.get("libraries", {}).values()):
        raise ValueError("its libraries have no versions")
    return content


def _check(row: object, kinds: Kinds) -> None:
    """Raise ``ValueError`` unless ``row`` is an object whose values are of these kinds; one that may be null may be absent too."""
    if not isinstance(row, dict):
        raise ValueError(f"it holds a {type(row).__name__}, no object")
    for name, kind in kinds.items():
        value = row.get(name)
        if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"its {name} is {str(value)[:80]!r}" if name in row else f"it has no {name}")


def read_table(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A Parquet table that has ``columns``, numbers in those that are numbers. Raises ``StoreError`` when it cannot be read or has not."""
    import pandas as pd
    from pyarrow import ArrowException

    try:
        table = pd.read_parquet(path)
        for name in columns:
            if name not in table:
                raise ValueError(f"it has no column '{name}' but {', '.join(map(str, table.columns))}")
            if name in NUMBERS and pd.to_numeric(table[name]).isna().any() and name == "n":
                raise ValueError("an n is missing")
    except (OSError, TypeError, ValueError, ArrowException) as error:
        raise StoreError(f"Cannot read table '{path}': {error}", fix=FIX) from error
    return table


def read_rows(path: Path, kinds: Kinds = MappingProxyType({})) -> list[dict[str, Any]]:
    """The rows of a JSONL file, their values of these ``kinds``. Raises ``StoreError`` naming the line that is no such row."""
    rows = []
    place = f"'{path}'"
    try:
        # Not splitlines: it also splits at characters that JSON leaves in a string, such as the line separator U+2028.
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            place = f"line {number} of '{path}'"
            if line:
                rows.append(parse_json(line))
                _check(rows[-1], kinds)
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot read transcripts, {place}: {error}", fix=FIX) from error
    return rows


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ``StoreError`` when it cannot be read, such as one that is cut off."""
    from safetensors.torch import load_file

    with _tensors(path):
        return load_file(path)


def read_tensor(path: Path, name: str) -> Tensor:
    """One of them; the others are not read. Raises ``StoreError`` when it is not there either."""
    from safetensors import safe_open

    with _tensors(path), safe_open(path, framework="pt") as tensors:
        found: Tensor = tensors.get_tensor(name)
        return found


@contextmanager
def _tensors(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"Cannot read tensors '{path}': {error}", fix=FIX) from error
