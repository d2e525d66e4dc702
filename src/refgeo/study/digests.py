"""Content hashes of the files that a study starts from: what is in them counts, not where they lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from refgeo.errors import DataError
from refgeo.study.files import write_text
from refgeo.study.reading import read_json

BLOCK = 1 << 22
REMEMBERED_FROM = 1 << 24
"""Bytes from which a file's hash is kept for the next process; smaller files are read again, which is as fast and never wrong."""


class Digests:
    """Hashes each file once; those of large files are remembered between processes by path, size and modification time."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, str] = {}
        self._large: dict[str, str] = {}
        if memory is not None and memory.is_file():
            try:
                self._large = {key: str(value) for key, value in read_json(memory).items()}
            except (OSError, ValueError):
                self._large = {}
        self._known.update(self._large)

    def of(self, path: Path) -> str:
        """sha256 of a file, or of the names and hashes of all files in a folder. Raises ``DataError`` when there is none."""
        try:
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
                listing = "".join(f"{file.relative_to(path).as_posix()} {self._file(file)}\n" for file in files)
                return hashlib.sha256(listing.encode()).hexdigest()
            return self._file(path)
        except OSError as error:
            raise DataError(f"'{path}' cannot be read: {error.strerror or error}", fix="Check the path in the configuration") from error

    def save(self) -> None:
        """Keep what was learned for the next process."""
        if self._memory is not None and self._large:
            write_text(self._memory, json.dumps(self._large, indent=0))

    def _file(self, file: Path) -> str:
        facts = file.stat()
        key = f"{file.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
        if key not in self._known:
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while block := stream.read(BLOCK):
                    digest.update(block)
            self._known[key] = digest.hexdigest()
            if facts.st_size >= REMEMBERED_FROM:
                self._large[key] = self._known[key]
        return self._known[key]
