"""What a path in a configuration means: a shipped file, a local one, or a hub id."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

PACKAGE = "package:"


def locate(path: str) -> Path | None:
    """The local file or folder behind ``path``; None when it names something on a hub."""
    if path.startswith(PACKAGE):
        return Path(str(files("refgeo"))) / path.removeprefix(PACKAGE)
    local = Path(path).expanduser()
    return local if local.exists() or path.startswith((".", "/", "~")) or local.suffix in FILE_SUFFIXES else None


FILE_SUFFIXES = frozenset({".csv", ".jsonl", ".json", ".parquet", ".txt", ".yaml", ".yml", ".jinja"})
