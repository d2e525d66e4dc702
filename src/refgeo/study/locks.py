"""Who is working on what: lock files that two processes can share and that a dead owner leaves behind without harm."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refgeo.study.reading import read_json

UNATTENDED = 120.0
"""Seconds after which a lock of another machine that nobody renews counts as abandoned."""
RENEW_EVERY = 15.0
"""Seconds between renewals."""


@dataclass(frozen=True)
class Owner:
    """One process. ``started`` tells it from a later one with the same number (clock ticks since boot; 0 where unknown)."""

    host: str
    pid: int
    started: int

    @property
    def tag(self) -> str:
        """The owner in a file name."""
        return f"{self.pid}~{self.started}~{self.host}"

    @classmethod
    def from_tag(cls, tag: str) -> Owner | None:
        """The owner that ``tag`` names; None when it is no tag."""
        parts = tag.split("~", 2)
        if len(parts) != 3 or not parts[0].isdecimal() or not parts[1].isdecimal():
            return None
        return cls(parts[2], int(parts[0]), int(parts[1]))


def this_process() -> Owner:
    """The running process."""
    return Owner(socket.gethostname(), os.getpid(), started_at(os.getpid()) or 0)


def started_at(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when there is no such process, 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return 0
    return 0


class Lock:
    """A lock file: created by one process, readable by all, void as soon as its owner is dead."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self, **note: object) -> bool:
        """Try to become the owner; False when a living process is. ``note`` is stored beside the owner."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._create(note):
            return True
        if self.owner() is not None:
            return False
        self._bury()
        return self._create(note)

    def owner(self) -> Owner | None:
        """The living owner; None when the lock is free or its owner is dead."""
        content = self.read()
        if content is None:
            # Either nobody, or somebody between creating the file and writing into it.
            return Owner("", 0, 0) if 0 <= self._age() < RENEW_EVERY else None
        owner = Owner(content["host"], content["pid"], content["started"])
        if owner.host == socket.gethostname():
            return owner if started_at(owner.pid) == owner.started else None
        return owner if self._age() < UNATTENDED else None

    def read(self) -> dict[str, Any] | None:
        """Owner and note as stored; None when there is no readable lock."""
        try:
            content = read_json(self.path)
        except (OSError, ValueError):
            return None
        kinds = (("host", str), ("pid", int), ("started", int))
        return content if all(isinstance(content.get(name), kind) for name, kind in kinds) and content["pid"] > 0 else None

    def renew(self) -> None:
        """Tell other machines that the owner lives."""
        with suppress(FileNotFoundError):
            os.utime(self.path)

    def release(self) -> None:
        """Give the lock up, if it is this process's."""
        if self.owner() == this_process():
            self.path.unlink(missing_ok=True)

    def _create(self, note: dict[str, object]) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(this_process()), **note}))
        return True

    def _bury(self) -> None:
        """Remove a dead owner's lock. Moved aside first: of two processes that see the dead one, one removes it."""
        aside = self.path.with_name(f"{self.path.name}.{this_process().tag}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        moved = Lock(aside)
        if moved.owner() is None:
            aside.unlink(missing_ok=True)
        else:  # Another process was faster and its new lock was moved: put it back.
            with suppress(OSError):
                os.link(aside, self.path)
            aside.unlink(missing_ok=True)

    def _age(self) -> float:
        try:
            return max(0.0, time.time() - self.path.stat().st_mtime)
        except OSError:
            return -1.0
