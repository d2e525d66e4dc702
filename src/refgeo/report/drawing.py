"""Figures drawn into files by a browser that kaleido leads: several pages at once, every file whole or absent, no wait without end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from refgeo.errors import ConfigError, StoreError

INSTALL = "Install it with: pip install 'refgeo[figures]'; the tables need neither kaleido nor Chrome"
CHROME = "Install Chrome or Chromium, or set BROWSER_PATH to its program; the tables need neither"
PAGES = 4
"""Pages at once at most; fewer where there are fewer cores."""
LIMIT = 120.0
"""Seconds after which a browser that says nothing is taken for hung; on a crowded machine the start alone takes most of a minute."""
PARTING = 10.0
"""Seconds that a browser has to end."""
BARREN = 2
"""Browsers in a row that may end before they draw anything."""
STYLE = "<style>@page { margin: 0 } body { margin: 0 !important } img { display: block }</style>"
"""Without it Chrome prints a PDF with margins that push the lower and right edge of the figure off its page."""


class Drawing(NamedTuple):
    """A figure to be drawn: where to, what plotly draws, and kaleido's options (format, width, height, scale)."""

    file: Path
    spec: dict[str, Any]
    opts: dict[str, Any]


class Drawer:
    """Draws figures into files. Raises ``ConfigError`` when kaleido is not installed."""

    def __init__(self, limit: float = LIMIT) -> None:
        self._limit = limit
        logging.getLogger("choreographer").setLevel(logging.ERROR)  # That a browser ended is said here, and better.
        try:
            self._kaleido: ModuleType = import_module("kaleido")
            self._errors: ModuleType = import_module("kaleido.errors")
        except ImportError as error:
            raise ConfigError(f"Static figures need kaleido 1 or later, which cannot be imported ({error})", fix=INSTALL) from error

    def draw(self, drawings: Sequence[Drawing], progress: Callable[[int, int], None] | None = None) -> None:
        """Draw them all; a file appears when its figure is done, and ``progress(done, total)`` is called then.

        A browser that dies or hangs is ended and another one goes on with what is left. Raises ``ConfigError`` where there is no browser or
        none that starts, and ``StoreError`` when it failed again and again without drawing anything; what is drawn by then stays.
        """
        asyncio.run(self._draw(drawings, progress or (lambda done, total: None)))

    async def _draw(self, drawings: Sequence[Drawing], progress: Callable[[int, int], None]) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # Of what a given-up browser leaves, nobody asks.
        waiting = deque(drawings)
        busy: list[Drawing] = []
        barren = 0
        while waiting:
            before = len(waiting)
            # After a browser that drew nothing one page alone goes on, so that a figure that breaks it takes no other one with it.
            pages = 1 if barren else min(PAGES, os.cpu_count() or 1, before)
            why = await self._session(pages, waiting, busy, lambda: progress(len(drawings) - len(waiting) - len(busy), len(drawings)))
            waiting.extend(busy)  # What may have broken this browser comes last in the next one.
            busy.clear()
            barren = barren + 1 if len(waiting) == before else 0
            if barren == BARREN:
                raise StoreError(
                    f"{before} of {len(drawings)} figures were not drawn: {why}",
                    fix="What is drawn stays. Run the command again, or set BROWSER_PATH to another Chrome or Chromium",
                )

    async def _session(self, count: int, waiting: deque[Drawing], busy: list[Drawing], drawn: Callable[[], None]) -> str:
        """One browser, until nothing waits or it fails: why it failed. ``busy``: what its pages were at, the one that failed last."""
        page = self._kaleido.PageGenerator(mathjax=False)  # Formulas would ask the network for MathJax; no figure has one.
        page.header += STYLE
        try:
            browser = self._kaleido.Kaleido(n=count, timeout=None, page_generator=page)
        except self._errors.ChromeNotFoundError as error:
            raise ConfigError("Static figures need Chrome or Chromium, and none was found", fix=CHROME) from error
        why = "interrupted"
        try:
            await self._answer(browser.open(), "the browser that should start")
            pages = [asyncio.create_task(self._page(browser, waiting, busy, drawn)) for _ in range(count)]
            ended, others = await asyncio.wait(pages, return_when=asyncio.FIRST_EXCEPTION)
            for task in others:
                task.cancel()
            failures = [failure for task in ended if (failure := task.exception()) is not None]
            for failure in failures:
                if not isinstance(failure, _NoAnswer):
                    raise failure
            why = str(failures[0]) if failures else ""
        except _NoAnswer as error:
            why = str(error)
        finally:
            if why:
                _end(getattr(browser, "subprocess", None))
            await asyncio.wait({asyncio.ensure_future(browser.close())}, timeout=PARTING)
        return why

    async def _page(self, browser: Any, waiting: deque[Drawing], busy: list[Drawing], drawn: Callable[[], None]) -> None:
        """Draw one figure after the other in one page of the browser. Raises ``_NoAnswer``."""
        while waiting:
            one = waiting.popleft()
            busy.append(one)
            try:
                image = await self._answer(browser.calc_fig(one.spec, opts=one.opts), one.file.name)
            except _NoAnswer:
                busy.remove(one)
                busy.append(one)
                raise
            part = one.file.with_name(f".{one.file.name}.part")
            part.write_bytes(image)
            part.replace(one.file)
            busy.remove(one)
            drawn()

    async def _answer(self, work: Awaitable[Any], name: str) -> Any:
        """What the browser answers. Raises ``_NoAnswer``, in time: ``asyncio.wait_for`` would wait for work that cannot be cancelled."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=self._limit)
        if not task.done():
            task.cancel()
            raise _NoAnswer(f"{name} gave no answer in {self._limit:g} seconds")
        if task.cancelled():
            raise _NoAnswer(f"the browser ended at {name}")
        error = task.exception()
        if error is not None:
            raise _NoAnswer(f"{name} ended with {type(error).__name__}: {error.args[0] if error.args else 'no reason given'}")
        return task.result()


class _NoAnswer(Exception):
    """A browser that died, hung, or answered with an error."""


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """End a browser and all that it started, at once: one that hangs does not listen to anything softer."""
    if process is None or process.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)  # It was started as the leader of a group of its own.
    else:
        process.kill()
