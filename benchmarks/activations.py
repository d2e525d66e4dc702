"""Mean activations of many prompts at a few positions in all layers: refgeo against the pattern of the peers, in one run.

    python -m benchmarks.activations [--model M1] [--prompts 180] [--site block_input] [--json FILE]

The pattern, as in the public code of 2406.11717: batches of 32 in the order given, padded, a whole forward pass with the head at every
position, and a hook per layer that clones its states to float64. Both sides of padding are run; README.md explains the keys.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from benchmarks.command import parser, tell
from benchmarks.generation import prompts
from benchmarks.measuring import added_peak, flops, interleaved, ratio, table
from benchmarks.models import build
from torch import Tensor, nn

from refgeo.lm.batch import left_pad
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site, read

POSITIONS = (-5, -4, -3, -2, -1)
PEER_BATCH = 32


@torch.no_grad()
def common(lm: LanguageModel, rows: Sequence[Sequence[int]], site: Site, padding: Literal["left", "right"]) -> Tensor:
    """The peer: mean states, ``pos layer d_model`` in float64."""
    total = torch.zeros(len(POSITIONS), lm.depth, lm.width, dtype=torch.float64)
    for start in range(0, len(rows), PEER_BATCH):
        part = rows[start : start + PEER_BATCH]
        ids, mask = left_pad(part, lm.pad_id, lm.device)
        ends = torch.full((len(part), 1), ids.shape[1])
        if padding == "right":
            ids, mask, ends = _right(part, lm.pad_id, lm.device)
        line, places = torch.arange(len(part))[:, None], ends + torch.tensor(POSITIONS)

        def entering(layer: int, line: Tensor = line, places: Tensor = places) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                states = (args[0] if args else kwargs["hidden_states"]).clone().to(torch.float64)
                total[:, layer] += states[line, places].sum(dim=0).cpu() / len(rows)

            return hook

        def leaving(layer: int, line: Tensor = line, places: Tensor = places) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                states = (output[0] if isinstance(output, tuple) else output).clone().to(torch.float64)
                total[:, layer] += states[line, places].sum(dim=0).cpu() / len(rows)

            return hook

        handles = [
            block.register_forward_pre_hook(entering(layer), with_kwargs=True)
            if site == "block_input"
            else block.register_forward_hook(leaving(layer))
            for layer, block in enumerate(lm.blocks)
        ]
        try:
            lm.core(input_ids=ids, attention_mask=mask)
        finally:
            for handle in handles:
                handle.remove()
    return total


def _right(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and mask aligned at the left end, and the length of every row."""
    ids = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids.to(device), mask.to(device), torch.tensor([[len(row)] for row in rows])


def compare(lm: LanguageModel, rows: Sequence[Sequence[int]], site: Site, repeats: int) -> tuple[dict[str, object], str]:
    """All on the same prompts: figures for the file, and a table."""
    works: dict[str, Callable[[], Tensor]] = {
        "engine": lambda: read(lm, rows, POSITIONS, site).mean(dim=0, dtype=torch.float64),
        "peer, padded left": lambda: common(lm, rows, site, "left"),
        "peer, padded right": lambda: common(lm, rows, site, "right"),
    }
    means = {name: work() for name, work in works.items()}
    times = interleaved(works, repeats, lm.device)
    counts = {name: flops(work) for name, work in works.items()}
    peaks = {name: added_peak(work, lm.device) for name, work in works.items()}
    peers = ("peer, padded left", "peer, padded right")
    quickest = min(peers, key=lambda name: statistics.median(times[name]))
    found = ratio(times[quickest], times["engine"])
    scale = float(means[quickest].norm(dim=-1).mean())
    worst = max(float((means["engine"] - other).abs().max()) for other in means.values())
    figures: dict[str, object] = {
        "model": lm.name,
        "device": lm.device.type,
        "site": site,
        "prompts": len(rows),
        "prompt_tokens": sum(map(len, rows)),
        "peer": quickest,
        "time_ratio": found.median,
        "time_ratio_low": found.low,
        "time_ratio_high": found.high,
        "flops_ratio": counts["engine"] / counts[quickest],
        "memory_ratio": peaks["engine"] / peaks[quickest],
        "max_diff": worst,
        "max_diff_relative": worst / scale,
        "seconds": statistics.median(times["engine"]),
        "peer_seconds": statistics.median(times[quickest]),
    }
    lines = [
        [
            name,
            f"{statistics.median(times[name]):.3f}",
            str(ratio(times[quickest], times[name])),
            f"{counts[name] / 1e9:.1f}",
            f"{peaks[name] / 1e6:.1f}",
        ]
        for name in works
    ]
    return figures, table(["mean activations", "seconds", "peer / this", "GFLOP", "peak MB"], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parser(__doc__, prompts=180, longest=60, repeats=5)
    options.add_argument("--site", choices=("block_output", "block_input"), default="block_output")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    lm = build(given.model, given.device, given.dtype)
    rows = [prompt.ids for prompt in prompts(lm, given.prompts, given.longest)]
    figures, text = compare(lm, rows, given.site, given.repeats)
    tell([text], figures, given.json)


if __name__ == "__main__":
    main()
