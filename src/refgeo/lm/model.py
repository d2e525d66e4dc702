"""A causal language model as this project needs it: weights, tokenizer, chat renderer and the list of its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from refgeo.errors import ModelError
from refgeo.lm.chat import ChatRenderer

NO_LIMIT = 1 << 30
"""Context of a model whose configuration names none."""


@dataclass(eq=False)
class LanguageModel:
    """One loaded model. ``net`` is a transformers model or a PEFT model around one."""

    net: Any
    tokenizer: PreTrainedTokenizerBase
    chat: ChatRenderer
    name: str

    @property
    def device(self) -> torch.device:
        """Where the inputs go: to the embedding, or to where Accelerate runs it when its weights are kept elsewhere."""
        embedding = self.core.get_input_embeddings()
        device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
        return torch.device(embedding.weight.device if device is None else device)

    @cached_property
    def core(self) -> Any:
        """The transformers model itself, inside whatever adapter wraps it."""
        return self.net.get_base_model() if isinstance(self.net, PeftModel) else self.net

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks in order, found by structure: the module list as long as the configuration says."""
        depth = self.core.config.get_text_config().num_hidden_layers
        found = [module for module in self.core.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
        if len(found) != 1:
            raise ModelError(
                f"'{self.name}' has {len(found)} module lists of length {depth}", expected="exactly one list of decoder blocks"
            )
        return found[0]

    @property
    def depth(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Size of the residual stream."""
        return int(self.core.config.get_text_config().hidden_size)

    @property
    def context(self) -> int:
        """Longest sequence the model takes, in tokens."""
        return int(getattr(self.core.config.get_text_config(), "max_position_embeddings", NO_LIMIT))

    @property
    def pad_id(self) -> int:
        """Token for padding; always masked."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.eos_id)

    @property
    def eos_id(self) -> int:
        """The tokenizer's end of sequence, or where it has none the least token of ``stop_ids``, which ends turns as well."""
        named = self.tokenizer.eos_token_id
        return int(named) if named is not None else min(self.stop_ids)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every token that ends a turn: the tokenizer's, those of the generation configuration, and what the template writes after a reply.

        Raises ``ModelError`` when there is none.
        """
        named: Any = getattr(getattr(self.core, "generation_config", None), "eos_token_id", None)
        listed = named if isinstance(named, list) else [named]
        found = {self.tokenizer.eos_token_id, *listed, self.chat.end_of_turn} - {None}
        if not found:
            raise ModelError(
                f"Nothing says which token ends a reply of '{self.name}'",
                expected="an eos_token in the tokenizer or a special token after the reply in the chat template",
                fix="Set model.chat_template to one that ends a reply with a special token",
            )
        return frozenset(int(token) for token in found)


@contextmanager
def evaluating(lm: LanguageModel) -> Iterator[None]:
    """Evaluation mode (no dropout) inside, the former mode after."""
    before = lm.net.training
    lm.net.eval()
    try:
        yield
    finally:
        lm.net.train(before)
