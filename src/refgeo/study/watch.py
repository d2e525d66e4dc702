"""How far a run is, once or until it ends: the tables of ``refgeo status``, read from the folder that another process works in."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from refgeo.config.schema import Study
from refgeo.study.claims import Claim
from refgeo.study.run import open_study
from refgeo.study.screen import duration, remaining, running_table
from refgeo.study.store import STATE, Store
from refgeo.study.tables import anchor_table, kind_table, legend

EVERY = 2.0
"""Seconds between looks at the folder."""


@dataclass(frozen=True)
class Look:
    """What is seen at one moment. ``at_work``: a living process holds the folder, here or on another machine.

    ``shown`` ends with what runs, where a terminal stands after printing; ``live`` begins with it, for a window may be too low for all.
    """

    shown: RenderableType
    finished: bool
    at_work: bool
    live: RenderableType | None = None

    @property
    def refreshed(self) -> RenderableType:
        """What a live display shows."""
        return self.shown if self.live is None else self.live


def look(study: Study, run: Path, builder: str) -> Look:
    """Read the folder. Raises ``StoreError`` when it belongs to something else."""
    store, graph = open_study(study, run, builder)
    records = store.records(graph.stages.values())
    done = graph.done(records)
    kinds, anchors = kind_table(store, graph, done, records), anchor_table(store, graph, done, records)
    whole: list[RenderableType] = [kinds, Text()]
    if anchors.row_count:
        whole += [anchors, legend(store, graph, done, records), Text()]
    now = running_table(store, graph, done)
    left = remaining(graph, done, records)
    words = f"{len(done)} of {len(graph.stages)} stages done" + (f", about {duration(left)} of work left" if left else "") + "."
    news: list[RenderableType] = [now, Text(), Text(words)] if now.row_count else [Text(words)]
    finished = len(done) == len(graph.stages)
    return Look(Group(*whole, *news), finished, at_work(store), live=Group(*news, Text(), *whole))


def at_work(store: Store) -> bool:
    """Whether a living process works in the folder, also between two stages."""
    return any(Claim(path).owner() is not None for path in sorted((store.run / STATE / "sessions").glob("*.json")))


def watch(console: Console, see: Callable[[], Look], patient: bool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show looks until the run is finished or Ctrl-C is pressed, then leave the last one on the screen.

    Unless ``patient``, it also ends when no process works on the run any more: nothing would change.
    """
    seen = see()
    try:
        with Live(seen.refreshed, console=console, auto_refresh=False, transient=True) as live:
            while not seen.finished and (patient or seen.at_work):
                sleep(EVERY)
                with suppress(FileNotFoundError):  # A stage is put in its place just now: the last look stays.
                    seen = see()
                live.update(seen.refreshed, refresh=True)
    except KeyboardInterrupt:
        pass
    console.print(seen.shown)
