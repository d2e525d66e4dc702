"""Folding a LoRA adapter into the weights for a while, and taking it out again without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from refgeo.lm.model import LanguageModel


@contextmanager
def merged(lm: LanguageModel) -> Iterator[None]:
    """Inside, forwards run on merged weights; after, the base weights are what they were, bit for bit.

    Un-merging by subtraction would leave rounding errors that add up over training and break exact resume, so the original
    weights are kept and put back. Costs one copy of the adapted layers. Does nothing for a model without an adapter.
    """
    layers: list[Any] = (
        [module for module in lm.net.modules() if isinstance(module, BaseTunerLayer)] if isinstance(lm.net, PeftModel) else []
    )
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.merge()
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, kept, strict=True):
                if layer.merged:
                    layer.unmerge()
                layer.get_base_layer().weight.copy_(weight)
