"""What model judges said, remembered on disk: one JSON line per opinion, under a hash of judge, request and completion."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from refgeo.config.judge import RefusalClass
from refgeo.errors import StoreError
from refgeo.judging.models import digest
from refgeo.judging.reader import Opinion, Reader
from refgeo.judging.verdict import Exchange, Label

CHUNK = 256
"""Exchanges that are read before what was said is written down: a killed run loses no more."""


class RememberingReader:
    """A reader that does not read the same completion of the same request twice; with a folder not even in the next run.

    Several processes may share the folder: a line is appended with one write, and each process reads on from where it stopped. A line that
    is cut off or damaged is skipped and its completion read again.
    """

    def __init__(self, reader: Reader, folder: Path | None) -> None:
        self.reader, self.identity = reader, reader.identity
        self.path = None if folder is None else folder / f"{reader.identity[:24]}.jsonl"
        self._known: dict[str, Opinion] = {}
        self._offset = 0

    def read(self, exchanges: Sequence[Exchange]) -> list[Opinion]:
        """One opinion per exchange, in order. Raises ``StoreError`` when the folder cannot be used, and what the reader raises."""
        self._refresh()
        keys = [digest([self.identity, given.request, given.completion]) for given in exchanges]
        fresh = [index for key, index in {key: index for index, key in enumerate(keys)}.items() if key not in self._known]
        # Neighbors in length together: a chunk is padded to its longest.
        fresh.sort(key=lambda index: len(exchanges[index].request) + len(exchanges[index].completion))
        for start in range(0, len(fresh), CHUNK):
            chunk = fresh[start : start + CHUNK]
            opinions = self.reader.read([exchanges[index] for index in chunk])
            said = dict(zip((keys[index] for index in chunk), opinions, strict=True))
            self._known.update(said)
            self._append(said)
        return [self._known[key] for key in keys]

    def _refresh(self) -> None:
        if self.path is None or not self.path.exists():
            return
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError as error:
            raise StoreError(f"Cannot read the verdict cache '{self.path}': {error}", fix="Set judge.cache to another folder") from error
        whole = data.rfind(b"\n") + 1  # what follows is still being written
        self._offset += whole
        for line in data[:whole].splitlines():
            entry = _entry(line)
            if entry is not None:
                self._known[entry[0]] = entry[1]

    def _append(self, said: dict[str, Opinion]) -> None:
        if self.path is None:
            return
        lines = "".join(json.dumps({"key": key, **opinion._asdict()}) + "\n" for key, opinion in said.items()).encode("ascii")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                size = os.fstat(handle).st_size
                # A process that was killed may have left half a line.
                torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                os.write(handle, b"\n" + lines if torn else lines)
            finally:
                os.close(handle)
        except OSError as error:
            raise StoreError(f"Cannot write the verdict cache '{self.path}': {error}", fix="Set judge.cache to another folder") from error


def _entry(line: bytes) -> tuple[str, Opinion] | None:
    """The opinion in a line; None for one that is damaged."""
    try:
        found: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or set(found) != {"key", *Opinion._fields}:
        return None
    key, label, refusal, raw = (found[name] for name in ("key", "label", "refusal", "raw"))
    numbers = [found["probability"], found["graded"]]
    if not isinstance(key, str) or not isinstance(raw, str) or label not in get_args(Label):
        return None
    if refusal not in (None, *get_args(RefusalClass)) or not all(value is None or isinstance(value, float | int) for value in numbers):
        return None
    return key, Opinion(label, refusal, raw, *numbers)
