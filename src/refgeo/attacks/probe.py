"""Probe sampling (2403.01251): a draft ranks all candidates of a step, and the model scores those that the ranking leaves in doubt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from refgeo.attacks.cases import Case
from refgeo.attacks.encoded import encode
from refgeo.attacks.objective import TargetLoss
from refgeo.config.attack import ObjectiveSettings, ProbeSettings
from refgeo.config.model import ModelSettings
from refgeo.errors import ConfigError
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel

Score = Callable[[Sequence[int], Sequence[Sequence[int]]], Tensor]


class Draft:
    """The cheap scorer of probe sampling for one set of cases and one state of the weights."""

    def __init__(self, lm: LanguageModel, cases: Sequence[Case], settings: ProbeSettings, objective: ObjectiveSettings) -> None:
        self.settings = settings
        self.lm = truncated(lm, settings.layers) if settings.draft is None else _loaded(settings.draft, lm)
        self.loss = TargetLoss(self.lm, [encode(self.lm, case, objective) for case in cases], settings=objective)

    @property
    def flops(self) -> list[float]:
        """Operations spent so far per case."""
        return self.loss.flops

    def scored(
        self, owners: Sequence[int], suffixes: Sequence[Sequence[int]], score: Score, streams: Callable[[int], np.random.Generator]
    ) -> tuple[list[int], Float[Tensor, " cand"]]:
        """Which candidates the model was asked about, and their losses by the model.

        Per case: a random probe of ``share`` of the candidates is scored by both; a = (1 + their rank correlation) / 2; then the
        (1 - a) * width / reduction candidates (at least one) that the draft likes best are scored by the model too.
        """
        cheap = self.loss.losses(owners, suffixes)
        rows = {owner: [row for row, other in enumerate(owners) if other == owner] for owner in dict.fromkeys(owners)}
        probed = {owner: self._probe(mine, streams(owner)) for owner, mine in rows.items()}
        chosen = [row for probe in probed.values() for row in probe]
        exact = dict(zip(chosen, _ask(chosen, owners, suffixes, score), strict=True))
        promising: list[int] = []
        for owner, mine in rows.items():
            agreement = rank_agreement(cheap[probed[owner]], torch.tensor([exact[row] for row in probed[owner]]))
            count = min(max(1, int((1 - agreement) * len(mine) / self.settings.reduction)), len(mine))
            promising += [mine[place] for place in cheap[mine].argsort(stable=True)[:count].tolist()]
        promising = [row for row in promising if row not in exact]
        exact |= dict(zip(promising, _ask(promising, owners, suffixes, score), strict=True))
        asked = sorted(exact)
        return asked, torch.tensor([exact[row] for row in asked])

    def _probe(self, rows: Sequence[int], rng: np.random.Generator) -> list[int]:
        count = min(len(rows), max(2, round(self.settings.share * len(rows))))
        return [rows[int(place)] for place in np.sort(rng.choice(len(rows), count, replace=False))]


def rank_agreement(one: Float[Tensor, " cand"], other: Float[Tensor, " cand"]) -> float:
    """Spearman's rank correlation, rescaled from [-1, 1] to [0, 1]; one half where it is not defined (2403.01251, section 3)."""
    if len({*one.tolist()}) < 2 or len({*other.tolist()}) < 2:
        return 0.5
    return (1 + float(spearmanr(one.numpy(), other.numpy()).statistic)) / 2


def truncated(lm: LanguageModel, layers: int) -> LanguageModel:
    """The first ``layers`` blocks of a model with its final norm and head; weights are shared, nothing is copied."""
    if layers >= lm.depth:
        raise ConfigError(
            f"probe.layers is {layers}, but '{lm.name}' has {lm.depth} blocks", expected="fewer", fix="Lower it, or name a draft model"
        )
    memo: dict[int, Any] = {id(parameter): parameter for parameter in lm.core.parameters()}
    memo |= {id(buffer): buffer for buffer in lm.core.buffers()}
    core = copy.deepcopy(lm.core, memo)
    draft = LanguageModel(core, lm.tokenizer, lm.chat, f"{lm.name}, first {layers} blocks")
    del draft.blocks[layers:]
    core.config.get_text_config().num_hidden_layers = layers
    return LanguageModel(core, lm.tokenizer, lm.chat, draft.name)


def _loaded(path: str, lm: LanguageModel) -> LanguageModel:
    settings = ModelSettings(path=path, device=str(lm.device), dtype=str(lm.core.dtype).removeprefix("torch."))  # type: ignore[arg-type]
    draft = load(settings, check=False)
    if draft.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        raise ConfigError(f"The draft '{path}' has another vocabulary than '{lm.name}'", expected="a model with the same tokenizer")
    return LanguageModel(draft.net, lm.tokenizer, lm.chat, draft.name)


def _ask(rows: Sequence[int], owners: Sequence[int], suffixes: Sequence[Sequence[int]], score: Score) -> list[float]:
    return score([owners[row] for row in rows], [suffixes[row] for row in rows]).tolist() if rows else []
