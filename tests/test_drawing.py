"""Figures drawn by a browser that may die, hang or answer with an error."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from refgeo.errors import ConfigError, StoreError
from refgeo.report import drawing
from refgeo.report.drawing import BARREN, STYLE, Drawer, Drawing

CHROME = next((path for name in ("google-chrome", "chromium", "chromium-browser", "chrome") if (path := shutil.which(name))), None)
Act = Callable[["Browsers", str], Any]


class NoChrome(Exception):
    """What kaleido raises where there is no browser."""


class Process:
    """Stands for the program of a browser."""

    def __init__(self) -> None:
        self.pid, self.killed = 0, False

    def poll(self) -> None:
        """Still running."""

    def kill(self) -> None:
        self.killed = True


class Browsers:
    """A kaleido whose browsers do to a figure what ``act`` says: return its bytes, raise, or never return."""

    def __init__(self, act: Act) -> None:
        self.act, self.opened, self.busiest, self.closed = act, 0, 0, 0
        self.processes: list[Process] = []
        self.header = ""
        outer = self

        class PageGenerator:
            header = "<head>"

            def __init__(self, mathjax: bool) -> None:
                assert not mathjax

        class Kaleido:
            def __init__(self, n: int, timeout: None, page_generator: PageGenerator) -> None:
                outer.header, self.room, self.pages = page_generator.header, n, 0

            async def open(self) -> None:
                outer.opened += 1
                self.subprocess = Process()
                outer.processes.append(self.subprocess)

            async def calc_fig(self, spec: dict[str, Any], opts: dict[str, Any]) -> bytes:
                self.pages += 1
                assert self.pages <= self.room
                outer.busiest = max(outer.busiest, self.pages)
                await asyncio.sleep(0)
                try:
                    return bytes(await outer.act(outer, spec["name"]) or spec["name"].encode())
                finally:
                    self.pages -= 1

            async def close(self) -> None:
                outer.closed += 1

        self.PageGenerator, self.Kaleido, self.ChromeNotFoundError = PageGenerator, Kaleido, NoChrome


async def fine(_: Browsers, name: str) -> None:
    await asyncio.sleep(0)


def deaf() -> Any:
    """A page that does not answer, and that cannot be cancelled either: what kaleido's own reload of a hung page does."""

    async def work() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if asyncio.current_task() in ENDED:
                    raise
                ENDED.add(asyncio.current_task())

    return work()


ENDED: set[asyncio.Task[Any] | None] = set()


def drawings(folder: Path, count: int = 6) -> list[Drawing]:
    return [Drawing(folder / f"f{index}.svg", {"name": f"f{index}"}, {"format": "svg"}) for index in range(count)]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Act], Browsers]:
    def make(act: Act) -> Browsers:
        found = Browsers(act)
        monkeypatch.setattr(drawing, "import_module", lambda name: found)
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        monkeypatch.setattr(os, "killpg", lambda pid, number: found.processes[-1].kill())
        return found

    return make


