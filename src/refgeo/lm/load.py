"""From a model's settings to a loaded model: weights with their adapters folded in, tokenizer, chat renderer, hooks proven to work."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from refgeo.config.locations import locate
from refgeo.config.model import ModelSettings
from refgeo.errors import ModelError
from refgeo.lm.chat import ChatRenderer
from refgeo.lm.hook_check import self_check
from refgeo.lm.model import NO_LIMIT, LanguageModel
from refgeo.lm.origin import adapter_config, origin, resolved, translated


def load(settings: ModelSettings, checkpoint: Path | None = None, *, check: bool = True) -> LanguageModel:
    """Load a model from a folder or a hub, in evaluation mode, with its adapter, if any, folded into the weights.

    ``checkpoint`` is what training wrote at an anchor: an adapter to put on top, or a full set of weights to use instead. ``check``
    proves that hooks on its residual stream work (``hook_check.self_check``); leave it out for models that only write.
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


def fold(net: Any, adapter: str, revision: str | None, settings: ModelSettings) -> Any:
    """``net`` with a PEFT adapter folded into its weights.

    Raises ``ModelError`` when the adapter is missing, is of a kind that cannot be folded, or was made for a model of other shapes or
    with other layers. Warns when its base has another name but the same shapes, which a copy of that base has as well.
    """
    place = origin(adapter, revision, settings)
    with translated(adapter, "adapter"):
        found = adapter_config(place)
    if found is None:
        raise ModelError(f"'{adapter}' is no PEFT adapter", expected="a folder or hub id with an adapter_config.json")
    base, options = str(found.get("base_model_name_or_path")), {key: value for key, value in place.options.items() if key == "revision"}
    if found.get("peft_type") in {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"}:
        raise ModelError(f"The adapter '{adapter}' is no change of weights ({found['peft_type']})", expected="LoRA or another one that is")
    if locate(base) is None and locate(settings.path) is None and "/" in base and base.lower() != settings.path.lower():
        warnings.warn(f"The adapter '{adapter}' was made for '{base}' and is put on '{settings.path}'; their shapes agree", stacklevel=3)
    with translated(adapter, "adapter"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys", category=UserWarning)
        try:
            return PeftModel.from_pretrained(net, place.path, **options).merge_and_unload()
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError, KeyError, UserWarning) as error:
            raise ModelError(
                f"The adapter '{adapter}' does not fit '{settings.path}': {_telling(str(error))}",
                expected=f"its own base, '{base}' (base_model_name_or_path in its adapter_config.json)",
                fix=f"Set model.path to '{base}', or name an adapter that was trained on '{settings.path}'",
            ) from error


def _telling(message: str) -> str:
    """The line of a long message that names the first tensor in question."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in lines if "size mismatch" in line), lines[0] if lines else "no reason given")[:300]
