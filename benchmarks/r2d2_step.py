"""The adversarial part of one R2D2 step against HarmBench's call pattern: same candidates, same suffixes, same losses and gradients.

    python -m benchmarks.r2d2_step [--model M1] [--cases 8] [--steps 2] [--width 256] [--json FILE]

Attack (GCG steps on every case) and then the away and toward losses with their backward pass, all weights trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from benchmarks.command import parser, tell
from benchmarks.gcg import engine, propose, retokenizer, sift
from benchmarks.measuring import added, flops, interleaved, ratio, table
from benchmarks.models import build, cases
from benchmarks.peers import HarmBench, harmbench_training
from torch import Tensor

from refgeo.attacks.cases import Case
from refgeo.attacks.encoded import Encoded, encode
from refgeo.attacks.vocabulary import decode
from refgeo.config.schema import TrainSettings
from refgeo.lm.model import LanguageModel
from refgeo.training.loop import adversarial

Propose = Callable[[int, int, Sequence[int], Tensor], list[list[int]]]
"""Case, step, suffix, gradient -> the candidates of that step."""


class Trained(NamedTuple):
    """Away and toward loss, and the gradient of their weighted sum with respect to all weights, one after the other."""

    away: float
    toward: float
    gradient: Tensor


def proposer(lm: LanguageModel, encoded: Sequence[Encoded], width: int) -> Propose:
    """Draw and filter as the engine does. HarmBench does not filter; here both pay for it, so that both see the same candidates."""
    judges = [retokenizer(lm, case) for case in encoded]

    def inner(index: int, step: int, suffix: Sequence[int], gradient: Tensor) -> list[list[int]]:
        return sift(judges[index], suffix, propose(lm, suffix, gradient, width, 1000 * index + step))

    return inner


def attack_together(lm: LanguageModel, encoded: Sequence[Encoded], steps: int, candidates: Propose) -> list[list[int]]:
    """The engine: all cases in one batch. Returns the suffixes after the last step."""
    objective = engine(lm, encoded, None)
    everyone = list(range(len(encoded)))
    suffixes = [list(case.suffix) for case in encoded]
    for step in range(steps):
        _, gradients = objective.gradients(everyone, suffixes)
        rows = [candidates(index, step, suffixes[index], gradients[index]) for index in everyone]
        owners = [index for index in everyone for _ in rows[index]]
        found = objective.losses(owners, [row for mine in rows for row in mine])
        for index, losses in zip(everyone, found.split([len(mine) for mine in rows]), strict=True):
            suffixes[index] = rows[index][int(losses.argmin())]
    return suffixes


def attack_in_turn(lm: LanguageModel, encoded: Sequence[Encoded], steps: int, candidates: Propose, batch: int) -> list[list[int]]:
    """HarmBench: one case after another, its prefix cache built anew in every training step."""
    found = []
    for index, case in enumerate(encoded):
        peer, suffix = HarmBench(lm, case, batch), list(case.suffix)
        for step in range(steps):
            rows = candidates(index, step, suffix, peer.gradient(suffix).float())
            suffix = rows[int(peer.losses(rows).argmin())]
        found.append(suffix)
    return found


def train_ours(lm: LanguageModel, given: Sequence[Case], suffixes: Sequence[Sequence[int]], settings: TrainSettings) -> Trained:
    """The training losses as the training loop computes them."""
    attacked = [replace(case, attack=text) for case, text in zip(given, decode(lm.tokenizer, suffixes), strict=True)]
    parts = adversarial(lm, attacked, [False] * len(attacked), settings)
    return _backward(lm, parts["loss_away"], parts["loss_toward"], settings)


def train_harmbench(lm: LanguageModel, encoded: Sequence[Encoded], suffixes: Sequence[Sequence[int]], settings: TrainSettings) -> Trained:
    """The same losses in HarmBench's batch: prompt and suffix twice per case, logits everywhere."""
    refusal = lm.tokenizer(settings.r2d2.refusal, add_special_tokens=False)["input_ids"]
    away, toward = harmbench_training(lm, encoded, suffixes, [*refusal, lm.eos_id], settings.r2d2.away_cutoff)
    return _backward(lm, away, toward, settings)


