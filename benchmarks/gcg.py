"""The attack engine against nanoGCG: same candidates, same losses, one run.

    python -m benchmarks.gcg --model M1|M2|M3|pocket|mistral-7b [--width 512] [--device cuda --dtype bfloat16] [--json FILE]

README.md in this folder explains the rows and the keys of the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks.command import parser, tell
from benchmarks.measuring import Work, added, added_peak, flops, interleaved, ratio, seconds, table
from benchmarks.models import build, cases
from benchmarks.peers import NanoGCG, nano, plain_losses, prefix_pairs, uncollected
from torch import Tensor

from refgeo.attacks.cases import Case
from refgeo.attacks.encoded import Encoded, encode
from refgeo.attacks.gcg import attack
from refgeo.attacks.objective import TargetLoss
from refgeo.attacks.retokenize import Retokenizer
from refgeo.attacks.vocabulary import allowed_tokens
from refgeo.config.attack import AttackSettings
from refgeo.lm.model import LanguageModel

BATCHES = (32, 64, 128, 256, 512)
"""Batch sizes among which nanoGCG gets its best, beside its default."""


class Options(NamedTuple):
    """One run: candidates per step, tokens per batch of the engine, rounds of timing, rounds and steps of the whole attack."""

    width: int = 512
    tokens: int | None = None
    repeats: int = 5
    attacks: int = 3
    steps: int = 2
    ideas: bool = True
    memory: float = 6e9
    """Most bytes of logits and their copies that a batch of nanoGCG may take on a CPU."""
    batch: int | None = None
    """Batch size of nanoGCG; absent: its default, all candidates at once, or the largest that fits into memory."""
    tune: bool = True
    """Also give nanoGCG the batch size that is fastest for it."""


class Compared(NamedTuple):
    """``figures``: what goes into the file. ``tables``: what is printed."""

    figures: dict[str, object]
    tables: list[str]


def engine(lm: LanguageModel, encoded: Sequence[Encoded], tokens: int | None) -> TargetLoss:
    """The engine's objective; the one place where the benchmarks construct it."""
    return TargetLoss(lm, encoded, tokens)


