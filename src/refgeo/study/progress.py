"""How far every running stage is: small files that the worker writes and that any process can show."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from refgeo.study.files import write_text
from refgeo.study.reading import read_json

EVERY = 0.5
"""Seconds between writes."""


@dataclass(frozen=True)
class Standing:
    """Where a running stage stands. ``first_done`` and ``first_time``: its first report, so that resumed work gives no false speed."""

    done: int
    total: int
    note: str
    started: float
    updated: float
    first_done: int
    first_time: float

    def eta(self) -> float | None:
        """Seconds left at the speed so far; None while there is no speed."""
        moved, took = self.done - self.first_done, self.updated - self.first_time
        return took * (self.total - self.done) / moved if moved > 0 and took > 0 else None


class Reporter:
    """The ``progress(done, total, note)`` that a stage function gets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = time.time()
        self._first: tuple[int, float] | None = None
        self._total = 0
        self._last = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(0, 0, "")

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report; most reports are dropped, the first and the last of a part never are."""
        now = time.time()
        new_part = self._first is None or total != self._total or done < self._first[0]
        if new_part:
            self._first, self._total = (done, now), total
        if new_part or done >= total or now - self._last >= EVERY:
            self._write(done, total, note)

    def close(self) -> None:
        """The stage has ended."""
        self._path.unlink(missing_ok=True)

    def _write(self, done: int, total: int, note: str) -> None:
        self._last = time.time()
        first_done, first_time = self._first if self._first is not None else (0, self._started)
        write_text(self._path, json.dumps(asdict(Standing(done, total, note, self._started, self._last, first_done, first_time))))


def read(path: Path) -> Standing | None:
    """What a reporter wrote last; None when there is nothing."""
    try:
        told = read_json(path)
        done, total, first = (int(told[name]) for name in ("done", "total", "first_done"))
        started, updated, begun = (float(told[name]) for name in ("started", "updated", "first_time"))
        return Standing(done, total, str(told["note"]), started, updated, first, begun)
    except (OSError, ArithmeticError, KeyError, TypeError, ValueError):
        return None
