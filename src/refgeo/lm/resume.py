"""Forward passes that go on from a cached residual stream: what an intervention cannot change is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from refgeo.errors import ModelError
from refgeo.lm.batch import left_pad, places_of
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site, editing, next_logits


@dataclass(frozen=True)
class Trace:
    """The residual stream of one batch: ``streams[0]`` enters the first block, ``streams[l + 1]`` leaves block ``l``.

    ``extras`` is what each block returns beside its hidden states, ``logits`` the next-token logits.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    streams: dict[int, Float[Tensor, "batch pos d_model"]]
    extras: list[tuple[Any, ...] | None]
    logits: Float[Tensor, "batch vocab"]

    def rows(self, start: int, stop: int) -> Trace:
        """Some rows of the batch, without copying."""
        streams = {index: stream[start:stop] for index, stream in self.streams.items()}
        return Trace(self.ids[start:stop], self.mask[start:stop], streams, self.extras, self.logits[start:stop])


def stream_index(layer: int, site: Site) -> int:
    """Which entry of ``Trace.streams`` is read and edited at ``layer``."""
    return layer + (site == "block_output")


@torch.no_grad()
def trace(lm: LanguageModel, prompts: Sequence[Sequence[int]], keep: Collection[int] | None = None) -> Trace:
    """One forward pass that keeps the residual stream (of ``keep`` only these entries), so that ``resuming`` can start from it."""
    ids, mask = left_pad(prompts, lm.pad_id, lm.device)
    streams: dict[int, Tensor] = {}
    extras: list[tuple[Any, ...] | None] = []

    def enter(hidden: Tensor) -> Tensor:
        if keep is None or 0 in keep:
            streams[0] = hidden
        return hidden

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        extras.append(tuple(output[1:]) if isinstance(output, tuple) else None)
        if keep is None or len(extras) in keep:
            streams[len(extras)] = output[0] if isinstance(output, tuple) else output

    handles = [block.register_forward_hook(leave) for block in lm.blocks]
    try:
        with editing([(lm.blocks[0], "input", enter)]):
            logits = next_logits(lm, ids, mask)
    finally:
        for handle in handles:
            handle.remove()
    if len(extras) != lm.depth:
        raise ModelError(f"A forward pass of '{lm.name}' ran {len(extras)} blocks", expected=f"each of its {lm.depth} blocks once")
    return Trace(ids, mask, streams, extras, logits)


@contextmanager
def resuming(lm: LanguageModel, traced: Trace, start: int, repeats: int = 1) -> Iterator[None]:
    """Inside, forward passes skip the blocks before ``start`` and go on from the traced stream, repeated ``repeats`` times.

    What an intervention at a later place cannot change is not computed again. Hooks on block ``start - 1`` still fire.
    The caller passes the traced ids and mask, repeated as often.
    """
    before = [block.__dict__.get("forward") for block in lm.blocks[:start]]
    try:
        for layer in range(start):
            stream = traced.streams[start].repeat(repeats, 1, 1) if layer == start - 1 else None
            lm.blocks[layer].__dict__["forward"] = _stand_in(stream, traced.extras[layer])
        yield
    finally:
        for layer, forward in enumerate(before):
            if forward is None:
                lm.blocks[layer].__dict__.pop("forward", None)
            else:
                lm.blocks[layer].__dict__["forward"] = forward


@contextmanager
def last_only(lm: LanguageModel, keep: int) -> Iterator[None]:
    """Inside, the last block computes its queries, its feed-forward part and its output for the last ``keep`` tokens of a row only.

    Nothing after it but the head reads the others. Logits at the last ``keep`` tokens stay as they are wherever ``narrowable`` says so.
    """
    block = lm.blocks[-1]
    lengths: dict[nn.Module, int] = {}

    def choose(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        lengths.pop(module, None)
        if not args or not isinstance(args[0], Tensor) or args[0].ndim != 3:
            return None
        lengths[module] = args[0].shape[1]
        return (args[0][:, -keep:].contiguous(), *args[1:]), kwargs

    def restore(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if module not in lengths:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = pad(hidden, (0, 0, lengths[module] - hidden.shape[1], 0))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handles = []
    try:
        for module in _token_wise(block):
            handles.append(module.register_forward_pre_hook(choose, with_kwargs=True))
            handles.append(module.register_forward_hook(restore))
        with editing([(block, "output", lambda hidden: hidden[:, -keep:])]):
            yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def narrowable(lm: LanguageModel, prompt: Sequence[int]) -> bool:
    """Whether ``last_only`` leaves this model's logits at the last two tokens as they are, with and without padding."""
    if len(prompt) < 3:
        return False
    ids, mask = left_pad([prompt, prompt[1:]], lm.pad_id, lm.device)
    plain = kept_logits(lm, ids, mask, 2)
    with last_only(lm, 2):
        found = kept_logits(lm, ids, mask, 2)
    return found.shape == plain.shape and torch.allclose(found.float(), plain.float(), atol=_tolerance(plain))


def kept_logits(
    lm: LanguageModel, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"] | None, keep: int
) -> Float[Tensor, "batch kept vocab"]:
    """Logits after the last ``keep`` tokens of a left-padded batch; no mask means that nothing is padded."""
    given = {} if mask is None else {"attention_mask": mask, "position_ids": places_of(mask)}
    logits: Tensor = lm.core(input_ids=ids, use_cache=False, logits_to_keep=keep, **given).logits
    return logits


def _token_wise(block: nn.Module) -> list[nn.Module]:
    """Query and output projections, where they stand alone, and the feed-forward part: what mixes no positions and leaves keys alone."""
    found: list[nn.Module] = []
    for child in block.children():
        if hasattr(child, "layer_idx"):
            found += [part for name, part in child.named_children() if name in ("q_proj", "o_proj", "out_proj", "dense")]
        elif any(weight.ndim > 1 for weight in child.parameters()):
            found.append(child)
    return found


def _tolerance(logits: Tensor) -> float:
    return 1e-4 if logits.dtype == torch.float32 else 5e-2


def _stand_in(stream: Tensor | None, extras: tuple[Any, ...] | None) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        hidden = given if stream is None else stream
        return hidden if extras is None else (hidden, *extras)

    return forward


@torch.no_grad()
def resumable(lm: LanguageModel, prompt: Sequence[int]) -> bool:
    """Whether ``resuming`` from every block gives this model's own logits again; if not, whole forward passes are needed."""
    traced = trace(lm, [prompt])
    tolerance = _tolerance(traced.logits)
    for start in range(1, lm.depth + 1):
        with resuming(lm, traced, start):
            again = next_logits(lm, traced.ids, traced.mask)
        if not torch.allclose(again.float(), traced.logits.float(), atol=tolerance):
            return False
    return True
