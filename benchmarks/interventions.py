"""Completions under many interventions: checked against drafts in one batch, against one intervention at a time. Same completions, one run.

    python benchmarks/interventions.py [--prompts 32] [--changes 20] [--repeats 3]

On the shipped model, with random unit directions at one layer: the random controls of docs/cause.md.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from refgeo.config.load import load_study
from refgeo.data.load import load_behaviors
from refgeo.lm.changes import Change
from refgeo.lm.drafts import complete_changed
from refgeo.lm.generate import complete_ids
from refgeo.lm.load import load
from refgeo.lm.residual import ablate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompts", 32), ("changes", 20), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study("pocket")
    lm, length, batch = load(study.model), study.behavior.max_new_tokens, study.behavior.batch
    prompts = [lm.chat.prompt(behavior.prompt) for behavior in load_behaviors(study.data.behaviors_test)[: options.prompts]]
    directions = torch.nn.functional.normalize(
        torch.randn(options.changes, 1, lm.width, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    layer = lm.depth // 2

    def fast() -> list[list[list[int]]]:
        drafts = complete_ids(lm, prompts, length, batch)
        return complete_changed(lm, prompts, drafts, [Change(layer, basis) for basis in directions], length, batch=batch)

    def plain() -> list[list[list[int]]]:
        found = []
        for basis in directions:
            with ablate(lm, basis, layer):
                found.append(complete_ids(lm, prompts, length, batch))
        return found

    ratios = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        ours = fast()
        between = time.perf_counter()
        theirs = plain()
        ratios.append((time.perf_counter() - between) / (between - started))
        same = sum(one == other for left, right in zip(ours, theirs, strict=True) for one, other in zip(left, right, strict=True))
    print(f"{same} of {len(prompts) * options.changes} completions identical")
    print(f"speed-up, pair by pair: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
