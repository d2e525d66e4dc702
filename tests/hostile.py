"""What the tests of hostile input share: words that bite, a file that holds them, and how to tell that text is harmless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

EVIL = "\x1b[31m\x1b]0;owned\x07 [red]x[/red] [/] [link=file:///etc]y[/link] :bomb: \u202e\u200b\x9b"
DEEP = "[" * 100_000
BEFORE = "extends: pocket\n"
WHOLE: dict[str, Any] = {"fingerprint": "f", "version": 1, "settings": {}, "inputs": {}, "seconds": 1.0, "libraries": {"torch": "2"}}
"""What a stage.json says."""


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def harmless(text: str) -> bool:
    """Nothing in it commands a terminal or hides."""
    return all(one.isprintable() or one == "\n" for one in text)