def _backward(lm: LanguageModel, away: Tensor, toward: Tensor, settings: TrainSettings) -> Trained:
    weights = list(lm.core.parameters())
    total = settings.r2d2.weight_away * away + settings.r2d2.weight_toward * toward
    gradients = torch.autograd.grad(total, weights)
    return Trained(float(away.detach()), float(toward.detach()), torch.cat([gradient.flatten() for gradient in gradients]).float())


def compare(lm: LanguageModel, given: Sequence[Case], steps: int, width: int, repeats: int) -> tuple[dict[str, object], str]:
    """Both patterns on the same cases: figures for the file and a table. The model's weights stay as they are."""
    settings = TrainSettings(lora=None)
    encoded = [encode(lm, case) for case in given]
    lm.net.requires_grad_(True)

    def ours() -> list[list[int]]:
        return attack_together(lm, encoded, steps, proposer(lm, encoded, width))

    def theirs() -> list[list[int]]:
        return attack_in_turn(lm, encoded, steps, proposer(lm, encoded, width), min(width, 256))

    suffixes, others = ours(), theirs()
    one, other = train_ours(lm, given, suffixes, settings), train_harmbench(lm, encoded, suffixes, settings)
    works: dict[str, Callable[[], object]] = {
        "attack": ours,
        "peer attack": theirs,
        "training": partial(train_ours, lm, given, suffixes, settings),
        "peer training": partial(train_harmbench, lm, encoded, suffixes, settings),
    }
    times = interleaved(works, repeats, lm.device)
    counts = {name: flops(work) for name, work in works.items()}
    times |= {"both": added(times["attack"], times["training"]), "peer both": added(times["peer attack"], times["peer training"])}
    counts |= {"both": counts["attack"] + counts["training"], "peer both": counts["peer attack"] + counts["peer training"]}
    parts = ("attack", "training", "both")
    ratios = {name: ratio(times[f"peer {name}"], times[name]) for name in parts}
    less = {name: counts[name] / counts[f"peer {name}"] for name in parts}
    figures: dict[str, object] = {
        "model": lm.name,
        "device": lm.device.type,
        "cases": len(given),
        "steps": steps,
        "width": width,
        "time_ratio": ratios["both"].median,
        "flops_ratio": less["both"],
        "attack_time_ratio": ratios["attack"].median,
        "attack_flops_ratio": less["attack"],
        "training_time_ratio": ratios["training"].median,
        "training_flops_ratio": less["training"],
        "same_suffixes": sum(mine == yours for mine, yours in zip(suffixes, others, strict=True)),
        "max_loss_diff": max(abs(one.away - other.away), abs(one.toward - other.toward)),
        "gradient_diff": float((one.gradient - other.gradient).norm() / other.gradient.norm()),
        "seconds": float(np.median(times["both"])),
        "peer_seconds": float(np.median(times["peer both"])),
    }
    rows = [
        [name, f"{np.median(times[name]):.3f}", f"{np.median(times[f'peer {name}']):.3f}", str(ratios[name]), f"{less[name]:.2f}"]
        for name in parts
    ]
    return figures, table(["part", "engine s", "HarmBench's pattern s", "ratio", "FLOPs of the pattern's"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    given = parser(__doc__, cases=8, steps=2, width=256, repeats=3).parse_args(arguments)
    torch.set_num_threads(given.threads)
    lm = build(given.model, given.device, given.dtype)
    figures, text = compare(lm, cases(given.model, given.cases), given.steps, given.width, given.repeats)
    tell([text], figures, given.json)


if __name__ == "__main__":
    main()
