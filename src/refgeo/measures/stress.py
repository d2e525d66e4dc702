"""An attack that adapts to the very checkpoint: GCG optimized against the model at hand (PROTOCOL section 6)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from refgeo.attacks.cases import Case
from refgeo.attacks.gcg import attack
from refgeo.attacks.start import initial_cases
from refgeo.config.schema import BehaviorSettings, StressSettings
from refgeo.data.rows import Behavior
from refgeo.judging.verdict import Judge
from refgeo.lm.model import LanguageModel
from refgeo.measures.behavior import spread
from refgeo.measures.evaluate import Item, evaluate, summarize
from refgeo.measures.table import Row, frame, row
from refgeo.statistics import exact, mean

Progress = Callable[[int, int, str], None] | None


class Stressed(NamedTuple):
    """The long-form table, the judged completions, the attacks found, and one record per attack step."""

    table: pd.DataFrame
    transcripts: pd.DataFrame
    cases: list[Case]
    records: pd.DataFrame


def measure_stress(
    lm: LanguageModel,
    behaviors: Sequence[Behavior],
    judge: Judge,
    settings: StressSettings,
    behavior: BehaviorSettings,
    seed: int,
    progress: Progress = None,
) -> Stressed:
    """Attack a balanced choice of behaviors, then judge the best suffix found within each budget.

    Success within a budget is cumulative: a case that once succeeded stays broken, as it would be for the attacker.
    """
    chosen = balanced(behaviors, settings.behaviors)
    attacked = attack(lm, initial_cases(chosen, settings.attack, seed), settings.attack, seed, progress, "adaptive attack")
    budgets = sorted({step for step in settings.checkpoints if step < settings.attack.steps} | {settings.attack.steps})
    suffixes = {budget: best_within(attacked.records, budget) for budget in budgets}
    items = [
        Item("adaptive_gcg", known.subset, known.id, known.prompt, known.reference, suffix, "adaptive")
        for known in chosen
        for suffix in sorted({suffixes[budget][known.id] for budget in budgets})
    ]
    judged = evaluate(lm, items, judge, behavior.max_new_tokens, behavior.batch)
    lookup = {(str(found["id"]), str(found["attack"])): found for found in judged.to_dict("records")}
    rows: list[Row] = []
    transcripts: list[pd.DataFrame] = []
    broken: dict[str, dict[Hashable, Any]] = {}
    first: dict[str, int] = {}
    for budget in budgets:
        for known in chosen:
            found = lookup[known.id, suffixes[budget][known.id]]
            if known.id not in broken and found["success"]:
                broken[known.id], first[known.id] = found, budget
        part = pd.DataFrame([broken.get(known.id, lookup[known.id, suffixes[budget][known.id]]) for known in chosen])
        part["attack_steps"] = budget
        transcripts.append(part)
        rows += [{**entry, "attack_steps": budget} for entry in summarize(part)]
    if first:
        rows.append(row("adaptive_gcg", "first_success_step", mean(list(first.values())), attack_steps=budgets[-1]))
    spent = attacked.records.groupby("case")["candidates"].sum()
    rows.append(row("adaptive_gcg", "queries", exact(float(spent.mean()), len(spent)), attack_steps=budgets[-1]))
    return Stressed(frame(rows), pd.concat(transcripts, ignore_index=True), attacked.best, attacked.records)


def best_within(records: pd.DataFrame, budget: int) -> dict[str, str]:
    """Per case the suffix of lowest loss among the steps up to ``budget``."""
    within = records[records["step"] <= budget]
    rows = within.loc[within.groupby("case")["loss"].idxmin()]
    return dict(zip(rows["case"], rows["attack"], strict=True))


def balanced(behaviors: Sequence[Behavior], count: int) -> list[Behavior]:
    """At most ``count`` behaviors, the same number from each subset as far as they go, in file order."""
    groups: dict[str, list[Behavior]] = {}
    for behavior in behaviors:
        groups.setdefault(behavior.subset, []).append(behavior)
    taken: list[Behavior] = []
    left = min(count, len(behaviors))
    for place, group in enumerate(sorted(groups.values(), key=len)):
        share = min(len(group), left // (len(groups) - place))
        taken += spread(group, share)
        left -= share
    chosen = {behavior.id for behavior in taken}
    return [behavior for behavior in behaviors if behavior.id in chosen]
