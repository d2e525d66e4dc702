"""What a path in a configuration means: a shipped file, a local one, a URL, or a hub id; and what a file may be called."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from unicodedata import normalize
from urllib.parse import parse_qsl, urlsplit

from refgeo.errors import ConfigError

PACKAGE = "package:"
URL = "https://"
OFFLINE = (
    "Where there is a network, 'refgeo fetch STUDY -o bundle' downloads everything that a study needs; "
    "copy the folder here and set data.bundle=bundle"
)
"""What to do without a network."""
LONGEST_NAME = 120
"""Bytes of a file's name: a quarter of what systems allow stays free for the marks of temporary files."""
_SECRET = re.compile(r"(^|[-_.])(token|key|apikey|sig|signature|secret|password|passwd|pwd|credential|auth)$", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_RANDOM = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[\w+/=~.-]{20,}$|[0-9a-fA-F]{24,}$")
_FILE = re.compile(r"(id|rev|revision|ref|commit|sha|sha1|sha256|md5|version)$", re.IGNORECASE)


def locate(path: str) -> Path | None:
    """The local file or folder behind ``path``; None when it is a URL or names something on a hub. Raises as ``local_path`` does."""
    if path.startswith(PACKAGE):
        return Path(str(files("refgeo"))) / path.removeprefix(PACKAGE)
    if is_url(path):
        return None
    local = local_path(path)
    return local if local.exists() or path.startswith((".", "/", "~")) or local.suffix in FILE_SUFFIXES else None


def local_path(path: str) -> Path:
    """``path`` with ``~`` written out. Raises ``ConfigError`` when this machine can have no such path, or forbids to look."""
    try:
        if "\0" in path:
            raise ValueError("it holds a NUL")
        local = Path(path).expanduser()
        local.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, not permitted; no such user; no characters of a name
        why = error.strerror or error if isinstance(error, OSError) else error
        shown = path if len(path) <= 200 else f"{path[:200]}..."
        raise ConfigError(f"'{shown}' cannot be looked up: {why}", expected="a path, or the id of something on a hub") from error
    return local


def is_url(path: str) -> bool:
    """Whether ``path`` is the address of one file; only https is."""
    return path.startswith(URL)


def has_secret(text: str) -> bool:
    """Whether an address carries a password, or a token in its query: it would be written into every run folder and report.

    A token is told by its name, or by a value that looks drawn at random under a name that does not say which file is meant.

    >>> has_secret("https://x.org/a.csv?k=Zm9vYmFyMTIzNDU2Nzg5MA"), has_secret("https://x.org/a.csv?download=true")
    (True, False)
    """
    if not _ADDRESS.match(text):
        return False
    try:
        parts = urlsplit(text.strip())
    except ValueError:  # no address at all: whoever opens it says so
        return False
    given = (pair for part in (parts.query, parts.fragment) for pair in parse_qsl(part, keep_blank_values=True))
    return "@" in parts.netloc or any(_SECRET.search(name) or (_RANDOM.match(value) and not _FILE.match(name)) for name, value in given)


def plain_name(text: str, otherwise: str) -> str:
    """``text`` as the name of one file or folder, whatever it holds: letters, digits and ``_ . @ + -``; the end of one that is too long.

    >>> plain_name("../../etc/pass wd\\0", "x"), plain_name("..", "x")
    ('etc-pass-wd', 'x')
    """
    name = re.sub(r"[^\w.@+-]+", "-", normalize("NFC", text))
    return name.encode("utf-8", "ignore")[-LONGEST_NAME:].decode("utf-8", "ignore").strip("-.") or otherwise


def is_name(text: str) -> bool:
    """Whether ``text`` can be the name of one folder as it stands, here and elsewhere."""
    fits = 0 < len(text.encode("utf-8", "replace")) <= LONGEST_NAME and text.isprintable()
    return fits and text.strip(" ") == text and text not in (".", "..") and not set(text) & set("/\\")


FILE_SUFFIXES = frozenset({".csv", ".jsonl", ".json", ".parquet", ".txt", ".yaml", ".yml", ".jinja"})
