"""The models behind the judges: loaded when first needed, kept for the next stage, and named so that a cache can trust the name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from refgeo.config.judge import OneJudgeSettings
from refgeo.config.locations import locate
from refgeo.config.model import ModelSettings
from refgeo.errors import ModelError
from refgeo.lm.load import load, load_renderer
from refgeo.lm.model import LanguageModel
from refgeo.lm.origin import adapter_config, origin, translated

OWN = "What is said of model.* holds for the judge's own settings here: judge.model, judge.refusal_model or judge.score_model"

# A classifier is given raw text, so its chat template is never used; the loader wants one.
_UNUSED = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def judge_model(settings: ModelSettings) -> LanguageModel:
    """The loaded model; three at most are kept (harm, refusal, score), since the stages of a run ask for the same ones again."""
    return _loaded(settings.model_dump_json())


@lru_cache(maxsize=3)
def _loaded(settings: str) -> LanguageModel:
    try:
        return load(ModelSettings.model_validate_json(settings), check=False)
    except ModelError as error:
        raise ModelError(f"A judge's model cannot be loaded. {error}", fix=OWN) from error


def check_models(settings: OneJudgeSettings, section: str = "judge") -> None:
    """Whether each local model of a judge can be had: its tokenizer, sizes and adapter are read, its weights are not.

    Raises ``ModelError`` naming the setting (``judge.score_model``) for one that is gated, missing, or out of reach without a network.
    """
    for name, model in settings.models.items():
        try:
            load_renderer(classifier_settings(model))
            if model.adapter is not None:
                with translated(model.adapter, "adapter"):
                    adapter_config(origin(model.adapter, model.adapter_revision, model))
        except ModelError as error:
            raise ModelError(
                f"The judge's model ({section}.{name}) cannot be used. {error}",
                fix=f"Set {section}.{name} to another model, or study without it: judge={{kind: rules}}",
            ) from error


def classifier_settings(settings: ModelSettings) -> ModelSettings:
    """The same model for raw text: a missing chat template is no error."""
    return settings if settings.chat_template is not None else settings.model_copy(update={"chat_template": _UNUSED})


def model_identity(settings: ModelSettings) -> str:
    """Which weights: hub id and revision, or a folder and the size and time of its files."""
    parts = [settings.model_dump_json(exclude={"device", "device_map"})]
    for path in (settings.path, settings.adapter):
        folder = locate(path) if path is not None else None
        if folder is not None and folder.is_dir():
            files = sorted(file for file in folder.iterdir() if file.is_file())
            parts += [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return digest(parts)


def digest(parts: Sequence[str]) -> str:
    """One hash of several texts, whatever is in them."""
    joined = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        joined.update(len(data).to_bytes(8, "big") + data)
    return joined.hexdigest()


def clip(lm: LanguageModel, text: str, tokens: int) -> str:
    """The longest beginning of a text that has at most ``tokens`` tokens, as it stands."""
    encoded = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]
