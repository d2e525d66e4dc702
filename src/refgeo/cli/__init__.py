"""The command line: parses, calls, prints. Heavy imports are late, so that ``refgeo --help`` answers at once."""

from __future__ import annotations

import sys

from refgeo.cli import studies, instruments, results  # noqa: F401  (they add their commands in this order)  # isort: skip
from refgeo.cli.common import app, told_warnings
from refgeo.errors import RefgeoError
from refgeo.study.terminal import Terminal

__all__ = ["app", "main"]


def main() -> None:
    """The command ``refgeo``: errors made on purpose are one message and exit code 2."""
    try:
        with told_warnings():
            app(prog_name="refgeo")
    except RefgeoError as error:
        Terminal(stderr=True).print(f"Error: {error}", soft_wrap=True)
        sys.exit(2)
