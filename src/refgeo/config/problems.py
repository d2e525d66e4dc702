"""Everything that is wrong with a configuration, in one message that names the full key and the nearest valid one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, cast, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from refgeo.config.schema import Study
from refgeo.config.section import Section
from refgeo.errors import ConfigError, nearest

_SHOWN = 300


def config_error(error: ValidationError, data: Mapping[str, Any], origin: str) -> ConfigError:
    """All problems that pydantic found in ``data``, as one ``ConfigError``."""
    found: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_dotted(detail, data), []).append(detail)
    # A value that may be a number or a section fails as both; what is wrong inside the section says more.
    telling = [key for key in found if not any(other.startswith((f"{key}.", f"{key}[")) for other in found)]
    lines = [_line(key, found[key]) for key in telling]
    if len(lines) == 1:
        return ConfigError(f"In {origin}: {lines[0]}")
    return ConfigError(f"In {origin} are {len(lines)} problems:" + "".join(f"\n  - {line}" for line in lines))


def keys(section: type[Section] = Study, prefix: str = "") -> list[str]:
    """The dotted name of every setting."""
    names = []
    for name, field in section.model_fields.items():
        names.append(prefix + name)
        inner = section_of(field.annotation)
        if inner is not None and get_origin(field.annotation) is not dict:  # whose keys are the user's
            names += keys(inner, f"{prefix}{name}.")
    return names


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one, optional or not."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (section_of(part) for part in get_args(annotation))
    return next((section for section in found if section is not None), None)


def _dotted(detail: ErrorDetails, data: Any) -> str:
    """The key as the user wrote it: pydantic's location without the names of the alternatives that it tried."""
    parts: list[str] = []
    location = detail["loc"]
    for place, part in enumerate(location):
        absent = detail["type"] == "missing" and place == len(location) - 1  # the place itself is not in the data
        if isinstance(data, Mapping) and (part in data or absent):
            parts.append(str(part))
            data = data.get(part)
        elif isinstance(data, Sequence) and not isinstance(data, str) and isinstance(part, int):
            parts[-1:] = [f"{parts[-1] if parts else ''}[{part}]"]
            data = data[part] if part < len(data) else None
    return ".".join(parts)


def _line(key: str, details: list[ErrorDetails]) -> str:
    first = details[0]
    if first["type"] == "extra_forbidden":
        return f"there is no setting '{key}'. {_suggestion(key)}"
    if first["type"] == "missing" and key.endswith("]"):
        return f"'{key}' is missing; the list is too short"
    if first["type"] == "missing":
        return f"'{key}' is missing; it has no default"
    if first["type"] == "value_error":
        return f"{key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}"
    if any(part == "[key]" for part in first["loc"]):
        spaced = "; YAML wants a space after the colon" if ":" in key.rpartition(".")[2] else ""
        return f"'{key}' is not a valid name; expected {_expected(first)}{spaced}"
    wanted = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
    return f"'{key}' is {_shown(first['input'])}; expected {wanted}"


def _shown(value: Any) -> str:
    """A value as it was given, its beginning where it is long."""
    try:
        text = repr(value[:_SHOWN] if isinstance(value, str) else value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "a section of settings"
    if detail["type"] == "too_long":
        return f"a list of at most {detail['ctx']['max_length']}"
    message = detail["msg"] if detail["type"] == "literal_error" else detail["msg"].split(", ")[0]
    message = message.removeprefix("Input should be ")
    if message.startswith(("less", "greater")):
        return f"a number {message}"
    noun = message.removeprefix("a valid ").replace("tuple", "list")
    return noun if noun == message else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _suggestion(key: str) -> str:
    """The setting meant: one spelled nearly so in the same section, else one of that name elsewhere, else the nearest or all."""
    head, _, leaf = key.rpartition(".")
    section: type[Section] = Study
    for part in head.split(".") if head else ():
        field = section.model_fields.get(part)
        section = cast("type[Section]", section_of(field.annotation) if field is not None else None) or section
    elsewhere = [name for name in keys() if name.rpartition(".")[2] == leaf]
    if elsewhere and not get_close_matches(leaf, section.model_fields, n=1, cutoff=0.8):
        return f"Did you mean {' or '.join(repr(name) for name in elsewhere[:3])}?"
    return nearest(key, [f"{head}.{name}" if head else name for name in section.model_fields])
