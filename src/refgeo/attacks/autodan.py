"""AutoDAN (2310.04451): a genetic search for a readable text that makes the target likely, over many cases in one batch.

Every case has a population of texts, first the seeds and mutations of them. A step keeps the elite, breeds the rest and scores what is
new. Breeding in variant ``ga``: parents by softmax roulette, multi-point crossover of sentences, mutation. Variant ``hierarchical`` does
that in every n-th step and in the others exchanges words of all but the elite by momentum scores.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from refgeo.attacks.breeding import crossed, momentum, ranked, roulette
from refgeo.attacks.cases import Attacked, Case
from refgeo.attacks.encoded import Encoded, encode
from refgeo.attacks.interrupted import Interrupted
from refgeo.attacks.mutation import Mutation, Synonyms, load_paraphraser, read_seeds, read_synonyms
from refgeo.attacks.objective import TargetLoss
from refgeo.attacks.state import COLUMNS as RECORD_COLUMNS
from refgeo.config.autodan import AutoDANSettings
from refgeo.errors import DataError, NonFinite
from refgeo.lm.model import LanguageModel, evaluating
from refgeo.progress import Progress

COLUMNS = [*RECORD_COLUMNS, "dropped"]
DROPPED = float("inf")
"""Loss of a text that cannot be scored."""


@dataclass
class Population:
    """The texts of one case. ``known``: loss and tokens of every text met so far; ``scores``: momentum of words."""

    case: Case
    encoded: Encoded
    texts: list[str]
    known: dict[str, tuple[float, list[int]]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def losses(self) -> list[float]:
        """Loss of each text, infinite where it was dropped."""
        return [self.known[text][0] for text in self.texts]

    def stream(self, seed: int, step: int) -> np.random.Generator:
        """The random numbers of one step, the same whichever cases run beside this one."""
        return np.random.default_rng([seed, zlib.crc32(self.case.behavior.encode()), step])


def autodan(
    lm: LanguageModel, cases: Sequence[Case], settings: AutoDANSettings, seed: int, progress: Progress | None = None, label: str = "autodan"
) -> Attacked:
    """Search a text for every case; the attacks that the cases carry are not used. Step 0 of the records is the first population.

    The records are those of GCG (``attacks/gcg.py``): the population's best text, ``candidates`` counts the texts scored for the first
    time, and one column more, those ``dropped`` because they do not fit the context or cannot be written in the tokenizer's words.
    As the elite stays, ``last`` and ``best`` are equal. Raises ``DataError`` when seeds or synonyms are unusable, ``NonFinite`` when a
    loss is, and ``Interrupted`` with what was found on Ctrl-C.
    """
    if not cases:
        return Attacked([], [], pd.DataFrame(columns=COLUMNS))
    seeds = read_seeds(settings.seeds)
    synonyms = read_synonyms(settings.synonyms, settings.mutation_words) if settings.synonyms is not None else None
    if synonyms is not None and not any(synonyms.applies(text) for text in seeds):
        raise DataError(
            f"No word of the {len(seeds)} seeds in '{settings.seeds}' occurs in '{settings.synonyms}'",
            expected="a table that knows some of their words",
        )
    mutate = load_paraphraser(settings) or synonyms
    assert mutate is not None, "the settings ask for one of them"
    with evaluating(lm):
        shortest = min(seeds, key=len)
        placed = [replace(case, attack=shortest, placement=settings.placement, loss=None) for case in cases]
        groups = [Population(case, encode(lm, case, settings.objective), []) for case in placed]
        objective = TargetLoss(lm, [group.encoded for group in groups], settings=settings.objective)
        running = list(range(len(groups)))
        records: list[dict[str, object]] = []
        try:
            for step in range(settings.steps + 1):
                started = time.perf_counter()
                active = [groups[index] for index in running]
                if step == 0:
                    start(active, seeds, settings.population, mutate, seed)
                else:
                    breed(active, settings, mutate, synonyms, seed, step)
                tried = score(lm, objective, groups, running, settings.max_tokens)
                seconds = (time.perf_counter() - started) / len(running)
                for index, (scored, dropped) in zip(running, tried, strict=True):
                    group = groups[index]
                    winner = group.texts[ranked(group.losses)[0]]
                    loss, tokens = group.known[winner]
                    if loss == DROPPED:
                        raise _unusable(group, lm, settings)
                    accepted = step == 0 or winner != group.case.attack
                    group.case = replace(group.case, attack=winner, loss=loss)
                    flops = objective.flops[index]
                    known = (group.case.behavior, step, loss, winner, tokens, accepted, scored, None, seconds, flops, dropped)
                    records.append(dict(zip(COLUMNS, known, strict=True)))
                if settings.early_stop_loss is not None:
                    running = [index for index in running if (groups[index].case.loss or 0.0) >= settings.early_stop_loss]
                if progress is not None and step:
                    progress(step, settings.steps, label)
                if not running:
                    break
        except KeyboardInterrupt:
            raise Interrupted(_attacked(groups, records)) from None
    return _attacked(groups, records)


def _attacked(groups: Sequence[Population], records: Sequence[dict[str, object]]) -> Attacked:
    """Everything found so far."""
    found = [group.case for group in groups]
    return Attacked(found, list(found), pd.DataFrame(records, columns=COLUMNS))


def start(groups: Sequence[Population], seeds: Sequence[str], size: int, mutate: Mutation, seed: int) -> None:
    """First populations: the seeds in random order, then mutations of them until ``size`` texts are there."""
    rngs = [group.stream(seed, 0) for group in groups]
    texts = []
    for rng in rngs:
        order = rng.permutation(len(seeds))
        texts.append([seeds[order[place % len(seeds)]] for place in range(size)])
    fresh = [(group, place) for group in range(len(groups)) for place in range(len(seeds), size)]
    changed = mutate([texts[group][place] for group, place in fresh], [rngs[group] for group, _ in fresh])
    for (group, place), text in zip(fresh, changed, strict=True):
        texts[group][place] = text
    for population, mine in zip(groups, texts, strict=True):
        population.texts = mine


def breed(
    groups: Sequence[Population], settings: AutoDANSettings, mutate: Mutation, synonyms: Synonyms | None, seed: int, step: int
) -> None:
    """The next generation of every population: its elite, then children, some of them mutated."""
    by_words = settings.variant == "hierarchical" and step % settings.sentence_every != 0
    rngs = [group.stream(seed, step) for group in groups]
    changes: list[tuple[int, int]] = []
    for place, (group, rng) in enumerate(zip(groups, rngs, strict=True)):
        losses = group.losses
        order = ranked(losses)
        elite = [group.texts[member] for member in order[: settings.kept]]
        if by_words and synonyms is not None:
            group.scores = momentum(group.scores, group.texts, losses, synonyms.known, settings.momentum_words)
            others = [group.texts[member] for member in order[settings.kept :]]
            children = [synonyms.improved(text, group.scores, settings.crossover, rng) for text in others]
        else:
            children = _children(group.texts, losses, settings, rng)
        group.texts = elite + children
        struck = rng.random(len(children)) < settings.mutation
        changes += [(place, settings.kept + int(child)) for child in struck.nonzero()[0]]
    changed = mutate([groups[place].texts[member] for place, member in changes], [rngs[place] for place, _ in changes])
    for (place, member), text in zip(changes, changed, strict=True):
        groups[place].texts[member] = text


def score(
    lm: LanguageModel, objective: TargetLoss, groups: Sequence[Population], running: Sequence[int], max_tokens: int | None
) -> list[tuple[int, int]]:
    """Note the losses of all texts not met before; per running case how many were scored and how many dropped.

    All cases share one call of the tokenizer and one of the model.
    """
    fresh = [(index, text) for index in running for text in dict.fromkeys(groups[index].texts) if text not in groups[index].known]
    frames = [groups[index].encoded.frame for index, _ in fresh]
    whole = [before + text + after for (before, after), (_, text) in zip(frames, fresh, strict=True)]
    encoded: list[list[int]] = lm.tokenizer(whole, add_special_tokens=False)["input_ids"] if whole else []
    owners, attacks, texts = [], [], []
    for (index, text), ids in zip(fresh, encoded, strict=True):
        attack = _cut(ids, groups[index].encoded)
        if attack is None or not _allowed(lm, groups[index].encoded, attack, max_tokens):
            groups[index].known[text] = DROPPED, []
            continue
        owners.append(index)
        attacks.append(attack)
        texts.append(text)
    losses = objective.losses(owners, attacks).tolist() if owners else []
    for index, attack, text, loss in zip(owners, attacks, texts, losses, strict=True):
        if not np.isfinite(loss):
            raise NonFinite(f"The loss of case '{groups[index].case.behavior}' is {loss}", fix="Check the model's dtype and weights")
        groups[index].known[text] = loss, attack
    asked = Counter(index for index, _ in fresh)
    scored = Counter(owners)
    return [(scored[index], asked[index] - scored[index]) for index in running]


def _children(texts: Sequence[str], losses: Sequence[float], settings: AutoDANSettings, rng: np.random.Generator) -> list[str]:
    count = settings.population - settings.kept
    parents = [texts[member] for member in roulette(losses, count + count % 2, rng)]
    children: list[str] = []
    for one, two in zip(parents[::2], parents[1::2], strict=True):
        children += crossed(one, two, settings.points, rng) if rng.random() < settings.crossover else (one, two)
    return children[:count]


def _cut(ids: Sequence[int], case: Encoded) -> list[int] | None:
    """The attack's tokens in a rendered prompt; None when it merged with a token of the frame."""
    start, stop = len(case.before), len(ids) - len(case.after)
    whole = start < stop and tuple(ids[:start]) == case.before and tuple(ids[stop:]) == case.after
    return list(ids[start:stop]) if whole else None


def _allowed(lm: LanguageModel, case: Encoded, attack: Sequence[int], max_tokens: int | None) -> bool:
    reply = max(len(text) for text in (*case.targets, *case.refusals))
    fits = len(case.before) + len(attack) + len(case.after) + reply <= lm.context
    return fits and (max_tokens is None or len(attack) <= max_tokens) and lm.tokenizer.unk_token_id not in attack


def _unusable(group: Population, lm: LanguageModel, settings: AutoDANSettings) -> DataError:
    limit = lm.context if settings.max_tokens is None else min(settings.max_tokens, lm.context)
    return DataError(
        f"None of the first texts from '{settings.seeds}' can be used for case '{group.case.behavior}'",
        expected=f"texts whose words '{lm.name}' knows and that fit into {limit} tokens",
        fix="Choose other seeds and synonyms, or raise max_tokens",
    )
