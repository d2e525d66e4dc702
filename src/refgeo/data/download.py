"""One file from a URL, whole or not at all, kept for the next run."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from refgeo.config.locations import OFFLINE, is_url, plain_name
from refgeo.errors import DataError

CACHE = "REFGEO_CACHE"
"""Environment variable: folder for downloaded files; ``~/.cache/refgeo`` when absent."""
TIMEOUT = 60.0


def cached(url: str) -> Path:
    """The file behind ``url``, downloaded once per machine. Raises ``DataError`` when it cannot be had."""
    cache = Path(os.environ.get(CACHE) or "~/.cache/refgeo").expanduser()
    target = cache / hashlib.sha256(url.encode()).hexdigest()[:16] / file_name(url)
    if not target.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"Cannot write to the cache folder '{cache}': {error.strerror}", fix=f"Set {CACHE} to a folder") from error
        download(url, target)
    return target


def download(url: str, target: Path) -> None:
    """Write what ``url`` answers to ``target``, which appears when it is complete. Raises ``DataError``."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file)
            stated = answer.headers.get("Content-Length", "")
            if not is_url(answer.url):
                raise DataError(f"'{url}' leads to '{answer.url}'", expected="https all the way")
        if stated.isdecimal() and int(stated) != partial.stat().st_size:
            raise DataError(f"The download of '{url}' broke off", expected=f"{stated} bytes", fix="Try again")
        partial.replace(target)
    except DataError:
        raise
    except HTTPError as error:
        raise DataError(
            f"'{url}' cannot be had: its server answers {error.code} ({error.reason})", fix="Check the address; it may have moved"
        ) from error
    except HTTPException as error:
        raise DataError(f"The download of '{url}' broke off ({type(error).__name__})", fix="Try again") from error
    except (OSError, ValueError) as error:  # urllib's own errors; no address
        error = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
        raise DataError(f"Cannot download '{url}': {error}", fix=OFFLINE) from error
    finally:
        partial.unlink(missing_ok=True)


def file_name(url: str) -> str:
    """The last part of a URL's path, as a file may be called. Raises ``DataError`` when there is none."""
    try:
        name = plain_name(PurePosixPath(urlsplit(url).path).name, "")
    except ValueError as error:
        raise DataError(f"'{url}' is no address: {error}", expected="one such as https://example.org/set.csv") from error
    if not name:
        raise DataError(f"The URL '{url}' names no file", expected="an address such as https://example.org/set.csv")
    return name
