"""The full carrier scan against one hooked forward pass per candidate and batch, as the published code runs it. Same scores, one run.

    python -m benchmarks.scan [--model M1] [--prompts 32] [--words 40] [--repeats 5] [--json FILE]

The peer's pattern (the public code of 2406.11717 and of 2506.00085): for every layer and position three passes over the validation
prompts, ablation on safe ones, addition on safe ones, ablation on harmful ones, in padded batches of 32 in the order given, with a
hook and logits at every position: 3 * n_pos * n_layer * ceil(n_val / 32) forward passes and the baselines. Here its COSMIC states
come out of the same passes, which spares it the passes that its own code runs for them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from benchmarks.command import parser, tell
from benchmarks.generation import prompts
from benchmarks.measuring import flops, interleaved, ratio, table
from benchmarks.models import build
from jaxtyping import Float
from torch import Tensor

from refgeo.config.measures import GeometrySettings
from refgeo.lm.batch import left_pad
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import ablate, add, editing, read
from refgeo.measures.directions import Candidates, candidates
from refgeo.measures.scan import evaluation_layers, last_states, scan
from refgeo.measures.selection import scores
from refgeo.measures.trials import trials

BATCH = 32
TOKENS = (7, 11, 30)
"""Stand-ins for refusal-opening tokens: a random model refuses nothing."""


class Task(NamedTuple):
    """Everything both sides get: candidates, validation prompts as ids, COSMIC's layers."""

    found: Candidates
    harmful: list[tuple[int, ...]]
    safe: list[tuple[int, ...]]
    layers: list[int]
    settings: GeometrySettings


class Found(NamedTuple):
    """Scores per candidate: KL, both log-odds, both COSMIC cosines."""

    kl: Float[Tensor, " cand"]
    added_odds: Float[Tensor, " cand"]
    ablated_odds: Float[Tensor, " cand"]
    cosmic_refuse: Float[Tensor, " cand"]
    cosmic_comply: Float[Tensor, " cand"]


def task(lm: LanguageModel, count: int, words: int, settings: GeometrySettings) -> Task:
    """``count`` prompts of each kind to estimate directions and as many to try them out; words drawn at random."""
    rows = [prompt.ids for prompt in prompts(lm, 4 * count, words)]
    estimate, harmful, safe = (rows[:count], rows[count : 2 * count]), rows[2 * count : 3 * count], rows[3 * count :]
    found = candidates(*(read(lm, group, settings.positions, settings.site) for group in estimate))
    layers = evaluation_layers(last_states(lm, harmful, settings), last_states(lm, safe, settings), settings.cosmic_share)
    return Task(found, harmful, safe, layers, settings)


def engine(lm: LanguageModel, given: Task) -> Found:
    """The project's scan, all prompts weighing the same."""
    raw = scan(lm, trials(given.found, given.settings), given.harmful, given.safe, given.layers, TOKENS, given.settings)
    means = scores(raw, torch.ones(len(given.harmful)), torch.ones(len(given.safe)))
    return Found(means.kl, raw.added_odds.mean(dim=1), raw.ablated_odds.mean(dim=1), means.cosmic_refuse, means.cosmic_comply)


@torch.no_grad()
def per_candidate(lm: LanguageModel, given: Task) -> Found:
    """The peer: a hook and whole forward passes for every candidate."""
    before, _, safe_state = _passes(lm, given, given.safe)
    _, _, harmful_state = _passes(lm, given, given.harmful)
    places, depth = given.found.norms.shape
    rows = []
    for layer in range(depth):
        for place in range(places):
            unit, vector = given.found.unit(place, layer).float(), given.found.vectors[place, layer].float()
            with ablate(lm, unit[None], layer, site=given.settings.site):
                after, _, _ = _passes(lm, given, given.safe)
                _, ablated, comply = _passes(lm, given, given.harmful)
            with add(lm, vector, layer, given.settings.site):
                _, added, refuse = _passes(lm, given, given.safe)
            kl = (before.exp() * (before - after)).sum(dim=-1).mean()
            similar = [torch.cosine_similarity(one, other, dim=0) for one, other in ((refuse, harmful_state), (comply, safe_state))]
            rows.append(torch.stack([kl, added.mean(), ablated.mean(), *similar]))
    return Found(*torch.stack(rows, dim=1))


def _passes(lm: LanguageModel, given: Task, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Next-token log-probabilities and refusal log-odds of every prompt, and the mean state in the evaluation layers."""
    log_probs, states = [], []
    for start in range(0, len(rows), BATCH):
        ids, mask = left_pad(rows[start : start + BATCH], lm.pad_id, lm.device)
        seen: list[Tensor] = []

        def keep(hidden: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(hidden[:, -1])
            return hidden

        with editing([(lm.blocks[layer], "output", keep) for layer in given.layers]):
            logits = lm.core(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0), use_cache=False).logits
        log_probs.append(logits[:, -1].double().log_softmax(dim=-1))
        states.append(torch.stack(seen).mean(dim=0))
    joined = torch.cat(log_probs)
    mass = joined.exp()[:, list(TOKENS)].sum(dim=-1)
    return joined, torch.log(mass / (1 - mass)), torch.cat(states).double().mean(dim=0)


def compare(lm: LanguageModel, given: Task, repeats: int) -> tuple[dict[str, object], str]:
    """Both on the same task: figures for the file, and a table."""
    works = {"engine": lambda: engine(lm, given), "peer": lambda: per_candidate(lm, given)}
    found: dict[str, Found] = {}

    def noted(name: str) -> None:
        found[name] = works[name]()

    counted = {name: flops(partial(noted, name)) for name in works}
    times = interleaved(works, repeats, lm.device)
    spread = ratio(times["peer"], times["engine"])
    places, depth = given.found.norms.shape
    differences = {name: float((one - other).abs().max()) for name, one, other in zip(Found._fields, *found.values(), strict=True)}
    figures: dict[str, object] = {
        "model": lm.name,
        "device": lm.device.type,
        "prompts": len(given.safe),
        "mean_prompt_tokens": statistics.mean(map(len, [*given.harmful, *given.safe])),
        "longest_prompt_tokens": max(map(len, [*given.harmful, *given.safe])),
        "candidates": places * depth,
        "time_ratio": spread.median,
        "time_ratio_low": spread.low,
        "time_ratio_high": spread.high,
        "flops_ratio": counted["engine"] / counted["peer"],
        "max_score_diff": max(differences.values()),
        **{f"{name}_diff": value for name, value in differences.items()},
        "seconds": statistics.median(times["engine"]),
        "peer_seconds": statistics.median(times["peer"]),
        "peer_forward_passes": 3 * places * depth * -(-len(given.safe) // BATCH) + 2 * -(-len(given.safe) // BATCH),
    }
    labels = {"engine": "refgeo", "peer": "a hook per candidate, batches of 32"}
    rows = [
        [label, f"{statistics.median(times[name]):.2f}", "" if name == "engine" else str(spread), f"{counted[name] / 1e9:.1f}"]
        for name, label in labels.items()
    ]
    return figures, table(["scan", "seconds", "ratio", "GFLOPs"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    given = parser(__doc__, prompts=32, words=40, repeats=5, batch=128).parse_args(arguments)
    torch.set_num_threads(given.threads)
    lm = build(given.model, given.device, given.dtype)
    settings = GeometrySettings(batch=given.batch, positions=(-4, -3, -2, -1) if given.model == "pocket" else (-5, -4, -3, -2, -1))
    figures, text = compare(lm, task(lm, given.prompts, given.words, settings), given.repeats)
    tell([text], figures, given.json)


if __name__ == "__main__":
    main()
