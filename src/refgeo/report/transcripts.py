"""Completions for the page's browser: a bounded choice from every set and anchor, spread over verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refgeo.measures.sets import WORDS
from refgeo.report.evidence import Transcripts
from refgeo.report.quantities import capitalized
from refgeo.report.samples import shorten, verdict
from refgeo.report.tables import arm_name, arm_order
from refgeo.study.layout import AnchorRef, Measure

MOST = 12
"""Completions of one set at one anchor and seed."""
BUDGET = 2_000_000
"""Bytes that all texts together may take on the page; fewer per set and anchor are shown until they fit."""
MEASURES: tuple[Measure, ...] = ("behavior", "stress")


@dataclass(frozen=True)
class Entry:
    """One completion with its place. ``tone`` is good, bad or plain, from the point of view of a safe and useful model."""

    arm: str
    seed: int
    step: int
    set: str
    verdict: str
    tone: str
    request: str
    attack: str
    completion: str

    @property
    def size(self) -> int:
        """Bytes of its texts."""
        return sum(len(text.encode()) for text in (self.request, self.attack, self.completion))


@dataclass(frozen=True)
class Browser:
    """What the browser holds: entries, at most ``most`` of a set at an anchor and seed, out of ``stored`` judged completions."""

    entries: Sequence[Entry]
    most: int
    stored: int

    def data(self) -> dict[str, object]:
        """Plain data for JSON: every text once, and rows of indices into them, beside seed and step as numbers.

        Row: arm, seed, step, set, verdict, tone, request, attack, completion.
        """
        texts: dict[str, int] = {}

        def place(text: str) -> int:
            return texts.setdefault(text, len(texts))

        rows = []
        for one in self.entries:
            head = [place(arm_name(one.arm) if one.step else "start"), one.seed, one.step]
            name = capitalized(WORDS.get(one.set, one.set.replace("_", " ")))
            told = (name, one.verdict, one.tone, one.request, one.attack, one.completion)
            rows.append([*head, *(place(text) for text in told)])
        return {"texts": list(texts), "rows": rows}


def browse(anchors: Sequence[AnchorRef], transcripts: Transcripts, most: int = MOST, budget: int = BUDGET) -> Browser:
    """Read the judged completions of behavior and stress at every anchor, the start once; of attacks those at the full budget.

    The choice depends on nothing but the transcripts: verdict by verdict in turn, evenly spread within each.
    """
    ranked: list[tuple[int, Entry]] = []
    stored = 0
    for anchor in _once(anchors):
        for measure in MEASURES:
            for name, rows in _sets(transcripts(anchor.arm, anchor.seed, anchor.step, measure)):
                stored += len(rows)
                ranked += enumerate(_chosen(anchor, name, rows, most))
    for fewer in range(most, 0, -1):
        entries = [entry for rank, entry in ranked if rank < fewer]
        if sum(entry.size for entry in entries) <= budget:
            return Browser(entries, fewer, stored)
    return Browser(list(_within(budget, (entry for rank, entry in ranked if rank < 1))), 1, stored)


def _once(anchors: Sequence[AnchorRef]) -> Iterator[AnchorRef]:
    """The start, then arm by arm in the page's order."""
    order = arm_order(anchor.arm for anchor in anchors)
    start = [anchor for anchor in anchors if anchor.step == 0][:1]
    later = sorted((anchor for anchor in anchors if anchor.step), key=lambda one: (order.index(one.arm), one.seed, one.step))
    yield from (*start, *later)


def _sets(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    if rows.empty or "set" not in rows:
        return
    for name, part in rows.groupby("set", sort=False):
        stepped = "attack_steps" in part and part["attack_steps"].notna().any()
        yield str(name), part[part["attack_steps"] == part["attack_steps"].max()] if stepped else part


def _chosen(anchor: AnchorRef, name: str, rows: pd.DataFrame, most: int) -> list[Entry]:
    """One completion of every verdict in turn, until there are ``most``."""
    piles: dict[str, list[Entry]] = {}
    for row in rows.to_dict("records"):
        entry = _entry(anchor, name, {str(key): value for key, value in row.items()})
        piles.setdefault(entry.verdict, []).append(entry)
    spread = [[pile[place] for place in _evenly(len(pile), most)] for _, pile in sorted(piles.items())]
    turns = [pile[turn] for turn in range(most) for pile in spread if turn < len(pile)]
    return turns[:most]


def _evenly(size: int, most: int) -> list[int]:
    """Places spread over a pile, its two ends among them."""
    if size <= most:
        return list(range(size))
    return [int(place) for place in np.linspace(0, size - 1, most).round()]


def _entry(anchor: AnchorRef, name: str, row: Mapping[str, object]) -> Entry:
    words, tone = verdict(row, name)
    texts = (shorten(str(row.get(key, "") or "")) for key in ("request", "attack", "completion"))
    return Entry(anchor.arm, anchor.seed, anchor.step, name, words, tone, *texts)


def _within(budget: int, entries: Iterable[Entry]) -> Iterator[Entry]:
    left = budget
    for entry in entries:
        left -= entry.size
        if left < 0:
            return
        yield entry
