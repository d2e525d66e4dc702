"""Every candidate direction tried out on the validation prompts: what ablating and adding it does to the model.

Only forward passes, with the head at the last positions only. An ablation or addition at one layer leaves the blocks before it as
they were, so these are run once per prompt and the rest goes on from there, all positions of a layer in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refgeo.config.measures import GeometrySettings
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import read
from refgeo.measures.angles import cosine
from refgeo.measures.trials import Outcome, Trial, Tryer


class Scanned(NamedTuple):
    """Raw results, one row per candidate in the order that they were given (layer, position); NaN for what was not measured.

    ``kl``: nats, of the safe prompts' next-token distributions before || after ablation, averaged over ``kl_tokens`` positions;
    ``kl_first`` at the first alone. ``odds``: log-odds of the refusal-opening tokens, NaN when there are none. ``states``: last-token
    state averaged over the evaluation layers. ``safe`` and ``harmful`` are the un-intervened model, ``added`` is addition on safe
    prompts, ``ablated`` is ablation on harmful ones.
    """

    kl: Float[Tensor, "cand safe"]
    kl_first: Float[Tensor, "cand safe"]
    safe_odds: Float[Tensor, " safe"]
    harmful_odds: Float[Tensor, " harmful"]
    added_odds: Float[Tensor, "cand safe"]
    ablated_odds: Float[Tensor, "cand harmful"]
    safe_states: Float[Tensor, "safe d_model"]
    harmful_states: Float[Tensor, "harmful d_model"]
    added_states: Float[Tensor, "cand safe d_model"]
    ablated_states: Float[Tensor, "cand harmful d_model"]


def scan(
    lm: LanguageModel,
    tried: Sequence[Trial | None],
    harmful: Sequence[Sequence[int]],
    safe: Sequence[Sequence[int]],
    layers: Sequence[int],
    refusal_tokens: Sequence[int],
    settings: GeometrySettings,
    completions: Sequence[Sequence[int]] = (),
) -> Scanned:
    """Ablate and add everything ``tried`` on the validation prompts ``harmful`` and ``safe`` (token ids up to the reply).

    Ablation removes a span at its own layer or everywhere (``settings.ablate``); addition adds a vector with coefficient 1 at its
    layer. ``layers`` are COSMIC's evaluation layers, read at ``settings.site``. ``completions``: the model's own answers to ``safe``,
    as ids, over whose first ``settings.kl_tokens`` tokens KL is averaged; without them only the first token's is known.
    """
    bench = Bench(lm, tried, harmful, safe, layers, refusal_tokens, settings, completions)
    everything = [index for index, trial in enumerate(tried) if trial is not None]
    for measure, count in ((bench.divergence, len(safe)), (bench.addition, len(safe)), (bench.ablation, len(harmful))):
        for rows in bench.chunks(measure, range(count), everything):
            measure(rows, everything)
    return bench.result


class Bench:
    """The scan's three measurements of chosen candidates on chosen prompts, written into ``result`` as they come."""

    def __init__(
        self,
        lm: LanguageModel,
        tried: Sequence[Trial | None],
        harmful: Sequence[Sequence[int]],
        safe: Sequence[Sequence[int]],
        layers: Sequence[int],
        refusal_tokens: Sequence[int],
        settings: GeometrySettings,
        completions: Sequence[Sequence[int]] = (),
    ) -> None:
        self.tried, self.harmful, self.safe = tried, harmful, safe
        self.tokens = torch.tensor(sorted(refusal_tokens), dtype=torch.long)
        self.tryer = Tryer(lm, layers, settings, safe[0])
        # A completion's last token is predicted, never fed.
        answers = [list(ids)[: settings.kl_tokens] for ids in completions] or [[] for _ in safe]
        self.positions = [max(1, len(ids)) for ids in answers]
        self.answered = [[*prompt, *ids[:-1]] for prompt, ids in zip(safe, answers, strict=True)]
        self.result = _blank(len(tried), len(safe), len(harmful), lm.width)

    def chunks(self, measure: Callable[..., None], rows: Sequence[int], chosen: Sequence[int]) -> list[list[int]]:
        """``rows`` of the prompts of one measurement in groups that fit with the trials of any one layer."""
        prompts = self.harmful if measure == self.ablation else self.safe if measure == self.addition else self.answered
        return self.tryer.chunks(prompts, rows, max((len(group) for group in self._by_layer(chosen)), default=1))

    def divergence(self, rows: Sequence[int], chosen: Sequence[int]) -> None:
        """KL of ablation on safe prompts."""
        keep = max(self.positions[row] for row in rows)
        traced = self.tryer.trace(self.answered, rows)
        before = _log_softmax(self.tryer.plain(traced, keep).logits)[0]
        lengths = torch.tensor([self.positions[row] for row in rows])
        there = torch.arange(keep) >= keep - lengths[:, None]
        first = keep - lengths
        for group in self._by_layer(chosen):
            after = self.tryer.run(traced, self._trials(group), add=False, keep=keep, states=False).logits
            values = torch.stack([kl_divergence(before.flatten(0, 1), _log_softmax(one).flatten(0, 1)) for one in after])
            values = values.cpu().view(len(group), len(rows), keep)
            where = torch.tensor(group)[:, None], torch.tensor(rows)[None]
            self.result.kl[where] = torch.where(there, values, 0.0).sum(dim=-1) / lengths
            self.result.kl_first[where] = values[:, torch.arange(len(rows)), first]

    def addition(self, rows: Sequence[int], chosen: Sequence[int]) -> None:
        """States and refusal log-odds of safe prompts with the vector added, and without."""
        odds, states, plain_odds, plain_states = (
            getattr(self.result, name) for name in ("added_odds", "added_states", "safe_odds", "safe_states")
        )
        self._move(self.safe, rows, chosen, True, (odds, states, plain_odds, plain_states))

    def ablation(self, rows: Sequence[int], chosen: Sequence[int]) -> None:
        """States and refusal log-odds of harmful prompts with the span ablated, and without."""
        odds, states, plain_odds, plain_states = (
            getattr(self.result, name) for name in ("ablated_odds", "ablated_states", "harmful_odds", "harmful_states")
        )
        self._move(self.harmful, rows, chosen, False, (odds, states, plain_odds, plain_states))

    def _move(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        chosen: Sequence[int],
        add: bool,
        into: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> None:
        odds, states, plain_odds, plain_states = into
        traced = self.tryer.trace(prompts, rows)
        plain = self.tryer.plain(traced)
        plain_odds[rows], plain_states[rows] = self._odds(plain)[0], _cpu(plain.states)[0]
        for group in self._by_layer(chosen):
            found = self.tryer.run(traced, self._trials(group), add=add)
            where = torch.tensor(group)[:, None], torch.tensor(rows)[None]
            odds[where], states[where] = self._odds(found), _cpu(found.states)

    def _odds(self, found: Outcome) -> Float[Tensor, "trial row"]:
        logits = _wide(found.logits[:, :, -1])
        return refusal_log_odds(logits.flatten(0, 1), self.tokens).cpu().view(logits.shape[:2])

    def _trials(self, group: Sequence[int]) -> list[Trial]:
        return [trial for trial in (self.tried[index] for index in group) if trial is not None]

    def _by_layer(self, chosen: Sequence[int]) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for index in chosen:
            trial = self.tried[index]
            if trial is not None:
                groups.setdefault(trial.layer, []).append(index)
        return [groups[layer] for layer in sorted(groups)]


def evaluation_layers(
    harmful: Float[Tensor, "prompt layer d_model"], safe: Float[Tensor, "other layer d_model"], share: float
) -> list[int]:
    """COSMIC's layers: the ``share`` of them, at least one, in which the mean last-token states of both labels are least similar."""
    means = harmful.double().mean(dim=0), safe.double().mean(dim=0)
    similar = [cosine(left, right) if bool(left.any()) and bool(right.any()) else 1.0 for left, right in zip(*means, strict=True)]
    order = sorted(range(len(similar)), key=lambda layer: (similar[layer], layer))
    return sorted(order[: max(1, int(share * len(order)))])


def last_states(lm: LanguageModel, prompts: Sequence[Sequence[int]], settings: GeometrySettings) -> Float[Tensor, "prompt layer d_model"]:
    """Last-token states of every layer, from which the evaluation layers are chosen."""
    states: Tensor = read(lm, prompts, (-1,), settings.site, settings.batch)[:, 0]
    return states


def kl_divergence(before: Float[Tensor, "row vocab"], after: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """KL(before || after) in nats from log-probabilities; NaN or infinite where ``after`` is broken."""
    terms = before.exp() * (before - after)
    divergence: Tensor = torch.where(before == -torch.inf, 0.0, terms).sum(dim=-1).clamp(min=0.0)
    return divergence


def refusal_log_odds(logits: Float[Tensor, "row vocab"], tokens: Int[Tensor, " token"]) -> Float[Tensor, " row"]:
    """``log(p / (1 - p))`` with p the probability mass of ``tokens`` (2406.11717, appendix B); NaN when there are no tokens.

    From logits or log-probabilities: a constant in every row cancels.
    """
    if not len(tokens):
        return torch.full((len(logits),), torch.nan, dtype=torch.float64)
    chosen = tokens.to(logits.device)
    odds: Tensor = logits[:, chosen].logsumexp(dim=-1) - logits.index_fill(1, chosen, -torch.inf).logsumexp(dim=-1)
    return odds


def _blank(tried: int, safe: int, harmful: int, width: int) -> Scanned:
    def nothing(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype)

    wide = torch.float32
    return Scanned(
        kl=nothing(tried, safe),
        kl_first=nothing(tried, safe),
        safe_odds=nothing(safe),
        harmful_odds=nothing(harmful),
        added_odds=nothing(tried, safe),
        ablated_odds=nothing(tried, harmful),
        safe_states=nothing(safe, width, dtype=wide),
        harmful_states=nothing(harmful, width, dtype=wide),
        added_states=nothing(tried, safe, width, dtype=wide),
        ablated_states=nothing(tried, harmful, width, dtype=wide),
    )


def _cpu(states: Tensor | None) -> Tensor:
    assert states is not None
    return states.cpu()


def _wide(logits: Tensor) -> Tensor:
    # Apple's devices have no double precision.
    return (logits.cpu() if logits.device.type == "mps" else logits).double()


def _log_softmax(logits: Tensor) -> Tensor:
    scaled: Tensor = torch.log_softmax(_wide(logits), dim=-1)
    return scaled
