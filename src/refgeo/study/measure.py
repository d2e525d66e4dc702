"""``refgeo measure``: the study that measures existing checkpoints, from their names and the settings of another study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from refgeo.config.load import load_study, presets
from refgeo.config.locations import local_path, locate
from refgeo.config.model import ModelSettings, parse_model
from refgeo.config.schema import Study
from refgeo.errors import ConfigError, StoreError
from refgeo.study.reading import stage_json
from refgeo.study.run import Outcome, run_study
from refgeo.study.store import CONFIG, MANIFEST
from refgeo.study.terminal import Terminal

REAL = "mistral-7b-lite"
"""The preset whose sets and judges are for real models."""
TOKENIZER = "tokenizer.json"


def measuring_study(
    models: Sequence[str],
    study: str | None = None,
    overrides: Sequence[str] = (),
    *,
    name: str = "measure",
) -> Study:
    """A study of arm ``checkpoints`` over ``models``, each named as ``parse_model`` reads it.

    The first is the start: what the fixed cases are made against and what drift is measured from. Sets, judge and measures come from
    ``study`` (a preset, a YAML file or a run folder; absent: ``default_study``); ``overrides`` come last. Raises ``ConfigError``.
    """
    if len(models) < 2:
        given = f"'{models[0]}' has nothing to be compared with" if models else "No model is named"
        raise ConfigError(given, expected="two models or more", fix="Name the start first, then others")
    first, *others = models
    origin = default_study(first) if study is None else study
    source = str(Path(origin) / CONFIG) if local_path(origin).is_dir() else origin
    begin = parse_model(first)
    changes = _model_changes(begin, load_study(source).model)
    listed: list[dict[str, object]] = [{"model": model} for model in others]
    whose = {"name": name, "train.arms": ["checkpoints"], "train.seeds": [0], "anchors": None, "checkpoints": listed}
    free = {"intervention.steps": None, "stress.steps": None}  # Steps of the other study are no anchors here.
    own = [f"{key}={json.dumps(value)}" for key, value in {**changes, **whose, **free}.items()]
    return load_study(source, [*own, *overrides])


def default_study(model: str) -> str:
    """Where settings come from when the user names none: the run that the checkpoint lies in, the preset whose own model has the same
    tokenizer (the embedded world's sets mean something to no other), else the preset for real models.
    """
    for part in _places(parse_model(model)):
        for folder in (part, *part.absolute().parents):
            if (folder / CONFIG).is_file() and (folder / MANIFEST).is_file():
                return str(folder / CONFIG)
    for name in presets():
        own = locate(load_study(name).model.path)
        for part in _places(parse_model(model)):
            if own is not None and _same(own / TOKENIZER, part / TOKENIZER):
                return name
    return REAL


def measure(
    models: Sequence[str], output: str | Path, study: str | None = None, overrides: Sequence[str] = (), console: Console | None = None
) -> Outcome:
    """Measure existing checkpoints with the whole protocol and write the report, as ``refgeo measure`` does.

    The tables are Parquet files below ``output``, and CSV in its ``report/tables``. Raises ``RefgeoError`` before anything is written when
    the models or the data cannot be used.
    """
    folder = Path(output)
    check_folder(folder)
    chosen = measuring_study(models, study, overrides, name=folder.absolute().name)
    # The function that makes the page is named, not imported: its room lies above this one.
    return run_study(chosen, folder, "refgeo.report.build:build_report", console or Terminal())


def check_folder(folder: Path) -> None:
    """Raise ``StoreError`` where a study was trained: its settings would give way to those of the measurement."""
    if (folder / CONFIG).is_file() and (folder / MANIFEST).is_file() and not load_study(str(folder / CONFIG)).checkpoints:
        raise StoreError(
            f"'{folder}' is the run of a study that trains",
            expected="a new folder or one of 'refgeo measure'",
            fix="Choose another (-o DIR)",
        )


def _model_changes(begin: ModelSettings, known: ModelSettings) -> dict[str, object]:
    """What of the other study's model is replaced: its names, and its chat template where it is another model's."""
    names: dict[str, object] = {f"model.{name}": getattr(begin, name) for name in ("path", "revision", "adapter", "adapter_revision")}
    return names if known.path in (begin.path, _base(begin)) else {**names, "model.chat_template": None}


def _base(model: ModelSettings) -> str | None:
    """The base that a local adapter names, where the model is one."""
    for place in _places(model):
        file = place / "adapter_config.json"
        if file.is_file():
            return str(stage_json(file, "Check the adapter's folder").get("base_model_name_or_path"))
    return None


def _places(model: ModelSettings) -> list[Path]:
    """The local folders of a model: its adapter, then itself."""
    found = [locate(path) for path in (model.adapter, model.path) if path is not None]
    return [path for path in found if path is not None and path.is_dir()]


def _same(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()
