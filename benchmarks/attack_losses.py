"""Candidate losses of the attack engine against plain full forward passes: same candidates, same losses, one run.

    python benchmarks/attack_losses.py [--cases 6] [--width 64] [--rows 64] [--repeats 5]

Prints tokens through the body (the deterministic figure), seconds and their ratios, on the shipped model.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from refgeo.attacks.gcg import draw, typable
from refgeo.attacks.objective import Encoded, TargetLoss, encode, target_loss
from refgeo.attacks.start import initial_cases
from refgeo.attacks.vocabulary import allowed_tokens
from refgeo.config.load import load_study
from refgeo.data.load import load_behaviors
from refgeo.lm.generate import left_pad
from refgeo.lm.model import LanguageModel, load


def plain(lm: LanguageModel, cases: list[Encoded], owners: list[int], suffixes: list[list[int]], rows: int) -> tuple[torch.Tensor, int]:
    """The twin: every candidate from its first token, no cache, logits at every position."""
    found, tokens = [], 0
    for start in range(0, len(owners), rows):
        chunk = list(zip(owners[start : start + rows], suffixes[start : start + rows], strict=True))
        whole = [[*cases[owner].before, *suffix, *cases[owner].after, *cases[owner].target[:-1]] for owner, suffix in chunk]
        ids, mask = left_pad(whole, lm.pad_id, lm.device)
        with torch.no_grad():
            logits = lm.core(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False).logits
        keep = max(len(cases[owner].target) for owner, _ in chunk)
        found.append(target_loss(logits[:, -keep:], [cases[owner].target for owner, _ in chunk]))
        tokens += ids.numel()
    return torch.cat(found), tokens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("cases", 6), ("width", 64), ("rows", 64), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study("pocket")
    lm = load(study.model)
    settings = study.source_attack.model_copy(update={"width": options.width, "early_stop_loss": None})
    cases = [encode(lm, case) for case in initial_cases(load_behaviors(study.data.behaviors_test)[: options.cases], settings, 0)]
    objective = TargetLoss(lm, cases, options.rows)
    _, gradients = objective.gradients(list(range(len(cases))), [case.suffix for case in cases])
    allowed = allowed_tokens(lm.tokenizer, lm.core.get_input_embeddings().weight.shape[0])
    owners: list[int] = []
    suffixes: list[list[int]] = []
    for index, (case, gradient) in enumerate(zip(cases, gradients, strict=True)):
        kept = typable(lm, case, draw(case.suffix, gradient, allowed, settings, np.random.default_rng(index)))
        owners += [index] * len(kept)
        suffixes += kept
    counted = 0

    def count(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        nonlocal counted
        counted += kwargs["input_ids"].numel()

    handle = lm.core.register_forward_pre_hook(count, with_kwargs=True)
    engine = objective.losses(owners, suffixes)
    engine_tokens = counted
    handle.remove()
    twin, plain_tokens = plain(lm, cases, owners, suffixes, options.rows)
    print(f"candidates {len(owners)}, largest difference of a loss {float((engine - twin).abs().max()):.1e}")
    print(f"tokens through the body: engine {engine_tokens}, plain {plain_tokens}, ratio {engine_tokens / plain_tokens:.2f}")
    times: dict[str, list[float]] = {"engine": [], "plain": []}
    for _ in range(options.repeats):
        for name, work in (
            ("engine", lambda: objective.losses(owners, suffixes)),
            ("plain", lambda: plain(lm, cases, owners, suffixes, options.rows)),
        ):
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    ratios = [slow / fast for slow, fast in zip(times["plain"], times["engine"], strict=True)]
    print(f"seconds: engine {statistics.median(times['engine']):.3f}, plain {statistics.median(times['plain']):.3f}")
    print(f"speed-up, pair by pair: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
