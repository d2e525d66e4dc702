"""Writing that is whole or not there: a text file, or a folder that is filled aside and renamed into place."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from refgeo.errors import StoreError
from refgeo.study.locks import Owner, started_at, this_process

FULL = {errno.ENOSPC, errno.EDQUOT}
MARK = ".~"
"""Separates the name of a folder from the owner's tag in the names of temporary folders."""


def disk_full(error: OSError, place: Path) -> StoreError | None:
    """The message for a full disk; None when the error is another one."""
    if error.errno not in FULL:
        return None
    return StoreError(f"The disk that holds '{place}' is full", fix="Free some space and run again; what is finished is kept")


@contextmanager
def storing(place: Path) -> Iterator[None]:
    """Around the store's own reading and writing: what the system refuses becomes ``StoreError``."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        # The name of what is filled aside is no name that the user knows.
        named = error.filename if error.filename and MARK not in str(error.filename) else place
        where, why = named, error.strerror or error
        fix = "Choose another place (-o) or change its permissions"
        raise disk_full(error, place) or StoreError(f"'{where}' cannot be written: {why}", fix=fix) from error


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV in which no cell is a formula to a spreadsheet: text that would be one gets an apostrophe before it.

    A carriage return, at which spreadsheets begin a row and which the csv module does not quote, becomes a line break.
    """
    names = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    return table.assign(**{name: table[name].map(_cell) for name in names}).to_csv(index=False)


def save_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as ``csv_text`` gives it."""
    path.write_text(csv_text(table), encoding="utf-8")


def _cell(given: object) -> object:
    if not isinstance(given, str):
        return given
    text = given.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` in one step: a reader sees the old or the new text, never a part."""
    partial = path.with_name(f".{path.name}{MARK}{this_process().tag}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """An empty temporary sibling of ``folder``, renamed to it (replacing what was there) when the block ends without an error."""
    tag = this_process().tag
    partial, old = (folder.with_name(f".{folder.name}.{kind}{MARK}{tag}") for kind in ("new", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with storing(folder):
        partial.mkdir(parents=True)
    try:
        yield partial
        with storing(folder):
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
    except OSError as error:
        full = disk_full(error, folder)
        if full is None:
            raise
        raise full from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(run: Path) -> None:
    """Remove what dead processes of this machine left under ``run`` under temporary names."""
    here = this_process().host
    for path in sorted(run.rglob(f".*{MARK}*")):
        owner = Owner.from_tag(path.name.rsplit(MARK, 1)[1])
        if owner is not None and owner.host == here and started_at(owner.pid) != owner.started:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_leftovers_of(folder: Path) -> None:
    """Remove every temporary sibling of ``folder``, whoever made it: for the process that holds the lock on it."""
    for path in folder.parent.glob(f".{folder.name}.*{MARK}*"):
        shutil.rmtree(path, ignore_errors=True)
