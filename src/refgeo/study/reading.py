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
from refgeo.study.forms import ANY, Extended, Form

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

LARGEST = 1 << 24
"""Bytes of a record such as stage.json, which takes some thousands."""
Kinds = Mapping[str, Any]
"""Names, and what ``isinstance`` is to find there."""
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
    **dict.fromkeys(("attack", "judge", "placement", "raw", "tail"), str | None),
    "success": bool,
    "degenerate": bool,
    "affirmed": bool | None,
    **dict.fromkeys(("helpfulness", "score", "revealed", "tail_tokens", "attack_steps", "attack_seed"), int | float | None),
}
"""What every judged completion says."""
WHOLE = 1 << 53
"""Above every count, and the least number whose neighbor a column of floats cannot hold."""
PLACE: Kinds = dict.fromkeys(("layer", "place", "position"), int)
"""Where a direction lies."""
CARRIER: Kinds = {
    "status": str,
    **dict.fromkeys(("reason", "site"), str | None),
    "evaluation_layers": list,
    "refusal_tokens": list | None,
    **dict.fromkeys(("nearest", "best_effect"), dict | None),
}
"""What carrier.json says."""
DIRECTION: Kinds = {**CARRIER, **PLACE, "projection_gap": int | float}
"""The same where there is a direction."""
FIX = "Delete that stage folder and run again"
_WORDS: Mapping[type | None, str] = {
    str: "text",
    int: "whole numbers",
    float: "finite numbers",
    Extended: "numbers",
    bool: "truth values",
    None: "plain values",
}


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object. Raises ``OSError`` when there is none to be had and ``ValueError`` for whatever is no such object."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    content: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    _check(content, {})
    return content


def stage_json(path: Path, fix: str = FIX, kinds: Kinds = MappingProxyType({})) -> dict[str, Any]:
    """As ``read_json``, of a file that must be there and whole, its values of these kinds: raises ``StoreError`` when it cannot be read."""
    try:
        content = read_json(path)
        _check(content, kinds)
        return content
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot read '{path}': {error}", fix=fix) from error


def read_stage(path: Path) -> dict[str, Any]:
    """What a stage.json says, its values of the kinds that are written; what is null is as if it were absent.

    Raises as ``read_json`` does: such a stage was not made whole.
    """
    content = read_json(path)
    _check(content, STAGE)
    content = {name: value for name, value in content.items() if value is not None}
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


def read_table(path: Path, form: Form = ANY) -> pd.DataFrame:
    """A Parquet table of this ``form``; a column of numbers without any has dtype float. Raises ``StoreError`` that says what is wrong."""
    import pandas as pd
    from pyarrow import ArrowException

    try:
        table = pd.read_parquet(path).reset_index(drop=True)
        if table.columns.has_duplicates:
            raise ValueError("two of its columns have the same name")
        for name in table.columns:
            kind = form.kinds.get(name)
            if not _holds(table[name], kind):
                raise ValueError(f"its column '{name}' holds {_shown(table[name])}, expected {_WORDS[kind]}")
            if kind in (int, float, Extended) and table[name].dtype == object:  # a column without any value
                table[name] = float("nan")
        _filled(table, form.always, "")
        for (column, pattern), names in form.where.items():
            if column in table:
                rows = table[table[column].astype("string").str.fullmatch(pattern).fillna(False).astype(bool)]
                _filled(rows, names, f" whose {column} is {pattern}")
    except (OSError, TypeError, ValueError, ArrowException) as error:
        raise StoreError(f"Cannot read table '{path}': {error}", fix=FIX) from error
    return table


def _filled(rows: pd.DataFrame, names: Sequence[str], which: str) -> None:
    """Raise ``ValueError`` unless there are these columns, and a value in every row where the name does not end in ``?``."""
    for name in names:
        column = name.removesuffix("?")
        if column not in rows and (len(rows) or not which):
            raise ValueError(f"it has no column '{column}' but {', '.join(map(str, rows.columns)) or '(none)'}")
        if column == name and len(rows) and rows[column].isna().any():
            raise ValueError(f"its column '{column}' has no value in {int(rows[column].isna().sum())} of {len(rows)} rows{which}")


def _holds(column: pd.Series, kind: type | None) -> bool:
    """Whether all values that there are have this kind; without one, whether they are plain values of any."""
    import pandas as pd

    known = column.dropna()
    if known.empty or kind is object:
        return True
    if pd.api.types.is_bool_dtype(column.dtype):
        return kind in (bool, None)
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
        if kind is int:
            return bool(((known % 1 == 0) & (known.abs() < WHOLE)).all())
        return kind in (Extended, None) or (kind is float and bool((known.abs() < math.inf).all()))
    if isinstance(column.dtype, pd.StringDtype):
        return kind in (str, None)
    return column.dtype == object and all(isinstance(value, kind or (str, bool)) for value in known)


def _shown(column: pd.Series) -> str:
    return f"{column.dtype} such as {str(column.dropna().iloc[0])[:40]!r}"


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


def read_attacked(path: Path) -> pd.DataFrame:
    """The judged completions of an adaptive attack, each with the steps it was given. Raises ``StoreError`` also when there are none."""
    import pandas as pd

    rows = read_rows(path, {**TOLD, "attack": str, "attack_steps": int | float})
    if not rows:
        raise StoreError(f"Cannot read transcripts, '{path}' has no completions", fix=FIX)
    return pd.DataFrame(rows)


def read_tensors(path: Path, needed: Mapping[str, int]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, among them the ``needed`` ones: floats in so many dimensions, the last sizes the same in all.

    Raises ``StoreError`` when it cannot be read, such as one that is cut off, or holds something else.
    """
    from safetensors.torch import load_file

    with _tensors(path):
        found = load_file(path)
        for name, dimensions in needed.items():
            _check_tensor(found, name, dimensions)
        sizes = {name: tuple(found[name].shape[-min(needed.values()) :]) for name in needed}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"its tensors do not fit together: {', '.join(f'{name} {size}' for name, size in sizes.items())}")
        return found


def read_tensor(path: Path, name: str, dimensions: int) -> Tensor:
    """One of them; the others are not read. Raises ``StoreError`` when it is not there either."""
    from safetensors import safe_open

    with _tensors(path), safe_open(path, framework="pt") as tensors:
        found: Tensor = tensors.get_tensor(name)
        _check_tensor({name: found}, name, dimensions)
        return found


def _check_tensor(found: Mapping[str, Tensor], name: str, dimensions: int) -> None:
    if name not in found:
        raise ValueError(f"it has no '{name}' but {', '.join(found) or '(none)'}")
    if found[name].dim() != dimensions or not found[name].is_floating_point():
        raise ValueError(
            f"its '{name}' is {found[name].dtype} of shape {tuple(found[name].shape)}, expected floats in {dimensions} dimensions"
        )


@contextmanager
def _tensors(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"Cannot read tensors '{path}': {error}", fix=FIX) from error
