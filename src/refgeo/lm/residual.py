"""The residual stream: read it, remove directions from it, add vectors to it. Context managers only; weights are never edited.

Every manager registers its hooks on entry and removes them on exit, whatever happens inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from refgeo.errors import ModelError
from refgeo.lm.batch import left_pad, places_of, rows_per_pass
from refgeo.lm.model import LanguageModel

Site = Literal["block_output", "block_input"]
Edit = Callable[[Tensor], Tensor]
Edited = tuple[nn.Module, Literal["input", "output"], Edit]


@contextmanager
def editing(edits: Sequence[Edited]) -> Iterator[None]:
    """Apply each edit to the hidden states entering or leaving its module, for the time of the context."""
    handles = []
    try:
        for module, where, edit in edits:
            if where == "input":
                handles.append(module.register_forward_pre_hook(_input_hook(edit), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_output_hook(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input_hook(edit: Edit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    return hook


def _output_hook(edit: Edit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return hook


def projector(basis: Float[Tensor, "rank d_model"], strength: float = 1.0) -> Edit:
    """``h - strength * (h U^T) U`` for orthonormal rows U (docs/cause.md). A zero basis changes nothing, bit for bit."""

    def edit(hidden: Tensor) -> Tensor:
        rows = basis.to(hidden)
        return hidden - strength * ((hidden @ rows.T) @ rows)

    return edit


@contextmanager
def ablate(
    lm: LanguageModel,
    basis: Float[Tensor, "rank d_model"],
    layer: int | None,
    strength: float = 1.0,
    site: Site = "block_output",
) -> Iterator[None]:
    """Remove the span of orthonormal rows ``basis``: at one layer's ``site``, or everywhere when ``layer`` is None.

    Everywhere means every block's input and what its attention and feed-forward parts write (2406.11717, section 2.4).
    """
    edit = projector(basis, strength)
    with editing([(block_at(lm, layer), side(site), edit)] if layer is not None else everywhere(lm, edit)):
        yield


def everywhere(lm: LanguageModel, edit: Edit) -> list[Edited]:
    """``edit`` at every block's input and at what its attention and feed-forward parts write."""
    edits: list[Edited] = [(block, "input", edit) for block in lm.blocks]
    return edits + [(part, "output", edit) for block in lm.blocks for part in writers(block)]


@contextmanager
def add(lm: LanguageModel, vector: Float[Tensor, " d_model"], layer: int, site: Site = "block_output") -> Iterator[None]:
    """Add ``vector`` to every position of one layer's ``site`` (activation addition)."""
    with editing([(block_at(lm, layer), side(site), lambda hidden: hidden + vector.to(hidden))]):
        yield


@torch.no_grad()
def read(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    positions: Sequence[int],
    site: Site = "block_output",
    batch: int = 128,
) -> Float[Tensor, "prompt pos layer d_model"]:
    """Residual stream at ``positions`` counted from the end of each prompt, for all layers, in float32 on the CPU; without the head.

    Raises ``ModelError`` when there are no prompts, or a position lies before the first token of one.
    """
    if not prompts:
        raise ModelError("There are no prompts to read", expected="at least one")
    shortest = min(len(row) for row in prompts)
    if min(positions) < -shortest or max(positions) >= 0:
        raise ModelError(
            f"Positions {list(positions)} do not exist in a prompt of {shortest} tokens", expected="negative positions inside it"
        )
    result = torch.empty(len(prompts), len(positions), lm.depth, lm.width)
    index = torch.tensor(positions)
    for chosen in _similar(prompts, batch, lm.device):
        rows = torch.tensor(chosen)

        def keep(layer: int, rows: Tensor = rows) -> Edit:
            def edit(hidden: Tensor) -> Tensor:
                result[rows, :, layer] = hidden[:, index.to(hidden.device) + hidden.shape[1]].to("cpu", torch.float32)
                return hidden

            return edit

        ids, mask = left_pad([prompts[row] for row in chosen], lm.pad_id, lm.device)
        with editing([(block, side(site), keep(layer)) for layer, block in enumerate(lm.blocks)]):
            lm.core.base_model(input_ids=ids, attention_mask=mask, position_ids=places_of(mask), use_cache=False)
    return result


def _similar(prompts: Sequence[Sequence[int]], batch: int, device: torch.device) -> list[list[int]]:
    """Indices of the prompts in batches of similar length, so that hardly anything is padded, of at most ``batch`` rows."""
    batches: list[list[int]] = []
    for row in sorted(range(len(prompts)), key=lambda row: len(prompts[row])):
        if batches and len(batches[-1]) < rows_per_pass(device, len(prompts[row]), batch):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def last_logits(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompt vocab"]:
    """Next-token logits after each prompt, one batch; the head runs at the last position only."""
    return next_logits(lm, *left_pad(prompts, lm.pad_id, lm.device))


def next_logits(lm: LanguageModel, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch vocab"]:
    """Next-token logits of a left-padded batch."""
    out = lm.core(input_ids=ids, attention_mask=mask, position_ids=places_of(mask), use_cache=False, logits_to_keep=1)
    logits: Tensor = out.logits[:, -1]
    return logits


def writers(block: nn.Module) -> list[nn.Module]:
    """The two modules whose outputs a block adds to the residual stream, found by name: attention's and the feed-forward part's.

    Where a norm stands between such a part and the stream (Gemma 2, OLMo 2), it is the norm. Raises ``ModelError`` unless there is
    one of each.
    """
    named = dict(block.named_children())
    if {"post_attention_layernorm", "post_feedforward_layernorm"} <= named.keys():
        return [named["post_attention_layernorm"], named["post_feedforward_layernorm"]]
    # Norms share the names; only a part with a weight matrix writes something of its own.
    parts = {name: child for name, child in named.items() if any(weight.ndim > 1 for weight in child.parameters())}
    attention = [child for name, child in parts.items() if "attn" in name or "attention" in name]
    feed = [child for name, child in parts.items() if "mlp" in name or "feed_forward" in name or "moe" in name]
    feed = feed or [child for name, child in parts.items() if name == "fc2"]
    if len(attention) != 1 or len(feed) != 1:
        raise ModelError(f"Cannot tell the attention and feed-forward parts of a block with children {list(named)}", expected="one of each")
    return [attention[0], feed[0]]


def side(site: Site) -> Literal["input", "output"]:
    """Which side of a block a site is on."""
    return "output" if site == "block_output" else "input"


def block_at(lm: LanguageModel, layer: int) -> nn.Module:
    """One decoder block. Raises ``ModelError`` when the layer does not exist."""
    if not 0 <= layer < lm.depth:
        raise ModelError(f"Layer {layer} does not exist in '{lm.name}'", expected=f"0 to {lm.depth - 1}")
    return lm.blocks[layer]
