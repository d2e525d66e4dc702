"""Which model a study starts from and how it is loaded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from refgeo.config.locations import PACKAGE, local_path, locate
from refgeo.config.section import Section
from refgeo.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelSettings(Section):
    """The model that both arms start from."""

    path: str
    """Local folder, ``package:...`` for the shipped one, or hub id. A PEFT adapter brings the base that its adapter_config.json names."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    adapter: str | None = None
    """PEFT adapter (folder or hub id) applied on top before anything else happens."""
    adapter_revision: str | None = None
    """Commit or tag of a hub adapter."""
    dtype: Dtype = "float32"
    """Floating-point type of the weights; ``auto``: the one they are stored in."""
    device: str = "auto"
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    device_map: Literal["auto"] | dict[str, int | str] | None = None
    """``auto`` spreads the layers over all GPUs, then the CPU; or a device per module, as in Accelerate. Null: all on ``device``."""
    chat_template: str | None = None
    """Jinja chat template, or the path of a file that holds it, for a tokenizer that has none."""
    system_prompt: str | None = None
    """System message put before every conversation, in training, attack, probing and evaluation alike."""
    trust_remote_code: tuple[str, ...] = ()
    """Hub ids or folders of the models whose own Python code may run. Read the code first and fix ``revision`` to the commit you read."""

    @field_validator("trust_remote_code", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """``false`` is what this setting used to be; ``true`` would trust whatever model is named later."""
        if given is True:
            raise ValueError("true would trust every model; name those you trust, such as [org/model]")
        return () if given is False or given is None else given


def parse_model(text: str) -> ModelSettings:
    """The settings behind ``path``, ``path@revision``, ``base+adapter`` or ``base@revision+adapter@revision``.

    A path that exists is taken as it is, whatever signs it holds. Raises ``ConfigError`` when a part is missing.
    """
    parts = [text] if _exists(text) else _split(text)
    if len(parts) > 2:
        raise ConfigError(f"'{text}' names {len(parts) - 1} adapters", expected="path, path@revision, base+adapter")
    found: list[tuple[str, str | None]] = []
    for part in parts:
        name, sign, revision = (part, "", "") if _exists(part) else part.strip().rpartition("@")
        if not sign:
            name, revision = part.strip(), ""
        if not name or (sign and not revision):
            raise ConfigError(f"Cannot read the model '{text}'", expected="path, path@revision, base+adapter or both with revisions")
        if revision and locate(name) is not None:
            raise ConfigError(f"'{name}' is a local folder and has no revision '{revision}'", fix="Leave out the part after @")
        found.append((name, revision or None))
    (path, revision_), (adapter, adapter_revision) = found[0], found[1] if len(found) == 2 else (None, None)
    return ModelSettings(path=path, revision=revision_, adapter=adapter, adapter_revision=adapter_revision)


def _split(text: str) -> list[str]:
    """At the plus sign that stands behind an existing path, else at every one."""
    for place, sign in enumerate(text):
        if sign == "+" and _exists(text[:place]):
            return [text[:place], text[place + 1 :]]
    return text.split("+")


def _exists(text: str) -> bool:
    return (text.startswith(PACKAGE) and "+" not in text) or local_path(text).exists()