def propose(lm: LanguageModel, suffix: Sequence[int], gradient: Tensor, width: int, seed: int) -> list[list[int]]:
    """Plain GCG candidates (2307.15043): one position changes to one of its 256 best tokens; distinct, and not the suffix itself.

    Not the engine's own function on purpose: every version of the engine is measured on the same candidates.
    """
    allowed = allowed_tokens(lm.tokenizer, gradient.shape[1]).to(gradient.device)
    topk = min(256, int(allowed.sum()))
    best = (-gradient.detach()).masked_fill(~allowed, float("-inf")).topk(topk, dim=1).indices.cpu().numpy()
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    for position in (np.arange(width) * len(suffix) // width).tolist():
        token = int(best[position, rng.integers(topk)])
        if token != suffix[position]:
            found[(*suffix[:position], token, *suffix[position + 1 :])] = None
    return [list(candidate) for candidate in found]


def retokenizer(lm: LanguageModel, case: Encoded) -> Retokenizer:
    """The engine's filter for the prompt of one case."""
    return Retokenizer(lm.tokenizer, case.frame, case.before, case.after)


def sift(judge: Retokenizer, suffix: Sequence[int], drawn: Sequence[Sequence[int]]) -> list[list[int]]:
    """The candidates that pass the engine's filter; the suffix itself when none does."""
    return [list(row) for row, keep in zip(drawn, judge.keep(suffix, drawn), strict=True) if keep] or [list(suffix)]


def compare(lm: LanguageModel, case: Case, options: Options) -> Compared:
    """Candidate losses, gradient and filter of the engine and of nanoGCG with its prefix cache repaired, then the whole attack."""
    encoded = encode(lm, case)
    suffix, device = encoded.suffix, lm.device
    ours, theirs = engine(lm, [encoded], options.tokens), NanoGCG(lm, encoded)
    start, (gradient,) = ours.gradients([0], [suffix])
    judge = retokenizer(lm, encoded)
    # Fresh candidates for every call of a filter: the engine's remembers what it has seen.
    drawn = [propose(lm, suffix, gradient, options.width, seed) for seed in range(options.repeats + 1)]
    fresh, nano_fresh = iter(drawn), iter(drawn)
    kept = sift(retokenizer(lm, encoded), suffix, drawn[0])
    wide = len(kept)
    losses = ours.losses([0] * wide, kept)
    sizes = [options.batch] if options.batch else sorted({*(size for size in BATCHES if size < wide), wide})
    sizes = [size for size in sizes if _fits(lm, encoded, size, options)] or sizes[:1]
    usual = options.batch or sizes[-1]
    with uncollected():
        wanted = theirs.losses(kept, sizes[0])
        best = (
            min(sizes, key=lambda size: min(seconds(partial(theirs.losses, kept, size), device) for _ in range(2)))
            if options.tune
            else usual
        )
    works: dict[str, Work] = {
        "engine": lambda: ours.losses([0] * wide, kept),
        "nano": _quiet(lambda: theirs.losses(kept, usual)),
        "nano tuned": _quiet(lambda: theirs.losses(kept, best)),
        "gradient": lambda: ours.gradients([0], [suffix]),
        "nano gradient": lambda: theirs.gradient(suffix),
        "filter": lambda: sift(judge, suffix, next(fresh)),
        "nano filter": lambda: theirs.filter(next(nano_fresh)),
    }
    if options.ideas:
        prefix = prefix_pairs(lm, encoded)
        works |= {
            "collected": lambda: theirs.losses(kept, usual),
            "uncached": lambda: plain_losses(lm, encoded, kept, best, None, everywhere=True),
            "cached": lambda: plain_losses(lm, encoded, kept, best, prefix, everywhere=True),
            "target only": lambda: plain_losses(lm, encoded, kept, best, prefix, everywhere=False),
        }
    times = interleaved(works, options.repeats, device)
    counts = {name: flops(work) for name, work in works.items() if "filter" not in name}
    peaks = {name: added_peak(works[name], device) for name in ("engine", "nano", "nano tuned")}
    step = added(times["gradient"], times["filter"], times["engine"])
    nano_step = added(times["nano gradient"], times["nano filter"], times["nano"])
    median = {name: float(np.median(values)) for name, values in times.items()}
    figures: dict[str, object] = {
        "model": lm.name,
        "device": device.type,
        "dtype": str(lm.core.dtype).removeprefix("torch."),
        "width": options.width,
        "candidates": wide,
        "nano_batch": usual,
        "nano_best_batch": best,
        "time_ratio": ratio(times["nano"], times["engine"]).median,
        "time_ratio_best_batch": ratio(times["nano tuned"], times["engine"]).median,
        "flops_ratio": counts["engine"] / counts["nano"],
        "memory_ratio": peaks["engine"] / peaks["nano"],
        "memory_ratio_best_batch": peaks["engine"] / peaks["nano tuned"],
        "max_loss_diff": float((losses - wanted).abs().max()),
        "same_winner": int(losses.argmin()) == int(wanted.argmin()),
        "start_loss": float(start[0]),
        "gradient_time_ratio": ratio(times["nano gradient"], times["gradient"]).median,
        "filter_time_ratio": ratio(times["nano filter"], times["filter"]).median,
        "step_time_ratio": ratio(nano_step, step).median,
        "seconds_losses": median["engine"],
        "seconds_step": float(np.median(step)),
        "nano_seconds_losses": median["nano"],
        "nano_seconds_step": float(np.median(nano_step)),
        "tera_flops_losses": counts["engine"] / 1e12,
        "tera_flops_per_second": counts["engine"] / median["engine"] / 1e12,
        "nano_tera_flops_per_second": counts["nano"] / median["nano"] / 1e12,
        "peak_megabytes": peaks["engine"] / 1e6,
        "nano_peak_megabytes": peaks["nano"] / 1e6,
    }
    tables = [_losses_table(times, counts, peaks), _step_table(times, len(drawn[0]), wide, len(theirs.filter(drawn[0])))]
    if options.attacks:
        figures |= whole_attack(lm, case, options)
    return Compared(figures, tables)


def whole_attack(lm: LanguageModel, case: Case, options: Options) -> dict[str, object]:
    """A short attack by the engine and by ``nanogcg.run`` as installed, its prefix cache off because it crashes."""
    module: Any = nano()
    sized = _installed_batch(lm, encode(lm, case), options)
    config = module.GCGConfig(
        num_steps=options.steps,
        search_width=options.width,
        use_prefix_cache=False,
        optim_str_init=case.attack,
        batch_size=sized,
        seed=None,
        verbosity="ERROR",
    )
    settings = AttackSettings(steps=options.steps, width=options.width)

    def installed() -> None:
        torch.manual_seed(0)
        module.run(lm.core, lm.tokenizer, case.request, case.target, config)

    times = interleaved({"engine": lambda: attack(lm, [case], settings, 0), "nano": installed}, options.attacks, lm.device)
    found = ratio(times["nano"], times["engine"])
    return {
        "time_ratio_installed": found.median,
        "time_ratio_installed_low": found.low,
        "time_ratio_installed_high": found.high,
        "installed_batch": sized,
        "seconds_attack": float(np.median(times["engine"])),
        "nano_seconds_attack": float(np.median(times["nano"])),
    }


def _quiet(work: Callable[[], object]) -> Work:
    def inner() -> object:
        with uncollected():
            return work()

    return inner


def _fits(lm: LanguageModel, case: Encoded, rows: int, options: Options, cached: bool = True) -> bool:
    """Whether the logits of ``rows`` candidates and the copies that nanoGCG makes of them stay within the limit (CPU only)."""
    if lm.device.type == "cuda":
        return True
    tokens = len(case.suffix) + len(case.after) + len(case.targets[0]) + (0 if cached else len(case.before))
    logits = rows * tokens * lm.core.get_input_embeddings().weight.shape[0] * lm.core.dtype.itemsize
    return bool(2.5 * logits <= options.memory)


def _installed_batch(lm: LanguageModel, case: Encoded, options: Options) -> int | None:
    """nanoGCG's default, the whole width at once, if that fits into memory; else the largest batch that does."""
    if _fits(lm, case, options.width, options, cached=False):
        return None
    return next((size for size in reversed(BATCHES) if _fits(lm, case, size, options, cached=False)), BATCHES[0])


def _losses_table(times: dict[str, list[float]], counts: dict[str, int], peaks: dict[str, int]) -> str:
    labels = {
        "uncached": "plain: whole rows, logits everywhere",
        "cached": "+ prefix keys and values kept",
        "target only": "+ logits at the target only",
        "collected": "nanoGCG, prefix cache repaired",
        "nano": "nanoGCG, repaired, no gc: THE PEER",
        "nano tuned": "the same at its best batch",
        "engine": "engine",
    }
    rows = []
    for name, label in labels.items():
        if name in times:
            rows.append(
                [
                    label,
                    f"{np.median(times[name]):.3f}",
                    str(ratio(times["nano"], times[name])),
                    f"{counts[name] / 1e9:.1f}",
                    f"{counts[name] / counts['nano']:.2f}",
                    f"{peaks[name] / 1e6:.0f}" if name in peaks else "",
                ]
            )
    return table(["losses of the candidates", "seconds", "peer / this", "GFLOP", "of the peer", "peak MB"], rows)


def _step_table(times: dict[str, list[float]], drawn: int, kept: int, nano_kept: int) -> str:
    parts = {"gradient": "gradient", "filter": "filter", "engine": "losses"}
    total = float(np.median(added(*(times[name] for name in parts))))
    peers = {"gradient": "nano gradient", "filter": "nano filter", "engine": "nano"}
    rows = [
        [label, f"{own:.4f}", f"{own / total:.0%}", f"{np.median(times[peers[name]]):.4f}", str(ratio(times[peers[name]], times[name]))]
        for name, label in parts.items()
        for own in [float(np.median(times[name]))]
    ]
    whole, other = added(*(times[name] for name in parts)), added(*(times[peer] for peer in peers.values()))
    rows.append(["step", f"{total:.4f}", "100%", f"{np.median(other):.4f}", str(ratio(other, whole))])
    note = f"drawn {drawn}; kept by the engine's filter {kept}, by nanoGCG's {nano_kept}"
    return table(["one step", "engine s", "share", "nanoGCG s", "nanoGCG / engine"], rows) + "\n" + note


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    defaults = Options()
    counts = {name: getattr(defaults, name) for name in ("width", "repeats", "attacks", "steps")}
    options = parser(__doc__, **counts)
    options.add_argument("--batch", type=int, default=None, help="batch size of nanoGCG; its default, all candidates at once, when absent")
    options.add_argument("--tokens", type=int, default=None, help="tokens per forward pass of the engine; its own choice when absent")
    options.add_argument("--ideas", action=argparse.BooleanOptionalAction, default=True, help="also time each idea alone")
    options.add_argument("--tune", action=argparse.BooleanOptionalAction, default=True, help="also try nanoGCG at its best batch size")
    options.add_argument("--memory", type=float, default=defaults.memory, help="bytes of logits that a batch of nanoGCG may take on a CPU")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    chosen = Options(
        given.width, given.tokens, given.repeats, given.attacks, given.steps, given.ideas, given.memory, given.batch, given.tune
    )
    found = compare(build(given.model, given.device, given.dtype), cases(given.model, 1)[0], chosen)
    tell(found.tables, found.figures, given.json)


if __name__ == "__main__":
    main()
