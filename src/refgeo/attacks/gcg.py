"""Greedy coordinate gradient (2307.15043) over many cases in one batch; every published variant is an option of ``AttackSettings``.

With the defaults the rules are HarmBench's (2402.04249): positions are spread evenly over the candidates, the best candidate of a step is
always accepted, tokens are printable ASCII, and a candidate must survive being written as text and read again.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from refgeo.attacks.candidates import Typable, draw, random_suffixes
from refgeo.attacks.carrier_term import CarrierTerm
from refgeo.attacks.cases import Attacked, Case
from refgeo.attacks.company import Successes, migrants
from refgeo.attacks.encoded import encode
from refgeo.attacks.interrupted import Interrupted
from refgeo.attacks.objective import TargetLoss
from refgeo.attacks.probe import Draft
from refgeo.attacks.state import COLUMNS, Scored, Search
from refgeo.attacks.vocabulary import allowed_tokens, decode
from refgeo.config.attack import AttackSettings
from refgeo.errors import NonFinite
from refgeo.lm.model import LanguageModel, evaluating
from refgeo.progress import Progress


class Judged(NamedTuple):
    """Whether an attack succeeds as it stands, and the floating-point operations spent on finding out."""

    success: bool
    flops: float = 0.0


SuccessJudge = Callable[[list[Case]], list[Judged]]


def attack(
    lm: LanguageModel,
    cases: Sequence[Case],
    settings: AttackSettings,
    seed: int,
    progress: Progress | None = None,
    label: str = "attack",
    judge: SuccessJudge | None = None,
    carrier: CarrierTerm | None = None,
) -> Attacked:
    """Optimize the string of every case against the model as it stands.

    Records: one row per case and step, step 0 is the start. ``loss``, ``attack`` and ``tokens`` (ids) are what the case goes on with,
    ``candidates`` how many were drawn and typable, ``succeeded`` the judge's word (None: not asked), ``flops`` all that was spent on the
    case up to there, drafts and judging included, ``seconds`` its share of the step. A case whose candidates all fail the filter keeps
    its string (accepted False, candidates 0).

    Each case draws from its own random streams (seed, behavior, step): results do not depend on which cases run together, unless
    ``exchange`` or ``reuse`` let them learn from each other or ``max_seconds`` cuts them. ``judge`` is asked every
    ``settings.check_every`` steps; a case that succeeds stops, and that string is its best. ``carrier`` is added to the objective: the
    attack then also suppresses the refusal carrier (a draft, where one ranks candidates, does not see the term).
    Raises ``NonFinite`` naming the case whose loss is NaN or infinite, and ``Interrupted`` with what was found on Ctrl-C.
    """
    if not cases:
        return Attacked([], [], pd.DataFrame(columns=list(COLUMNS)))
    with evaluating(lm):
        run = _Run(lm, cases, settings, seed, judge, carrier)
        try:
            for step in range(settings.steps + 1):
                run.step(step)
                if progress is not None and step:
                    progress(step, settings.steps, label)
                if not run.running:
                    break
        except KeyboardInterrupt:
            raise Interrupted(run.attacked()) from None
    return run.attacked()


class _Run:
    """The state of all cases. ``running`` are the indices of those that go on; ``gradients`` are theirs at their current strings."""

    def __init__(
        self,
        lm: LanguageModel,
        cases: Sequence[Case],
        settings: AttackSettings,
        seed: int,
        judge: SuccessJudge | None,
        carrier: CarrierTerm | None = None,
    ) -> None:
        self.lm, self.settings, self.seed = lm, settings, seed
        self.judge = judge if settings.check_every else None
        encoded = [encode(lm, case, settings.objective) for case in cases]
        self.objective = TargetLoss(lm, encoded, settings.tokens_per_batch, settings.objective, carrier)
        self.draft = Draft(lm, cases, settings.probe, settings.objective) if settings.probe is not None else None
        self.allowed = allowed_tokens(lm.tokenizer, lm.core.get_input_embeddings().weight.shape[0], settings.ascii_only)
        self.filters = [Typable(lm, case) for case in encoded] if settings.retokenize else None
        self.searches = [
            Search(case, list(known.suffix), settings.buffer, settings.momentum) for case, known in zip(cases, encoded, strict=True)
        ]
        self.judging = [0.0] * len(cases)
        self.successes = Successes()
        self.running = list(range(len(cases)))

    def step(self, step: int) -> None:
        """One step of every running case; step 0 only looks at where they start."""
        started = time.perf_counter()
        drawn = dict.fromkeys(self.running, 0)
        before = {index: self.searches[index].suffix for index in self.running}
        if step == 0:
            drawn |= self._start()
        else:
            candidates = self._draw(step)
            drawn |= {index: len(mine) for index, mine in candidates.items()}
            for index, found in self._best(step, candidates).items():
                self._move(index, self.searches[index].offer(found))
        verdicts = self._judge(step)
        seconds = (time.perf_counter() - started) / len(self.running)
        for index in self.running:
            accepted = self.searches[index].suffix != before[index]
            self.searches[index].note(step, accepted, drawn[index], verdicts.get(index), seconds, self.spent(index))
        self.running = [index for index in self.running if not verdicts.get(index) and not self._exhausted(index, step)]

    def spent(self, index: int) -> float:
        """Floating-point operations spent on a case so far."""
        draft = self.draft.flops[index] if self.draft is not None else 0.0
        return self.objective.flops[index] + draft + self.judging[index]

    def attacked(self) -> Attacked:
        """Everything found so far."""
        records = [record for search in self.searches for record in search.records]
        records.sort(key=lambda record: int(str(record["step"])))  # stable: by step, cases in their order
        last = [search.case for search in self.searches]
        return Attacked(last, [search.best or search.case for search in self.searches], pd.DataFrame(records, columns=list(COLUMNS)))

    def _start(self) -> dict[int, int]:
        """Loss of every start; returns how many strings each case began with.

        A buffer of n begins with the start and n - 1 random strings of its length (nanoGCG).
        """
        owners, suffixes = list(self.running), [self.searches[index].suffix for index in self.running]
        for index in self.running:
            wanted = max(0, self.settings.buffer - 1)
            extra = (
                random_suffixes(self.lm, self.allowed, len(self.searches[index].suffix), wanted, self._stream(index, 0)) if wanted else []
            )
            extra = self._typable(index, self.searches[index].suffix, extra)
            owners += [index] * len(extra)
            suffixes += extra
        losses = self._finite(0, owners, self.objective.losses(owners, suffixes))
        for index in self.running:
            search = self.searches[index]
            search.start([Scored(loss, suffix) for loss, suffix, owner in zip(losses, suffixes, owners, strict=True) if owner == index])
            self._move(index, search.buffer[0])
        return {index: owners.count(index) for index in self.running}

    def _draw(self, step: int) -> dict[int, list[list[int]]]:
        """Candidates of every running case, filtered."""
        losses, gradients = self.objective.gradients(self.running, [self.searches[index].suffix for index in self.running])
        self._finite(step, self.running, losses)
        found = {}
        for index, gradient in zip(self.running, gradients, strict=True):
            search = self.searches[index]
            guests = migrants(self.searches, index, self.settings.exchange, self._stream(index, step, 2))
            width = max(1, self.settings.width - len(guests))
            drawn = draw(search.suffix, search.push(gradient), self.allowed, self.settings, self._stream(index, step), width)
            found[index] = self._typable(index, search.suffix, [*drawn, *self._fitting(index, guests)])
        return found

    def _best(self, step: int, candidates: dict[int, list[list[int]]]) -> dict[int, Scored]:
        """The best candidate of every case that has one; of equals the first."""
        owners = [index for index, mine in candidates.items() for _ in mine]
        suffixes = [suffix for mine in candidates.values() for suffix in mine]
        if not owners:
            return {}
        if self.draft is None:
            losses = self.objective.losses(owners, suffixes)
        else:
            rows, losses = self.draft.scored(owners, suffixes, self.objective.losses, lambda index: self._stream(index, step, 1))
            owners, suffixes = [owners[row] for row in rows], [suffixes[row] for row in rows]
        best: dict[int, Scored] = {}
        for owner, suffix, loss in zip(owners, suffixes, self._finite(step, owners, losses), strict=True):
            if owner not in best or loss < best[owner].loss:
                best[owner] = Scored(loss, suffix)
        return best

    def _move(self, index: int, chosen: Scored) -> None:
        search = self.searches[index]
        # An unchanged string keeps the user's own spelling.
        text = search.case.attack if chosen.suffix == search.suffix else decode(self.lm.tokenizer, [chosen.suffix])[0]
        search.move(chosen.suffix, text, chosen.loss)

    def _judge(self, step: int) -> dict[int, bool]:
        """Ask the judge about strings it has not seen yet: at the start, every ``check_every`` steps and at the end.

        Per case: where it stands, then ``reuse`` strings that broke others, most successful first. The first that succeeds ends it.
        """
        if self.judge is None or (step % self.settings.check_every and step < self.settings.steps):
            return {}
        asked: list[tuple[int, list[int], Case]] = []
        known = self.successes.ranked() if self.settings.reuse else []
        for index in self.running:
            search = self.searches[index]
            options = [(search.suffix, search.case)]
            if known:
                others = self._typable(index, search.suffix, self._fitting(index, known))
                texts = decode(self.lm.tokenizer, others)
                fresh = [place for place, text in enumerate(texts) if text not in search.judged][: self.settings.reuse]
                options += [(others[place], replace(search.case, attack=texts[place], loss=None)) for place in fresh]
            asked += [(index, suffix, case) for suffix, case in options if case.attack not in search.judged]
        verdicts = dict.fromkeys(self.running, False)
        answers = self.judge([case for _, _, case in asked]) if asked else []
        for (index, suffix, case), answer in zip(asked, answers, strict=True):
            self.searches[index].judged.add(case.attack)
            self.judging[index] += answer.flops
            if answer.success and not verdicts[index]:
                verdicts[index] = True
                self.successes.add(suffix)
                loss = case.loss if case.loss is not None else self._finite(step, [index], self.objective.losses([index], [suffix]))[0]
                self.searches[index].move(suffix, case.attack, loss)
                self.searches[index].best = self.searches[index].case  # what works, whatever its loss
        return verdicts

    def _fitting(self, index: int, suffixes: Sequence[list[int]]) -> list[list[int]]:
        """Strings of other cases that are not too long for the model's context here."""
        case = self.objective.encoded[index]
        room = self.lm.context - len(case.before) - len(case.after) - max(map(len, (*case.targets, *case.refusals)))
        return [suffix for suffix in suffixes if len(suffix) <= room]

    def _exhausted(self, index: int, step: int) -> bool:
        settings, search = self.settings, self.searches[index]
        assert search.case.loss is not None
        return (
            (settings.early_stop_loss is not None and step > 0 and search.case.loss < settings.early_stop_loss)
            or (settings.max_seconds is not None and search.seconds >= settings.max_seconds)
            or (settings.max_flops is not None and search.spent >= settings.max_flops)
        )

    def _typable(self, index: int, current: Sequence[int], candidates: list[list[int]]) -> list[list[int]]:
        return self.filters[index](current, candidates) if self.filters is not None else candidates

    def _finite(self, step: int, owners: Sequence[int], losses: Float[Tensor, " cand"]) -> list[float]:
        values: list[float] = losses.tolist()
        for owner, loss in zip(owners, values, strict=True):
            if not np.isfinite(loss):
                raise NonFinite(
                    f"The attack loss of case '{self.searches[owner].case.behavior}' became {loss} in step {step}",
                    fix="Check the model's dtype and weights",
                )
        return values

    def _stream(self, index: int, step: int, *use: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(self.searches[index].case.behavior.encode()), step, *use])
