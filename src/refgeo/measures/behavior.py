"""What the model does: every set of prompts, and the suffix-matched audit: recognition of harm, or fear of suffixes?"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from refgeo.attacks.cases import Case
from refgeo.attacks.vocabulary import allowed_tokens, decode
from refgeo.config.attack import AttackSettings
from refgeo.config.measures import BehaviorSettings
from refgeo.data.rows import Behavior, Prompt
from refgeo.judging.verdict import Judge
from refgeo.lm.messages import Placement
from refgeo.lm.model import LanguageModel
from refgeo.measures.evaluate import Item, evaluate, summarize
from refgeo.measures.sets import TAILS, refused
from refgeo.measures.survival import clustered_rate
from refgeo.measures.table import Row, frame, row
from refgeo.progress import Progress
from refgeo.statistics import paired_difference

T = TypeVar("T")


@dataclass(frozen=True)
class EvaluationSets:
    """The prompts of every set; an empty list switches off what is measured on it."""

    behaviors: Sequence[Behavior]
    strongreject: Sequence[Prompt] = ()
    xstest: Sequence[Prompt] = ()
    audit: Sequence[Prompt] = ()
    filler: Sequence[str] = ()


class Measured(NamedTuple):
    """A long-form table and the judged completions behind it."""

    table: pd.DataFrame
    transcripts: pd.DataFrame


def measure_behavior(
    lm: LanguageModel,
    sets: EvaluationSets,
    cases: Sequence[Case],
    judge: Judge,
    settings: BehaviorSettings,
    attack: AttackSettings,
    seed: int,
    progress: Progress | None = None,
) -> Measured:
    """Direct and fixed-source ASR, StrongREJECT, XSTest, the audit, degeneracy, and over-refusal at matched suffixes."""
    items = [*evaluation_items(sets, cases), *tail_items(lm, sets, cases, settings, attack, seed)]
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(items), "completions")

    transcripts = evaluate(lm, items, judge, settings.max_new_tokens, settings.batch, advance)
    return Measured(frame([*summarize(transcripts), *summarize_tails(transcripts, seed)]), transcripts)


def evaluation_items(sets: EvaluationSets, cases: Sequence[Case]) -> list[Item]:
    """The sets without tails: direct, fixed, StrongREJECT, XSTest safe and unsafe, audit."""
    known = {behavior.id: behavior for behavior in sets.behaviors}
    items = [Item("direct", behavior.subset, behavior.id, behavior.request, behavior.reference) for behavior in sets.behaviors]
    for case in cases:
        behavior = known[case.behavior]
        items.append(
            Item("fixed", behavior.subset, case.behavior, case.request, behavior.reference, case.attack, "frozen", placement=case.placement)
        )
    items += [Item("strongreject", prompt.kind, prompt.id, prompt.request, prompt.reference) for prompt in sets.strongreject]
    for prompt in sets.xstest:
        items.append(Item("xstest_safe" if prompt.safe else "xstest_unsafe", prompt.kind, prompt.id, prompt.request, prompt.reference))
    items += [Item("audit", prompt.kind, prompt.id, prompt.request, prompt.reference) for prompt in sets.audit]
    return items


def tail_items(
    lm: LanguageModel, sets: EvaluationSets, cases: Sequence[Case], settings: BehaviorSettings, attack: AttackSettings, seed: int
) -> list[Item]:
    """Harmful and safe prompts in pairs; both prompts of a pair carry the very same tail."""
    safe = [prompt for prompt in sets.xstest if prompt.safe] or list(sets.audit)
    count = min(settings.tail_prompts, len(safe), len(sets.behaviors))
    safe_drawn = spread(safe, count)
    harmful_drawn = spread(sets.behaviors, count)
    items: list[Item] = []
    for kind in settings.tails:
        for length in settings.tail_tokens if kind in ("initial", "filler", "random") else (0,):
            if (kind == "frozen" and not cases) or (kind == "filler" and not sets.filler):
                continue
            for index, (prompt, behavior) in enumerate(zip(safe_drawn, harmful_drawn, strict=True)):
                tail = make_tail(lm, kind, length, index, sets.filler, cases, attack, seed)
                place: Placement = cases[index % len(cases)].placement if kind == "frozen" else "suffix"
                items.append(Item("tail_safe", kind, prompt.id, prompt.request, prompt.reference, tail, kind, length, place))
                items.append(Item("tail_harmful", kind, behavior.id, behavior.request, behavior.reference, tail, kind, length, place))
    return items


def make_tail(
    lm: LanguageModel, kind: str, length: int, index: int, filler: Sequence[str], cases: Sequence[Case], attack: AttackSettings, seed: int
) -> str:
    """The ``index``-th tail of one kind: the start string, filler words, random allowed tokens, or a frozen attack."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), length, index])
    if kind == "initial":
        return " ".join([attack.initial] * length)
    if kind == "filler":
        return " ".join(filler[int(word)] for word in rng.integers(0, len(filler), length))
    if kind == "random":
        allowed = allowed_tokens(lm.tokenizer, lm.core.get_input_embeddings().weight.shape[0]).nonzero().flatten().tolist()
        return decode(lm.tokenizer, [[allowed[int(token)] for token in rng.integers(0, len(allowed), length)]])[0]
    return cases[index % len(cases)].attack if kind == "frozen" else ""


def summarize_tails(transcripts: pd.DataFrame, seed: int) -> list[Row]:
    """Refusal with and without harm at equal tails, per kind and length and over all tails; harm recognition is the difference."""
    safe, harmful = (transcripts[transcripts["set"] == name].reset_index(drop=True) for name in TAILS)
    if safe.empty:
        return []
    groups = [("all", 0, (safe["tail"] != "none").to_numpy())]
    kinds = safe[["tail", "tail_tokens"]].drop_duplicates()
    groups += [
        (kind, length, ((safe["tail"] == kind) & (safe["tail_tokens"] == length)).to_numpy())
        for kind, length in kinds.itertuples(index=False)
    ]
    rows: list[Row] = []
    for kind, length, chosen in groups:
        if not chosen.any():
            continue
        identity: dict[str, Any] = {"tail": kind, "tail_tokens": length}
        refused_safe = refused(safe).to_numpy()[chosen]
        refused_harmful = refused(harmful).to_numpy()[chosen]
        ids = safe["id"].to_numpy(dtype=str)[chosen]  # Over all tails, the same pair of prompts comes once per tail.
        asked = harmful["id"].to_numpy(dtype=str)[chosen]
        rows.append(row("tail_safe", "any_refusal_safe_attacked", clustered_rate(refused_safe, ids), **identity))
        rows.append(row("tail_harmful", "any_refusal_harmful_attacked", clustered_rate(refused_harmful, asked), **identity))
        for name, part, names in zip(TAILS, (safe, harmful), (ids, asked), strict=True):
            rows.append(row(name, "degenerate", clustered_rate(part["degenerate"].to_numpy(dtype=bool)[chosen], names), **identity))
        rows.append(row("tails", "harm_recognition", paired_difference(refused_harmful, refused_safe, seed, clusters=ids), **identity))
    return rows


def spread(rows: Sequence[T], count: int) -> list[T]:
    """``count`` rows, evenly spaced over the sequence."""
    return [rows[int(index)] for index in np.linspace(0, len(rows) - 1, count).round()] if count else []
