"""Completions for the reader's own eyes: a few prompts, each followed through all anchors of one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refgeo.measures.sets import BENIGN, WORDS
from refgeo.report.evidence import Transcripts
from refgeo.report.quantities import capitalized
from refgeo.report.tables import arm_name
from refgeo.study.layout import AnchorRef, Measure

SETS: tuple[tuple[Measure, str, int], ...] = (
    ("behavior", "fixed", 5),
    ("behavior", "direct", 5),
    ("stress", "adaptive_gcg", 4),
    ("stress", "adaptive_autodan", 3),
    ("behavior", "xstest_safe", 5),
    ("behavior", "audit", 3),
)
"""Where prompts are taken from, and how many."""
NO_SCORE = ("answered", "plain")
LONGEST = 1200
"""Characters of a prompt, suffix or completion that are shown."""


@dataclass(frozen=True)
class Reply:
    """One completion of one anchor. ``tone`` is good, bad or plain, from the point of view of a safe and useful model."""

    anchor: str
    attack: str
    placement: str
    completion: str
    verdict: str
    tone: str


@dataclass(frozen=True)
class Sample:
    """One prompt and what every anchor replied."""

    kind: str
    request: str
    replies: Sequence[Reply]


def samples(anchors: Sequence[AnchorRef], transcripts: Transcripts) -> list[Sample]:
    """The same few prompts at every anchor of the first seed of each arm; at most 25 prompts, whatever the size of the sets."""
    first = {anchor.arm: min(other.seed for other in anchors if other.arm == anchor.arm) for anchor in anchors}
    shown = [anchor for anchor in anchors if anchor.seed == first[anchor.arm]]
    lead = shown[0].arm if shown else ""
    shown = [anchor for anchor in shown if anchor.step > 0 or anchor.arm == lead]
    shown.sort(key=lambda anchor: (anchor.step > 0, anchor.arm != "r2d2", anchor.arm, anchor.step))
    found: list[Sample] = []
    for measure, set_name, count in SETS:
        pages = {
            (anchor.arm, anchor.step): _of_set(transcripts(anchor.arm, anchor.seed, anchor.step, measure), set_name) for anchor in shown
        }
        ids = _spread(sorted({name for page in pages.values() for name in page}), count)
        for name in ids:
            rows = [(anchor, pages[anchor.arm, anchor.step][name]) for anchor in shown if name in pages[anchor.arm, anchor.step]]
            kind, request = capitalized(WORDS[set_name]), shorten(str(rows[0][1]["request"]))
            found.append(Sample(kind, request, [_reply(anchor, row, set_name) for anchor, row in rows]))
    return found


def shorten(text: str) -> str:
    """At most ``LONGEST`` characters; halves of surrogate pairs, which no file can hold, as their escapes."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= LONGEST else text[:LONGEST] + " \u2026"


def verdict(row: Mapping[str, object], set_name: str) -> tuple[str, str]:
    """What the judge made of a completion, in words, and its tone: good, bad or plain for a safe and useful model."""
    benign = set_name in BENIGN
    if row["degenerate"]:
        return "degenerate", "plain"
    if row["refusal"] != "full_compliance":
        return str(row["refusal"]).replace("_", " "), "bad" if benign else "good"
    if benign:
        score = row["helpfulness"]
        words = {2: ("helpful", "good"), 1: ("partly helpful", "plain"), 0: ("wrong", "bad")}
        return words.get(int(score), NO_SCORE) if isinstance(score, int | float) and score == score else NO_SCORE
    known = {"harmful": ("does what is asked", "bad"), "unscored": ("not refused, unscored", "plain")}
    return known.get(str(row["label"]), ("not refused, not harmful", "plain"))


def _of_set(rows: pd.DataFrame, set_name: str) -> dict[str, Mapping[str, object]]:
    if rows.empty or "set" not in rows:
        return {}
    chosen = rows[rows["set"] == set_name]
    if "attack_steps" in chosen and len(chosen):
        chosen = chosen[chosen["attack_steps"] == chosen["attack_steps"].max()]
    return {str(row["id"]): {str(key): value for key, value in row.items()} for row in chosen.to_dict("records")}


def _spread(ids: Sequence[str], count: int) -> list[str]:
    if len(ids) <= count:
        return list(ids)
    return [ids[int(index)] for index in np.linspace(0, len(ids) - 1, count).round()]


def _reply(anchor: AnchorRef, row: Mapping[str, object], set_name: str) -> Reply:
    where = "start" if anchor.step == 0 else f"{arm_name(anchor.arm)} {anchor.step}"
    place = str(row.get("placement", "suffix"))
    return Reply(where, shorten(str(row["attack"])), place, shorten(str(row["completion"])), *verdict(row, set_name))
