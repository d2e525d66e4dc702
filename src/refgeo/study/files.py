"""Writing that is whole or not there: a text file, or a folder that is filled aside and renamed into place."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refgeo.errors import StoreError
from refgeo.study.claims import Owner, started_at, this_process

FULL = {errno.ENOSPC, errno.EDQUOT}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
MARK = ".~"
"""Separates the name of a folder from the owner's tag in the names of temporary folders."""


def storage_error(error: OSError, place: Path) -> StoreError | None:
    """What a failed write means for the user; None when it is no matter of storage."""
    if error.errno in FULL:
        return StoreError(f"The disk that holds '{place}' is full", fix="Free some space and run again; what is finished is kept")
    if error.errno in REFUSED:
        where = error.filename or place
        fix = "Choose another run folder (-o DIR) or change its permissions"
        return StoreError(f"'{where}' cannot be written: {error.strerror}", fix=fix)
    return None


@contextmanager
def storing(place: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into ``StoreError``."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        meant = storage_error(error, place)
        if meant is None:
            raise
        raise meant from error


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
    with storing(folder):
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(run: Path) -> None:
    """Remove what dead processes of this machine left under ``run`` under temporary names."""
    here = this_process().host
    for path in sorted(run.rglob(f".*{MARK}*")):
        owner = Owner.from_tag(path.name.rsplit(MARK, 1)[1])
        if owner is not None and owner.host == here and started_at(owner.pid) != owner.started:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_leftovers_of(folder: Path) -> None:
    """Remove every temporary sibling of ``folder``, whoever made it: for the process that holds the claim on it."""
    for path in folder.parent.glob(f".{folder.name}.*{MARK}*"):
        shutil.rmtree(path, ignore_errors=True)