def test_every_figure_is_drawn_in_one_browser_by_several_pages(use: Callable[[Act], Browsers], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    browsers = use(fine)
    Drawer().draw(drawings(tmp_path), lambda done, total: told.append((done, total)))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {f"f{index}.svg": f"f{index}" for index in range(6)}
    assert told == [(done, 6) for done in range(1, 7)]
    assert (browsers.opened, browsers.closed, browsers.busiest) == (1, 1, 2)
    assert not browsers.processes[0].killed
    assert STYLE in browsers.header


def test_another_browser_goes_on_where_one_died(use: Callable[[Act], Browsers], tmp_path: Path) -> None:
    async def act(browsers: Browsers, name: str) -> None:
        if name == "f2" and browsers.opened == 1:
            raise OSError("Executor is closed.")

    browsers = use(act)
    Drawer().draw(drawings(tmp_path))
    assert len(list(tmp_path.glob("*.svg"))) == 6
    assert (browsers.opened, browsers.closed) == (2, 2)
    assert [process.killed for process in browsers.processes] == [True, False]


def test_a_page_that_hangs_is_ended_with_its_browser(use: Callable[[Act], Browsers], tmp_path: Path) -> None:
    async def act(browsers: Browsers, name: str) -> None:
        if name == "f2" and browsers.opened == 1:
            await deaf()

    browsers = use(act)
    Drawer(limit=0.05).draw(drawings(tmp_path))
    assert len(list(tmp_path.glob("*.svg"))) == 6
    assert [process.killed for process in browsers.processes] == [True, False]


def test_one_figure_that_cannot_be_drawn_costs_only_itself(use: Callable[[Act], Browsers], tmp_path: Path) -> None:
    async def act(_: Browsers, name: str) -> None:
        if name == "f1":
            raise RuntimeError("Error 525: no such trace")

    use(act)
    with pytest.raises(StoreError, match=r"1 of 6 figures were not drawn: f1\.svg ended with RuntimeError: Error 525.*BROWSER_PATH"):
        Drawer().draw(drawings(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f0.svg", "f2.svg", "f3.svg", "f4.svg", "f5.svg"]


def test_a_browser_that_draws_nothing_is_not_tried_for_ever(use: Callable[[Act], Browsers], tmp_path: Path) -> None:
    async def act(_: Browsers, name: str) -> None:
        raise OSError("gone")

    browsers = use(act)
    with pytest.raises(StoreError, match=r"6 of 6 figures were not drawn: .* ended with OSError: gone"):
        Drawer().draw(drawings(tmp_path))
    assert browsers.opened == BARREN
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_keeps_what_is_drawn_and_ends_the_browser(use: Callable[[Act], Browsers], tmp_path: Path) -> None:
    browsers = use(fine)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Drawer().draw(drawings(tmp_path), stop)
    assert len(list(tmp_path.iterdir())) == 3
    assert browsers.processes[0].killed
    assert browsers.closed == 1


def test_without_kaleido_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ConfigError, match=r"kaleido.*pip install 'refgeo\[figures\]'"):
        Drawer()


def test_without_chrome_the_error_says_what_to_install(
    use: Callable[[Act], Browsers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browsers = use(fine)

    def none(**options: object) -> None:
        raise NoChrome

    monkeypatch.setattr(browsers, "Kaleido", none)
    with pytest.raises(ConfigError, match=r"Chrome or Chromium.*BROWSER_PATH"):
        Drawer().draw(drawings(tmp_path))


def test_a_disk_that_is_full_is_no_fault_of_the_browser(use: Callable[[Act], Browsers], tmp_path: Path) -> None:
    browsers = use(fine)
    with pytest.raises(FileNotFoundError):
        Drawer().draw(drawings(tmp_path / "absent"))
    assert (browsers.opened, browsers.closed) == (1, 1)


@pytest.mark.slow
def test_a_pdf_shows_the_whole_figure_to_its_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    if CHROME is None:
        pytest.skip("no Chrome or Chromium")
    monkeypatch.setenv("BROWSER_PATH", CHROME)
    spec = {"data": [], "layout": {"paper_bgcolor": "#ff0000", "plot_bgcolor": "#ff0000"}}
    Drawer().draw([Drawing(tmp_path / "red.pdf", spec, {"format": "pdf", "width": 520, "height": 260, "scale": 1})])
    page = b""
    for packed in re.findall(rb"stream\r?\n(.*?)endstream", (tmp_path / "red.pdf").read_bytes(), flags=re.DOTALL):
        with suppress(zlib.error):
            page += zlib.decompress(packed.strip(b"\r\n"))
    background = re.search(rb"([\d.]+) ([\d.]+) cm\s+1 0 0 RG 1 0 0 rg\s.*?\s0 0 (\d+) (\d+) re", page, flags=re.DOTALL)
    assert background is not None
    assert [float(value) for value in background.groups()] == [0, 0, 520, 260]
