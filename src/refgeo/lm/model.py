"""A causal language model as this project needs it: weights, tokenizer, chat renderer and the list of its blocks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from refgeo.config.locations import locate
from refgeo.config.model import ModelSettings
from refgeo.errors import ModelError
from refgeo.lm.chat import ChatRenderer
from refgeo.lm.loading import fold, origin, resolved, translated

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


def load(settings: ModelSettings, checkpoint: Path | None = None, *, check: bool = True) -> LanguageModel:
    """Load a model from a folder or a hub, in evaluation mode, with its adapter, if any, folded into the weights.

    ``checkpoint`` is what training wrote at an anchor: an adapter to put on top, or a full set of weights to use instead. ``check``
    proves that hooks on its residual stream work (``residual.self_check``); leave it out for models that only write.
    Raises ``ModelError`` when path, chat template, adapter, memory or hooks are unusable.
    """
    settings = resolved(settings)
    chat, _ = load_renderer(settings)
    place = origin(settings.path, settings.revision, settings)
    whole = checkpoint is not None and not (checkpoint / "adapter_config.json").exists()
    adapters = [] if whole else [(settings.adapter, settings.adapter_revision), (str(checkpoint) if checkpoint is not None else None, None)]
    mapped: dict[str, Any] = {} if settings.device_map is None else {"device_map": settings.device_map}
    with translated(settings.path):
        dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
        net: Any = AutoModelForCausalLM.from_pretrained(str(checkpoint) if whole else place.path, dtype=dtype, **place.options, **mapped)
        for adapter, revision in adapters:
            if adapter is not None:
                with quiet_peft():
                    net = fold(net, adapter, revision, settings)
        if settings.device_map is None:
            net.to(resolve_device(settings.device))
    lm = LanguageModel(net.eval().requires_grad_(False), chat.tokenizer, chat, settings.path)
    if check:
        from refgeo.lm.residual import self_check  # it needs the class above

        self_check(lm)
    return lm


def load_renderer(settings: ModelSettings) -> tuple[ChatRenderer, int]:
    """The chat renderer of a model and its context in tokens, without loading the weights. Raises ``ModelError``."""
    settings = resolved(settings)
    place = origin(settings.path, settings.revision, settings)
    with translated(settings.path):
        tokenizer = AutoTokenizer.from_pretrained(place.path, **place.options)
        config = AutoConfig.from_pretrained(place.path, **place.options).get_text_config()
    if settings.chat_template is not None:
        template = locate(settings.chat_template) if "{" not in settings.chat_template else None
        with translated(settings.chat_template, "chat template"):
            tokenizer.chat_template = template.read_text(encoding="utf-8") if template is not None else settings.chat_template
    return ChatRenderer(tokenizer, settings.system_prompt), int(getattr(config, "max_position_embeddings", NO_LIMIT))


def resolve_device(name: str) -> torch.device:
    """``auto`` becomes the GPU when there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence one warning that no user can act on: PEFT 0.21 asks transformers 5 for a property under its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated", category=FutureWarning)
        yield


@contextmanager
def evaluating(lm: LanguageModel) -> Iterator[None]:
    """Evaluation mode (no dropout) inside, the former mode after."""
    before = lm.net.training
    lm.net.eval()
    try:
        yield
    finally:
        lm.net.train(before)
