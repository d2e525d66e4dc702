"""Reading a study: a preset or a YAML file, then overrides; and writing one back, with every setting explained."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from refgeo.config.data import DataSettings, Source
from refgeo.config.locations import local_path
from refgeo.config.problems import config_error, section_of
from refgeo.config.reading import read_yaml
from refgeo.config.schema import Study
from refgeo.config.section import Section
from refgeo.errors import ConfigError, nearest

_WIDTH = 110
_reading: list[str] = []
"""Studies whose ``extends`` is being followed."""


def presets() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in files("refgeo").joinpath("presets").iterdir() if entry.name.endswith(".yaml")
    )


def load_study(name_or_path: str, overrides: Sequence[str] = ()) -> Study:
    """The study behind a preset's name or a YAML file, with ``a.b=value`` overrides (values are YAML) applied.

    Raises ``ConfigError`` that names every unknown, missing or mistyped setting at once.
    """
    data, origin = _read(name_or_path)
    origin += " with the overrides" if overrides else ""
    _complete_sources(data)
    for override in overrides:
        _apply(data, override)
    _complete_sources(data)
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        raise config_error(error, data, origin) from None


def dump_study(study: Study) -> str:
    """The resolved study as YAML that ``load_study`` reads back to an equal one."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def commented_yaml(study: Study) -> str:
    """The resolved study as YAML with the description of every setting above it."""
    return "\n".join(_commented(study, "")) + "\n"


def _commented(section: Section, indent: str) -> list[str]:
    lines: list[str] = []
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        inner = section_of(field.annotation)
        description = field.description or (inner.__doc__ if inner is not None else "") or ""
        start = f"{indent}# "
        lines += textwrap.wrap(" ".join(description.split()), _WIDTH, initial_indent=start, subsequent_indent=start)
        if isinstance(value, Section):
            lines += [f"{indent}{name}:", *_commented(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {_one_line(values[name])}")
        if not indent:
            lines.append("")
    return lines


def _one_line(value: Any) -> str:
    """A value as YAML, for people: characters that cannot be seen stand as escapes."""
    for readable in (True, False):
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=readable, width=2**31)
        text = text.removesuffix("...\n").strip()
        if text.isprintable():
            break
    return text


def _read(name_or_path: str) -> tuple[dict[str, Any], str]:
    path = local_path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        origin = f"'{name_or_path}'"
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            meant = f"Did you mean the preset '{path.stem}'?" if path.stem in presets() else ""
            raise ConfigError(f"There is no study file {origin}", fix=meant or f"Check the path, or name a preset: {_names()}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"Cannot read the study file {origin}: {error}", fix=f"Check the path, or name a preset: {_names()}"
            ) from error
    elif name_or_path in presets():
        origin = f"preset '{name_or_path}'"
        text = files("refgeo").joinpath("presets", f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        what = "file, folder or preset" if "/" in name_or_path else "preset"
        known = "a preset, a YAML file or the folder of a run"
        raise ConfigError(f"There is no {what} '{name_or_path}'", expected=known, fix=nearest(name_or_path, presets()))
    data = read_yaml(text, origin)
    if not isinstance(data, dict):
        raise ConfigError(f"{origin} holds no settings", expected="a YAML mapping such as 'name: my-study'")
    return _extended(data, origin, path.parent), origin


def _extended(data: dict[str, Any], origin: str, folder: Path) -> dict[str, Any]:
    """``extends: pocket`` (a preset, or a file beside this one): its settings, with those given here in their place, section by section."""
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{origin} extends {base!r}", expected="the name of one preset or study file")
    beside = local_path(str(folder / base))
    name = str(beside.resolve()) if beside.suffix in (".yaml", ".yml") else base
    if name in _reading:
        raise ConfigError(f"{origin} extends '{base}', which extends {origin} again", fix="Remove one of the two 'extends'")
    _reading.append(name)
    try:
        under, _ = _read(name)
    finally:
        _reading.pop()
    _complete_sources(under)
    _complete_sources(data)
    return _merged(under, data)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key; anything else is replaced. A data set is taken over whole: its parts belong together."""
    merged = dict(under)
    for key, value in over.items():
        before = under.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) and "path" not in value else value
    return merged


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, given = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"Cannot read the override '{override}'", expected="key=value, such as train.seeds=[1,2,3]")
    inside = data
    for depth, part in enumerate(parts[:-1], start=1):
        if inside.get(part) is None:  # a section that the file leaves out or switches off
            inside[part] = {}
        if part == "attack" and isinstance(inside[part], str):  # the name of an attack preset stands for all its values
            inside[part] = {"preset": inside[part]}
        inside = inside[part]
        if not isinstance(inside, dict):
            raise ConfigError(
                f"The override '{override}' looks inside '{'.'.join(parts[:depth])}', which is {inside!r}", expected="a section"
            )
    inside[parts[-1]] = read_yaml(given, f"The override '{override}'")


def _complete_sources(data: dict[str, Any]) -> None:
    """``chat: file.jsonl`` is short for ``chat: {path: file.jsonl}``."""
    sets = data.get("data")
    if not isinstance(sets, dict):
        return
    for name, field in DataSettings.model_fields.items():
        if section_of(field.annotation) is Source and isinstance(sets.get(name), str):
            sets[name] = {"path": sets[name]}


def _names() -> str:
    return ", ".join(presets()) or "(none)"
