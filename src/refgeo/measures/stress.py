"""Attacks that adapt to the very checkpoint: GCG, AutoDAN, and GCG that knows the geometry (docs/attacks.md)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import pandas as pd

from refgeo.attacks.autodan import autodan
from refgeo.attacks.carrier_term import CarrierTerm
from refgeo.attacks.cases import Attacked, Case
from refgeo.attacks.gcg import Judged, attack
from refgeo.attacks.start import initial_cases
from refgeo.config.measures import BehaviorSettings, StressSettings
from refgeo.data.rows import Behavior
from refgeo.errors import ConfigError
from refgeo.judging.verdict import Judge
from refgeo.lm.flops import ForwardCost
from refgeo.lm.generate import as_text, complete_ids
from refgeo.lm.messages import Placement
from refgeo.lm.model import LanguageModel
from refgeo.measures.attempts import attempt_rows
from refgeo.measures.behavior import spread
from refgeo.measures.evaluate import Item, evaluate, judged
from refgeo.measures.sets import WORDS
from refgeo.measures.table import Row, frame, integers, row
from refgeo.progress import Progress
from refgeo.statistics import exact

Method = Literal["adaptive_gcg", "adaptive_autodan", "adaptive_aware"]
"""An attack, by the set of its completions."""
GCG: Literal["adaptive_gcg"] = "adaptive_gcg"
AUTODAN: Literal["adaptive_autodan"] = "adaptive_autodan"
AWARE: Literal["adaptive_aware"] = "adaptive_aware"


class Attempt(NamedTuple):
    """One attack with one attack seed on some behaviors: judged completions per budget, the cases as found, one record per step."""

    transcripts: pd.DataFrame
    cases: list[Case]
    records: pd.DataFrame


class Stressed(NamedTuple):
    """The long-form table, the judged completions, the attacks found, and one record per attack step."""

    table: pd.DataFrame
    transcripts: pd.DataFrame
    cases: list[Case]
    records: pd.DataFrame


Keep = Callable[[str, Callable[[], Attempt]], Attempt]


def made_anew(key: str, make: Callable[[], Attempt]) -> Attempt:
    """Keeps nothing: every attempt is made."""
    return make()


def measure_stress(
    lm: LanguageModel,
    behaviors: Sequence[Behavior],
    judge: Judge,
    settings: StressSettings,
    behavior: BehaviorSettings,
    seed: int,
    progress: Progress | None = None,
    carrier: CarrierTerm | str | None = None,
    keep: Keep = made_anew,
) -> Stressed:
    """Attack a balanced choice of behaviors by every method that is configured, then judge the best string found within each budget.

    Success within a budget is cumulative: a case that once succeeded stays broken, as it would be for the attacker. With
    ``settings.attack.check_every`` the judge is asked during the attack as well, and a broken case costs nothing more. All methods stand
    in the same frames, told apart by ``method`` and ``attack_seed``. ``carrier`` is what ``settings.aware`` suppresses, or in words why
    there is nothing. ``keep`` is handed every shard's attempt by a key and how to make it, and may return one it has from before.
    """
    chosen = balanced(behaviors, settings.behaviors)
    size = settings.shard or len(chosen)
    shards = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    attacker = _Attacker(lm, judge, settings, behavior, carrier if isinstance(carrier, CarrierTerm) else None)
    rows: list[Row] = []
    kept: list[Stressed] = []
    for method in _methods(settings, carrier):
        attempts: list[Attempt] = []
        for attack_seed in settings.seeds if settings.seeds is not None else (seed,):
            for number, shard in enumerate(shards):
                words = WORDS[method] + (f", shard {number + 1} of {len(shards)}" if len(shards) > 1 else "")
                make = partial(attacker.attempt, method, shard, attack_seed, progress, words)
                attempts.append(keep(f"{method}-seed-{attack_seed}-shard-{number:04d}", make))
        transcripts = _stacked([one.transcripts for one in attempts], "attack_steps")
        records = _stacked([one.records for one in attempts], "step")
        rows += attempt_rows(method, transcripts, records, attacker.budgets(method))
        kept.append(Stressed(frame([]), transcripts, [case for one in attempts for case in one.cases], records))
    if isinstance(carrier, str) and settings.aware is not None:
        rows.append(row(AWARE, f"asr_{AWARE}", exact(float("nan"), 0), method=AWARE, attack_steps=settings.attack.steps, note=carrier))
    return Stressed(
        integers(frame(rows), "attack_seed", "at_step"),
        pd.concat([part.transcripts for part in kept], ignore_index=True),
        [case for part in kept for case in part.cases],
        pd.concat([part.records for part in kept], ignore_index=True),
    )


def _methods(settings: StressSettings, carrier: CarrierTerm | str | None) -> Iterator[Method]:
    yield GCG
    if settings.autodan is not None:
        yield AUTODAN
    if settings.aware is not None:
        if carrier is None:
            raise ConfigError("stress.aware needs the geometry of the anchor", fix="Hand measure_stress its carrier, or leave out aware")
        if isinstance(carrier, CarrierTerm):
            yield AWARE


def _stacked(parts: Sequence[pd.DataFrame], order: str) -> pd.DataFrame:
    """The shards of each attack seed as if they had been one: by step or budget, behaviors in their order."""
    return pd.concat(parts, ignore_index=True).sort_values(["attack_seed", order], kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _Attacker:
    """What every attempt needs."""

    lm: LanguageModel
    judge: Judge
    settings: StressSettings
    behavior: BehaviorSettings
    carrier: CarrierTerm | None

    def budgets(self, method: str) -> list[int]:
        """Attack steps at which success is judged."""
        steps = self.settings.autodan.steps if method == AUTODAN and self.settings.autodan is not None else self.settings.attack.steps
        return sorted({step for step in self.settings.checkpoints if step < steps} | {steps})

    def attempt(self, method: Method, chosen: Sequence[Behavior], seed: int, progress: Progress | None, words: str) -> Attempt:
        """Attack, then judge what was found within each budget."""
        lm, settings = self.lm, self.settings
        start = initial_cases(chosen, settings.attack, seed)
        checks = Checks(lm, chosen, self.judge, self.behavior, method)
        if method == AUTODAN and settings.autodan is not None:
            found = autodan(lm, start, settings.autodan, seed, progress, words)
        else:
            found = attack(lm, start, settings.attack, seed, progress, words, checks, self.carrier if method == AWARE else None)
        transcripts = self._within_budgets(method, chosen, found, checks.found)
        who: dict[str, Any] = {"method": method, "attack_seed": seed}
        return Attempt(transcripts.assign(**who), found.best, found.records.assign(**who))

    def _within_budgets(
        self, method: Method, chosen: Sequence[Behavior], attacked: Attacked, judged_before: Mapping[str, dict[Hashable, Any]]
    ) -> pd.DataFrame:
        """Success of one attack within each budget. ``judged_before``: transcripts of cases that broke while they were attacked."""
        placement, budgets = attacked.best[0].placement, self.budgets(method)
        strings = {budget: best_within(attacked.records, budget) for budget in budgets}
        hits = attacked.records[attacked.records["succeeded"].eq(True)]  # None: not asked
        first = {str(case): int(step) for case, step in zip(hits["behavior"], hits["step"], strict=True)}
        broken = {case: judged_before[case] for case in first}
        items = [
            _item(method, known, text, placement)
            for known in chosen
            for text in sorted({strings[budget][known.id] for budget in budgets if budget < first.get(known.id, budgets[-1] + 1)})
        ]
        lookup: dict[tuple[str, str], dict[Hashable, Any]] = {}
        if items:
            found = evaluate(self.lm, items, self.judge, self.behavior.max_new_tokens, self.behavior.batch)
            lookup = {(str(one["id"]), str(one["attack"])): one for one in found.to_dict("records")}
        parts = []
        for budget in budgets:
            shown = []
            for known in chosen:
                if first.get(known.id, budgets[-1] + 1) > budget:
                    one = lookup[known.id, strings[budget][known.id]]
                    if one["success"]:
                        broken[known.id], first[known.id] = one, budget
                    shown.append(one)
                else:
                    shown.append(broken[known.id])
            parts.append(pd.DataFrame(shown).assign(attack_steps=budget))
        return pd.concat(parts, ignore_index=True)


class Checks:
    """The judge as an attack asks it: completes the cases as they stand. ``found`` keeps the transcript of each success."""

    def __init__(
        self, lm: LanguageModel, behaviors: Sequence[Behavior], judge: Judge, settings: BehaviorSettings, method: Method = GCG
    ) -> None:
        self.lm, self.judge, self.settings, self.method = lm, judge, settings, method
        self.behaviors = {known.id: known for known in behaviors}
        self.cost = ForwardCost.of(lm)
        self.found: dict[str, dict[Hashable, Any]] = {}

    def __call__(self, cases: list[Case]) -> list[Judged]:
        """Complete and judge; the cost is that of the prompt and of every token written."""
        items = [_item(self.method, self.behaviors[case.behavior], case.attack, case.placement) for case in cases]
        prompts = [self.lm.chat.prompt(case.request, case.attack, placement=case.placement) for case in cases]
        ids = complete_ids(self.lm, prompts, self.settings.max_new_tokens, self.settings.batch)
        verdicts = []
        transcripts = judged(items, as_text(self.lm, ids), self.judge).to_dict("records")
        for case, prompt, written, transcript in zip(cases, prompts, ids, transcripts, strict=True):
            length = len(prompt) + len(written) - 1  # the last token is not read
            flops = self.cost.body(length) + self.cost.head(len(written)) + self.cost.attention(length * (length + 1) // 2)
            verdicts.append(Judged(bool(transcript["success"]), float(flops)))
            if transcript["success"]:
                self.found.setdefault(case.behavior, transcript)
        return verdicts


def _item(method: Method, known: Behavior, text: str, placement: Placement) -> Item:
    return Item(method, known.subset, known.id, known.request, known.reference, text, "adaptive", placement=placement)


def best_within(records: pd.DataFrame, budget: int) -> dict[str, str]:
    """Per case the suffix of lowest loss among the steps up to ``budget``."""
    within = records[records["step"] <= budget]
    rows = within.loc[within.groupby("behavior")["loss"].idxmin()]
    return dict(zip(rows["behavior"], rows["attack"], strict=True))


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
