"""The transfer matrix of strings: what was found against one anchor, tried on another (docs/attacks.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from refgeo.data.rows import Behavior
from refgeo.judging.verdict import Judge
from refgeo.lm.model import LanguageModel
from refgeo.measures.attempts import final_strings
from refgeo.measures.evaluate import Item, evaluate
from refgeo.measures.stress import GCG, balanced
from refgeo.measures.table import Row, frame, integers, row
from refgeo.progress import Progress
from refgeo.statistics import exact, guarded, paired_difference, rate

REPLAY = "replay"
"""Set of the rows and transcripts of replayed strings."""


@dataclass(frozen=True)
class Origin:
    """The anchor that strings were found at; the common start is the arm ``START`` and has no seed."""

    source_arm: str
    source_seed: int | None
    source_step: int


class Source(NamedTuple):
    """Strings found at one anchor: the judged completions of its own stress stage (``Stressed.transcripts``)."""

    origin: Origin
    transcripts: pd.DataFrame


class Replayed(NamedTuple):
    """A long-form table, and the judged completions behind it."""

    table: pd.DataFrame
    transcripts: pd.DataFrame


def replay_strings(
    lm: LanguageModel,
    behaviors: Sequence[Behavior],
    sources: Sequence[Source],
    home: Origin,
    judge: Judge,
    most: int,
    max_new_tokens: int,
    batch: int,
    seed: int,
    progress: Progress | None = None,
) -> Replayed:
    """Answer and judge every source's strings on this model, equal prompts once and all in one generation.

    At most ``most`` behaviors, those that every source attacked, the same for all anchors. Rows of set ``replay``, one group per source:
    ``asr_replay``, ``asr_replay_gated``, ``degenerate``, ``unscored``; against the strings found here (``home``, the diagonal), on the
    same behaviors, ``asr_replay_minus_own``; and against what the same strings did where they were found, ``asr_replay_minus_home``;
    both also gated. Unscored completions count as failures in the differences.
    """
    strings = {source.origin: final_strings(source.transcripts, GCG) for source in sources}
    common = set.intersection(*(set(found.index) for found in strings.values())) if strings else set()
    chosen = balanced([one for one in behaviors if one.id in common], most)
    texts = {origin: {str(one["id"]): str(one["attack"]) for one in found.to_dict("records")} for origin, found in strings.items()}
    items: dict[tuple[str, str], Item] = {}
    for origin, found in strings.items():
        places: dict[Any, Any] = found["placement"].to_dict()
        for known in chosen:
            text, place = texts[origin][known.id], places[known.id]
            item = Item(GCG, known.subset, known.id, known.request, known.reference, text, "replayed", placement=place)
            items.setdefault((known.id, text), item)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(items), "replayed strings")

    if not items:
        return Replayed(frame([]), pd.DataFrame())
    answered = evaluate(lm, list(items.values()), judge, max_new_tokens, batch, advance)
    lookup = dict(zip(items, answered.to_dict("records"), strict=True))
    rows: list[Row] = []
    shown: dict[Origin, pd.DataFrame] = {}
    for origin in strings:
        part = pd.DataFrame([lookup[known.id, texts[origin][known.id]] for known in chosen])
        shown[origin] = part.assign(set=REPLAY, method=GCG, **asdict(origin))
    for origin, part in shown.items():
        identity = {"method": GCG, **asdict(origin)}
        at_home = strings[origin].loc[[known.id for known in chosen]].reset_index(drop=True)
        against = {"own": shown.get(home), "home": at_home}
        rows += [row(REPLAY, "degenerate", rate(part["degenerate"]), **identity)]
        rows += [row(REPLAY, "unscored", rate(part["label"] == "unscored"), **identity)]
        scored = (part["label"] != "unscored").to_numpy()
        for suffix, gated in (("", False), ("_gated", True)):
            hits = _hits(part, gated)
            if scored.any():
                rows.append(row(REPLAY, f"asr_replay{suffix}", rate(hits[scored]), **identity))
            for name, other in against.items():
                if other is not None:
                    gap = guarded(paired_difference(hits, _hits(other, gated), seed), span=1.0)
                    rows.append(row(REPLAY, f"asr_replay_minus_{name}{suffix}", gap, **identity))
    rows.append(row(REPLAY, "distinct_prompts", exact(len(items), len(chosen) * len(sources)), method=GCG))
    table = integers(frame(rows), "source_seed", "source_step")
    return Replayed(table, integers(pd.concat(shown.values(), ignore_index=True), "source_seed", "source_step"))


def _hits(part: pd.DataFrame, gated: bool) -> np.ndarray:
    success = part["success"].to_numpy(dtype=bool)
    return success & ~part["degenerate"].to_numpy(dtype=bool) if gated else success
