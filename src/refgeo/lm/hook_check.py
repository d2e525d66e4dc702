"""The proof, at load time, that hooks on a model's residual stream do what they say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refgeo.errors import ModelError
from refgeo.lm.model import LanguageModel
from refgeo.lm.precise import precise
from refgeo.lm.residual import Edit, Edited, ablate, editing, last_logits


@torch.no_grad()
def self_check(lm: LanguageModel) -> None:
    """Prove that the hooks work on this model: a zero direction changes no bit, a unit one changes something, twice is once.

    Also that what leaves a block enters the next one, so that the blocks really carry one residual stream, and that ablation
    everywhere leaves nothing of the direction in it. Raises ``ModelError`` naming the place that fails.

    Computed in float32 whatever the weights are stored in: in half precision, rounding alone moves logits by more than any fixed
    tolerance, and turns a mixture's router.
    """
    with precise(lm.net):
        _check(lm)


def _check(lm: LanguageModel) -> None:
    ids = [list(lm.chat.prompt("hello").ids)]
    plain, streams = _streams(lm, ids)
    tolerance = 1e-4 * max(1.0, float(plain.abs().max()))
    for layer in range(1, lm.depth):
        if not torch.equal(streams["output", layer - 1], streams["input", layer]):
            raise ModelError(
                f"What leaves block {layer - 1} of '{lm.name}' is not what enters block {layer}", expected="one residual stream"
            )
    direction = torch.randn(1, lm.width, generator=torch.Generator().manual_seed(0)).to(lm.device)
    direction = direction / direction.norm()
    for layer in [*range(lm.depth), None]:
        place = f"layer {layer}" if layer is not None else "everywhere"
        with ablate(lm, torch.zeros_like(direction), layer):
            if not torch.equal(last_logits(lm, ids), plain):
                raise ModelError(f"Ablating a zero direction at {place} of '{lm.name}' changed the logits", expected="bit-equal logits")
        with ablate(lm, direction, layer):
            once, left = _streams(lm, ids)
            with ablate(lm, direction, layer):
                twice = last_logits(lm, ids)
        if torch.equal(once, plain):
            raise ModelError(f"Ablating a direction at {place} of '{lm.name}' changed nothing", expected="changed logits")
        if not torch.allclose(once.float(), twice.float(), atol=tolerance):
            raise ModelError(f"Ablating a direction twice at {place} of '{lm.name}' differs from once", expected="a projection")
        for at in range(lm.depth) if layer is None else (layer,):
            rest, size = (left["output", at].float() @ direction[0].float()).abs().max(), left["output", at].float().norm(dim=-1).max()
            if rest > tolerance * max(1.0, float(size)):
                raise ModelError(
                    f"Ablating a direction at {place} of '{lm.name}' leaves some of it in block {at}'s output", expected="none"
                )


def _streams(lm: LanguageModel, ids: Sequence[Sequence[int]]) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
    """Next-token logits, and what enters and leaves every block."""
    seen: dict[tuple[str, int], Tensor] = {}

    def keep(where: str, layer: int) -> Edit:
        def edit(hidden: Tensor) -> Tensor:
            seen[where, layer] = hidden
            return hidden

        return edit

    inputs: list[Edited] = [(block, "input", keep("input", layer)) for layer, block in enumerate(lm.blocks)]
    outputs: list[Edited] = [(block, "output", keep("output", layer)) for layer, block in enumerate(lm.blocks)]
    with editing(inputs + outputs):
        logits = last_logits(lm, ids)
    missing = [place for place in [(where, layer) for layer in range(lm.depth) for where in ("input", "output")] if place not in seen]
    if missing:
        raise ModelError(
            f"A hook on the {missing[0][0]} of block {missing[0][1]} of '{lm.name}' never ran", expected="every block to be called"
        )
    return logits, seen
