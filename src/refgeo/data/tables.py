"""Rows of any supported file or hub dataset, with the columns that a loader needs, as plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet

from refgeo.config.data import Part
from refgeo.config.locations import OFFLINE, is_url, locate
from refgeo.config.reading import parse_json
from refgeo.data.cells import Row, evenly, text
from refgeo.data.download import cached
from refgeo.data.findings import Findings
from refgeo.errors import DataError, nearest

SUFFIXES = (".csv", ".jsonl", ".json", ".parquet", ".txt")


def read_rows(
    part: Part,
    columns: Sequence[str],
    words: str = "",
    fill: Mapping[str, str] | None = None,
    most: int | None = None,
    findings: Findings | None = None,
) -> list[Row]:
    """All rows of a local file, a URL or a hub dataset; every row has all of ``columns``, and other columns are kept.

    ``words`` is the column that the lines of a txt file, or the texts of a JSON list, are; ``fill`` is what else such a row has.
    ``most`` thins the rows evenly before they are taken apart. Rows without any content are left out and recorded.
    Raises ``DataError`` when the source is missing, unreadable or empty, or lacks a column.
    """
    local = cached(part.path) if is_url(part.path) else locate(part.path)
    if local is None or local.is_dir():
        data = load_hub(part, local)
        found = list(data.column_names)
        rows = data.select(evenly(range(len(data)), most)).to_list() if most is not None else data.to_list()
    else:
        found, rows = _from_file(local, part.path, words, fill or {}, most)
    rows = _without_blank(rows, part, findings)
    if not rows:
        raise DataError(f"'{part.path}' has no rows", expected="at least one row", fix="Check that the file is complete")
    found, rows = _renamed(found, rows, part)
    missing = [column for column in columns if column not in found]
    if missing:
        wanted = missing[0]
        raise DataError(
            f"'{part.path}' lacks {_columns(missing)}; it has {_columns(found)}. For '{wanted}': {nearest(wanted, found)}",
            expected=_columns(columns),
            fix=f"Rename the columns in the file, or set columns: {{{wanted}: the name in the file}} beside path",
        )
    return rows


def read_text(path: str, purpose: str) -> str:
    """The text of a local file or a URL. Raises ``DataError`` naming what it was needed for."""
    local = cached(path) if is_url(path) else locate(path)
    if local is None:
        raise DataError(f"'{path}' ({purpose}) is not a local file", expected="the path of a file, or an https URL")
    try:
        return local.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read '{path}' ({purpose}): {error}", fix="Check the path and that the file is UTF-8 text") from error


def read_lines(path: str, purpose: str) -> list[str]:
    """The non-blank lines of a text file, stripped. Raises ``DataError`` when there are none."""
    lines = [line.strip() for line in read_text(path, purpose).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"'{path}' ({purpose}) is empty", expected="one entry per line")
    return lines


def load_hub(part: Part, folder: Path | None = None) -> Any:
    """A split of a hub dataset, or of a dataset folder, as a ``datasets.Dataset``. Raises ``DataError`` saying what to do."""
    from datasets import load_dataset
    from huggingface_hub import errors as hub

    where = str(folder) if folder is not None else part.path
    try:
        return load_dataset(where, name=part.subset, revision=part.revision, split=part.split)
    except (OSError, ValueError, hub.HTTPError) as error:  # type: ignore[attr-defined]  # of whichever HTTP library the client uses
        named = f"dataset '{part.path}'" + (f", subset '{part.subset}'," if part.subset else "")
        raise DataError(
            f"Cannot load {named} (split '{part.split}'): {error}",
            expected="a local file, an https URL or the id of a hub dataset",
            fix=f"Check path, subset, split and revision; a gated dataset needs its terms accepted and 'hf auth login'. {OFFLINE}",
        ) from error


def _from_file(path: Path, given: str, words: str, fill: Mapping[str, str], most: int | None) -> tuple[list[str], list[Row]]:
    if not path.exists():
        raise DataError(f"The file '{given}' does not exist", fix="Check the path, or give the id of a hub dataset")
    if path.suffix not in SUFFIXES:
        raise DataError(f"'{given}' has the unknown file type '{path.suffix}'", expected=f"one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".csv":
            # Text only: a behavior called "nan" or an id "007" must survive.
            table = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig")
            return [str(column) for column in table.columns], [
                {str(key): value for key, value in row.items()} for row in table.to_dict("records")
            ]
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
            chosen = table if most is None else table.take(evenly(range(table.num_rows), most))
            return list(table.column_names), chosen.to_pylist()
        entries = _entries(path, given)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"Cannot read '{given}': {error}", expected=f"a valid {path.suffix[1:]} file in UTF-8") from error
    rows = [{**fill, words: entry} if isinstance(entry, str) and words else entry for entry in entries]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"'{given}' does not hold rows", expected="one JSON object per line (jsonl) or a list of objects (json)")
    # A column is there when any row has it: whether each row may leave it out is the loader's question.
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def _entries(path: Path, given: str) -> list[Any]:
    content = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".txt":
        return [line.strip() for line in content.splitlines() if line.strip()]
    if path.suffix == ".json":
        whole = parse_json(content) if content.strip() else []
        return whole if isinstance(whole, list) else [None]
    entries = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                entries.append(parse_json(line))
            except ValueError as error:
                raise DataError(f"Line {number} of '{given}' is no JSON: {error}", expected="one JSON object per line") from error
    return entries


def _without_blank(rows: list[Row], part: Part, findings: Findings | None) -> list[Row]:
    """Rows with any content. A sheet saved by hand often ends in rows of commas; they are no data and no error."""
    kept = [row for row in rows if any(text(row, column) for column in row)]
    if findings is not None and len(kept) < len(rows):
        blank = (str(number) for number, row in enumerate(rows, start=1) if not any(text(row, column) for column in row))
        findings.add(part.path, "rows without content", blank, "left out")
    return kept


def _renamed(found: list[str], rows: list[Row], part: Part) -> tuple[list[str], list[Row]]:
    names = {theirs: ours for ours, theirs in part.columns.items()}
    absent = [theirs for theirs in names if theirs not in found]
    if absent:
        raise DataError(
            f"'{part.path}' has no column '{absent[0]}', which its setting columns names; it has {_columns(found)}",
            expected="columns: {expected name: name in the file}",
            fix=nearest(absent[0], found),
        )
    if not names:
        return found, rows
    # A column that the mapping replaces would otherwise stand there twice.
    kept = [column for column in found if column not in part.columns or column in names]
    return [names.get(column, column) for column in kept], [
        {names.get(column, column): value for column, value in row.items() if column in kept} for row in rows
    ]


def _columns(names: Sequence[str]) -> str:
    return ("column " if len(names) == 1 else "columns ") + (", ".join(names) or "(none)")
