"""What a person sees while a study runs: a live display on a terminal, plain lines elsewhere, a table for ``status`` and ``plan``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from refgeo.study import progress
from refgeo.study.graph import Graph, Record, Stage
from refgeo.study.schedule import Schedule
from refgeo.study.store import Store

EVERY = 30.0
"""Seconds between progress lines where there is no terminal."""


class RunScreen:
    """Follows a run in the foreground."""

    def __init__(self, console: Console, store: Store) -> None:
        self._console, self._store = console, store
        self._begun = self._spoken = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, stage: Stage) -> None:
        """A stage was handed to a worker: the display shows what runs, and lines tell of what has ended."""

    def finished(self, stage: Stage) -> None:
        """A stage is done."""
        record = self._store.record(stage)
        self._say(f"{describe(stage)}: done" + (f" in {duration(record.seconds)}" if record and stage.made_by is None else ""))

    def failed(self, stage: Stage, message: str) -> None:
        """A stage has failed."""
        self._say(f"{describe(stage)}: failed. {message}")

    def tick(self, schedule: Schedule) -> None:
        """Show what runs."""
        if self._live is not None:
            self._live.update(self._table(schedule))
        elif time.monotonic() - self._spoken > EVERY:
            self._say(f"{len(schedule.done)} of {len(schedule.graph.stages)} stages done")
            for stage, state in running(self._store, schedule.graph, schedule.done):
                self._say(f"{describe(stage)}: {how_far(state)}")

    def _table(self, schedule: Schedule) -> Table:
        left = remaining(schedule.graph, schedule.done, schedule.records)
        title = f"{len(schedule.done)} of {len(schedule.graph.stages)} stages, {duration(time.monotonic() - self._begun)}"
        table = running_table(self._store, schedule.graph, schedule.done)
        table.title = title + (f", {duration(left)} of work left" if left else "")
        return table

    def _say(self, text: str) -> None:
        self._spoken = time.monotonic()
        clock = duration(time.monotonic() - self._begun)
        self._console.print(f"{clock:>8}  {text}", markup=False, highlight=False, soft_wrap=True)


def running(store: Store, graph: Graph, done: Iterable[str]) -> list[tuple[Stage, progress.Standing | None]]:
    """The stages that a living process works on, here or elsewhere, and how far they are."""
    busy = store.busy(graph.stages.values()) - set(done)
    return [(stage, progress.read(store.progress(stage))) for stage in graph.stages.values() if stage.id in busy]


def running_table(store: Store, graph: Graph, done: Iterable[str]) -> Table:
    """One line per stage that a living process works on; what it notes is cut where the line ends, nothing else ever is."""
    table = Table(box=None, pad_edge=False, title_justify="left", expand=True)
    for column in ("running", "progress", "left"):
        table.add_column(column, no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    for stage, state in running(store, graph, done):
        bar, left, note = ("", "", "starting") if state is None else (fraction(state), duration(state.eta()), state.note)
        table.add_row(describe(stage), bar, left, Text(note))
    return table


def remaining(graph: Graph, done: set[str], records: Mapping[str, Record | None]) -> float | None:
    """Seconds of work left, summed over workers, at the cost of finished stages of the same kind; None while a kind has no example."""
    costs = learned(graph, records)
    total = 0.0
    for name, stage in graph.stages.items():
        if name not in done and stage.made_by is None:
            if cost_key(stage) not in costs:
                return None
            total += costs[cost_key(stage)]
    return total


def learned(graph: Graph, records: Mapping[str, Record | None]) -> dict[str, float]:
    """Mean seconds of the finished stages of each kind, whatever their settings were."""
    seen: dict[str, list[float]] = {}
    for name, stage in graph.stages.items():
        record = records.get(name)
        if record is not None and stage.made_by is None:
            seen.setdefault(cost_key(stage), []).append(record.seconds)
    return {kind: mean(seconds) for kind, seconds in seen.items()}


def cost_key(stage: Stage) -> str:
    """Stages with the same key cost about the same."""
    return f"{stage.kind} {stage.arm}" if stage.kind == "train" else stage.kind


def describe(stage: Stage) -> str:
    """A stage in words: ``r2d2 seed 1, step 50, behavior``."""
    if stage.arm is None and stage.step is None:
        return stage.id
    parts = [f"{stage.arm} seed {stage.seed}" if stage.arm is not None else "start"]
    if stage.step:
        parts.append(f"step {stage.step}")
    elif stage.step == 0 and stage.arm is not None:
        parts.append("start")
    return ", ".join([*parts, stage.kind])


def how_far(state: progress.Standing | None) -> str:
    """Progress as one line."""
    if state is None or not state.total:
        return "running"
    eta = state.eta()
    return " ".join(part for part in (fraction(state), state.note, f"({duration(eta)} left)" if eta is not None else "") if part)


def fraction(state: progress.Standing) -> str:
    """``12/40``, nothing while there is no total."""
    return f"{state.done}/{state.total}" if state.total else ""


def duration(seconds: float | None) -> str:
    """``3 s``, ``2:05``, ``1:02:05``; nothing when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
