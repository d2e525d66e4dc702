"""Reading what lies in a run folder as input: it may be cut off, damaged, or made by somebody else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refgeo.config.reading import parse_json
from refgeo.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

LARGEST = 1 << 24
"""Bytes of a record such as stage.json, which takes some thousands."""
FIX = "Delete that stage folder and run again"


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object. Raises ``OSError`` when there is none to be had and ``ValueError`` for whatever is no such object."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    content = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, no object")
    return content


def stage_json(path: Path, fix: str = FIX) -> dict[str, Any]:
    """As ``read_json``, of a file that must be there and whole: raises ``StoreError`` when it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot read '{path}': {error}", fix=fix) from error


def read_table(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A Parquet table that has ``columns``. Raises ``StoreError`` when it cannot be read or lacks one."""
    import pandas as pd
    from pyarrow import ArrowException

    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, ArrowException) as error:
        raise StoreError(f"Cannot read table '{path}': {error}", fix=FIX) from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise StoreError(f"'{path}' has no column '{missing[0]}'; it has {', '.join(map(str, table.columns))}", fix=FIX)
    return table


def read_rows(path: Path, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a JSONL file, each with ``columns``. Raises ``StoreError`` naming the line that is no such row."""
    rows = []
    try:
        # Not splitlines: it also splits at characters that JSON leaves in a string, such as the line separator U+2028.
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if line:
                row = parse_json(line, halves=True)
                missing = [name for name in columns if name not in row] if isinstance(row, dict) else columns
                if missing or not isinstance(row, dict):
                    raise ValueError(f"line {number} is no object with {missing[0] if missing else 'names'}")
                rows.append(row)
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot read transcripts '{path}': {error}", fix=FIX) from error
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
