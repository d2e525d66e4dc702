"""Completions of many prompts: the project's loop against transformers' ``generate`` in batches of 8, prompts in the order given.

    python -m benchmarks.generation [--model M1] [--prompts 128] [--tokens 128] [--batch 64] [--json FILE]

Same model, same prompts, same stopping tokens, one run. Random models rarely stop by themselves, so a share of the vocabulary is declared
to end a turn: answers then end at various times, as real ones do.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence

import torch
from benchmarks.command import parser, tell
from benchmarks.measuring import interleaved, ratio, table
from benchmarks.models import build

from refgeo.lm.batch import left_pad
from refgeo.lm.chat import Rendered
from refgeo.lm.generate import complete_ids
from refgeo.lm.model import LanguageModel

TIES = 1e-4
"""Two logits closer than this, relative to the largest, are a tie that rounding decides."""


def prompts(lm: LanguageModel, count: int, longest: int, seed: int = 0) -> list[Rendered]:
    """Requests of mixed lengths: log-uniform from 4 to ``longest`` words of the vocabulary, in random order."""
    generator = torch.Generator().manual_seed(seed)
    ordinary = [token for token in range(len(lm.tokenizer)) if token not in set(lm.tokenizer.all_special_ids)]
    words = [text for text in lm.tokenizer.batch_decode([[token] for token in ordinary]) if text.strip().isalpha()]
    found = []
    for size in torch.empty(count).uniform_(1.4, float(torch.tensor(longest).log()), generator=generator).exp().long().tolist():
        chosen = torch.randint(len(words), (size,), generator=generator).tolist()
        found.append(lm.chat.prompt(" ".join(words[index].strip() for index in chosen)))
    return found


@torch.no_grad()
def talkative(lm: LanguageModel, share: float, seed: int = 0) -> None:
    """Make a random model write answers of various lengths: every token ends a turn with probability ``share``.

    Its output matrix becomes one of its own: tied to the input, a random model says the same few tokens for ever.
    """
    generator = torch.Generator().manual_seed(seed)
    head = lm.core.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn(head.weight.shape, generator=generator).to(head.weight), requires_grad=False)
    drawn = torch.rand(len(lm.tokenizer), generator=generator) < share
    lm.core.generation_config.eos_token_id = sorted({lm.eos_id, *drawn.nonzero().flatten().tolist()})


@torch.no_grad()
def library(lm: LanguageModel, given: Sequence[Rendered], tokens: int, batch: int) -> list[list[int]]:
    """The peer: ``generate`` with padding on the left, batch after batch; up to the first stopping token."""
    stops, found = lm.stop_ids, []
    for start in range(0, len(given), batch):
        ids, mask = left_pad([prompt.ids for prompt in given[start : start + batch]], lm.pad_id, lm.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = lm.core.generate(
                ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=lm.pad_id, eos_token_id=sorted(stops)
            )
        for row in out[:, ids.shape[1] :].tolist():
            end = next((place + 1 for place, token in enumerate(row) if token in stops), len(row))
            found.append(row[:end])
    return found


@torch.no_grad()
def gap(lm: LanguageModel, prompt: Rendered, one: Sequence[int], other: Sequence[int]) -> float:
    """Where two completions part: the difference of the two tokens' logits, alone and in float32, relative to the largest logit."""
    place = next((index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return float("inf")
    ids = torch.tensor([[*prompt.ids, *one[:place]]], device=lm.device)
    logits = lm.core(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
    return float((logits[one[place]] - logits[other[place]]).abs() / logits.abs().max())


def compare(lm: LanguageModel, given: Sequence[Rendered], tokens: int, batch: int, repeats: int) -> tuple[dict[str, object], str]:
    """Both on the same prompts: figures for the file, and a table."""
    ours, theirs = complete_ids(lm, given, tokens, batch), library(lm, given, tokens, 8)
    alone = complete_ids(lm, given, tokens, 1)
    differing = [index for index in range(len(given)) if ours[index] != theirs[index]]
    gaps = [gap(lm, given[index], ours[index], theirs[index]) for index in differing]
    times = interleaved(
        {
            "engine": lambda: complete_ids(lm, given, tokens, batch),
            "library": lambda: library(lm, given, tokens, 8),
            "library sorted": lambda: library(lm, sorted(given, key=len), tokens, batch),
        },
        repeats,
        lm.device,
    )
    written = sum(map(len, ours))
    against = {name: ratio(times[name], times["engine"]) for name in ("library", "library sorted")}
    figures: dict[str, object] = {
        "model": lm.name,
        "device": lm.device.type,
        "prompts": len(given),
        "prompt_tokens": sum(map(len, given)),
        "written_tokens": written,
        "mean_answer": statistics.mean(map(len, ours)),
        "longest_answer": max(map(len, ours)),
        "batch": batch,
        "time_ratio": against["library"].median,
        "time_ratio_sorted": against["library sorted"].median,
        "tokens_equal": not differing,
        "prompts_differing": len(differing),
        "prompts_differing_alone": sum(one != other for one, other in zip(ours, alone, strict=True)),
        "only_ties_differ": all(value < TIES for value in gaps),
        "seconds": statistics.median(times["engine"]),
        "library_seconds": statistics.median(times["library"]),
        "tokens_per_second": written / statistics.median(times["engine"]),
    }
    labels = {"engine": "refgeo", "library": "generate, batches of 8", "library sorted": f"generate, sorted, batches of {batch}"}
    rows = [
        [label, f"{statistics.median(times[name]):.2f}", "" if name == "engine" else str(against[name])] for name, label in labels.items()
    ]
    return figures, table(["loop", "seconds", "ratio"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parser(__doc__, prompts=128, tokens=128, longest=150, batch=64, repeats=3)
    options.add_argument("--stops", type=float, default=0.05, help="share of the vocabulary that ends a turn")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    lm = build(given.model, given.device, given.dtype)
    if given.model != "pocket":
        talkative(lm, given.stops)
    figures, text = compare(lm, prompts(lm, given.prompts, given.longest), given.tokens, given.batch, given.repeats)
    tell([text], figures, given.json)


if __name__ == "__main__":
    main()
