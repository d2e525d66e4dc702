"""What can go wrong between a model's name and its weights, and what to do about it: access, network, memory, code, adapters."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from transformers.utils.hub import cached_file

from refgeo.config.locations import OFFLINE, locate
from refgeo.config.model import ModelSettings
from refgeo.config.reading import parse_json
from refgeo.errors import ModelError

UNGATED = {
    "google/gemma-2b": "unsloth/gemma-2b",
    "google/gemma-2b-it": "unsloth/gemma-2b-it",
    "google/gemma-7b": "unsloth/gemma-7b",
    "google/gemma-7b-it": "unsloth/gemma-7b-it",
    "google/gemma-2-2b": "unsloth/gemma-2-2b",
    "google/gemma-2-2b-it": "unsloth/gemma-2-2b-it",
    "google/gemma-2-9b": "unsloth/gemma-2-9b",
    "google/gemma-2-9b-it": "unsloth/gemma-2-9b-it",
    "meta-llama/Llama-2-7b-hf": "unsloth/llama-2-7b",
    "meta-llama/Llama-2-7b-chat-hf": "unsloth/llama-2-7b-chat",
    "meta-llama/Llama-3.1-8B": "unsloth/Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct": "unsloth/Llama-3.1-8B-Instruct",
    "meta-llama/Meta-Llama-3-8B": "unsloth/llama-3-8b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "unsloth/llama-3-8b-Instruct",
    "mistralai/Mistral-7B-v0.1": "unsloth/mistral-7b",
    "mistralai/Mistral-7B-Instruct-v0.1": "unsloth/mistral-7b-instruct-v0.1",
    "mistralai/Mistral-7B-Instruct-v0.2": "unsloth/mistral-7b-instruct-v0.2",
    "mistralai/Mistral-7B-v0.3": "unsloth/mistral-7b-v0.3",
    "mistralai/Mistral-7B-Instruct-v0.3": "unsloth/mistral-7b-instruct-v0.3",
}
"""Copies of models whose owners ask for an agreement, on a hub account that does not. Their licenses are the same."""

_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError, hub.StrictDataclassError)
_LOG_IN = "Accept its conditions on its hub page, then run `hf auth login` or set HF_TOKEN"


class Origin(NamedTuple):
    """Where a model's files are, and how transformers and PEFT are to read them."""

    path: str
    options: dict[str, Any]


def origin(name: str, revision: str | None, settings: ModelSettings) -> Origin:
    """Where ``name`` is: a folder or a hub id. Raises ``ModelError`` when a folder does not exist or holds no model."""
    local = locate(name)
    if local is not None and not local.is_dir():
        problem = f"'{name}' is a file, not a model folder" if local.exists() else f"The model folder '{name}' does not exist"
        raise ModelError(problem, fix="Name a folder or a hub id (in a study: model.path)")
    if local is not None and not any((local / file).is_file() for file in ("config.json", "adapter_config.json")):
        adapters = sorted(str(found.parent) for found in local.glob("arms/*/seed-*/step-*/adapter/adapter_config.json"))
        raise ModelError(
            f"The folder '{name}' {'is a run, which holds models' if adapters else 'holds no model'}",
            expected="config.json in it, or adapter_config.json for an adapter",
            fix=f"Name one of its {len(adapters)} adapters, such as '{adapters[-1]}'" if adapters else "",
        )
    if local is None:
        notice_offline()
    options: dict[str, Any] = {"revision": revision} if local is None and revision else {}
    return Origin(str(local) if local is not None else name, options | {"trust_remote_code": name in settings.trust_remote_code})


@cache
def notice_offline() -> None:
    """Ask the cache alone where no way leads to the hub: its client would try each file six times, half a minute long."""
    hub_at = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    try:
        socket.create_connection((hub_at.hostname or "", hub_at.port or 443), timeout=10).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def resolved(settings: ModelSettings) -> ModelSettings:
    """The same model with base and adapter apart, when ``path`` itself is a PEFT adapter. Raises ``ModelError`` if it names no base."""
    place = origin(settings.path, settings.revision, settings)
    with translated(settings.path):
        if _file(place, "config.json") is not None or (found := adapter_config(place)) is None:
            return settings
    base = found.get("base_model_name_or_path")
    if not isinstance(base, str) or not base or settings.adapter is not None:
        wanted = "a model below the adapter" if base else "base_model_name_or_path in its adapter_config.json"
        raise ModelError(f"'{settings.path}' is an adapter, not a model", expected=wanted, fix="Name both: base+adapter")
    return settings.model_copy(
        update={"path": base, "revision": found.get("revision"), "adapter": settings.path, "adapter_revision": settings.revision}
    )


def adapter_config(place: Origin) -> dict[str, Any] | None:
    """What the adapter's adapter_config.json says; None where there is none."""
    file = _file(place, "adapter_config.json")
    return None if file is None else dict(parse_json(Path(file).read_text(encoding="utf-8")))


def _file(place: Origin, name: str) -> str | None:
    local = Path(place.path) / name
    if Path(place.path).is_dir():
        return str(local) if local.is_file() else None
    found: str | None = cached_file(place.path, name, revision=place.options.get("revision"), _raise_exceptions_for_missing_entries=False)
    return found


@contextmanager
def translated(name: str, what: str = "model") -> Iterator[None]:
    """Errors of the hub, of transformers and of the device as ``ModelError``, with what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free = f" ({torch.cuda.mem_get_info()[0] / 2**30:.1f} GiB are free)" if torch.cuda.is_available() else ""
        raise ModelError(
            f"The {what} '{name}' does not fit into the memory of the GPU{free}",
            fix="Set model.dtype to bfloat16, spread it with model.device_map=auto, free the GPU (run.workers=1 loads each model once), "
            "or name a smaller model",
        ) from error
    # Files of somebody else: whatever a library stumbles over in them.
    except (OSError, *_MALFORMED, SafetensorError, hub.HfHubHTTPError) as error:
        raise _translation(name, what, error) from error


def _translation(name: str, what: str, error: Exception) -> ModelError:
    text, causes = str(error), list(_causes(error))

    def caused(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused(hub.GatedRepoError) or "gated repo" in text:
        other = UNGATED.get(name)
        instead = f". '{other}' is a copy without a gate" if other else ". An ungated model of that size would do, such as one of Qwen's"
        return ModelError(f"The {what} '{name}' is gated: its owner asks for an agreement first", fix=f"{_LOG_IN}{instead}")
    if caused(hub.RevisionNotFoundError):
        return ModelError(f"The {what} '{name}' has no such revision", fix="Check model.revision: a commit, tag or branch on its hub page")
    if caused(hub.RepositoryNotFoundError) or "not a valid model identifier" in text:
        return ModelError(
            f"The {what} '{name}' is neither a folder here nor a model on the hub",
            fix="Check the spelling; if it is private, run `hf auth login` or set HF_TOKEN",
        )
    if caused(hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, ConnectionError) or "couldn't connect to" in text:
        return ModelError(
            f"The {what} '{name}' is neither a folder here nor in the cache of this machine, and the hub cannot be reached",
            fix=f"{OFFLINE}. For this model alone: `hf download {name}` there, then copy the cache (HF_HOME) or name its folder",
        )
    if "trust_remote_code" in text:
        return ModelError(
            f"The {what} '{name}' comes with Python code of its own, which is not run unless you trust it by name",
            fix=f"Read the code on its hub page; then set model.trust_remote_code=[{name}] and model.revision to the commit that you read",
        )
    return ModelError(f"Cannot load {what} '{name}': {text}", fix="Check model.path and model.revision")


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
