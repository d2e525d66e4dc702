"""What an instrument is pointed at: models by name or already loaded, each with a label and the study that says how to measure it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from refgeo.config.checkpoints import label_of
from refgeo.config.load import dump_study, load_study
from refgeo.config.locations import local_path, plain_name
from refgeo.config.model import ModelSettings, parse_model
from refgeo.config.schema import Study
from refgeo.errors import ConfigError
from refgeo.lm.load import load, load_renderer
from refgeo.lm.model import LanguageModel
from refgeo.lm.origin import resolved
from refgeo.progress import Progress
from refgeo.study.measure import default_study
from refgeo.study.run import absolute
from refgeo.study.store import CONFIG

Model = str | Path | LanguageModel
"""A name as ``config.model.parse_model`` reads it, or a model that is loaded already."""
Models = Model | Sequence[Model] | Mapping[str, Model]
"""One model, several, or several by the labels that they are to have."""
StudyLike = str | Path | Study | None
"""A preset, a YAML file, a folder with config.yaml, a study; None: found from the first model (``study.measure.default_study``)."""
_WHICH = ("path", "revision", "adapter", "adapter_revision")


@dataclass(frozen=True, eq=False)
class Subject:
    """One model to be measured. ``study.model`` are its own settings; ``loaded`` is None for one that is opened by name."""

    label: str
    study: Study
    loaded: LanguageModel | None = None

    def open(self) -> LanguageModel:
        """The model, its hooks proven to work. Raises ``ModelError``."""
        return load(self.study.model) if self.loaded is None else self.loaded

    def identity(self) -> dict[str, str | None]:
        """Which weights these are, as far as names tell."""
        told = {name: getattr(self.study.model, name) for name in _WHICH}
        return told if self.loaded is None else {**told, "loaded": self.loaded.name}

    def tagged(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with the label as its first column, ``model``."""
        return frame.assign(model=self.label)[["model", *(column for column in frame.columns if column != "model")]]

    def progress(self, progress: Progress | None, among: int) -> Progress | None:
        """The same progress; with several models its notes say which one is under way."""
        if progress is None or among < 2:
            return progress
        return lambda done, total, note: progress(done, total, f"{self.label}: {note}")


def subjects(models: Models, study: StudyLike = None, overrides: Sequence[str] = ()) -> list[Subject]:
    """Every model with its label, unique and fit for a folder's name, and its study.

    Raises ``ConfigError`` or ``ModelError`` when a name, a setting or a chat template cannot be used: before any weights are loaded.
    """
    named = dict(models) if isinstance(models, Mapping) else None
    listed: list[Model] = list(models.values()) if isinstance(models, Mapping) else [models] if isinstance(models, Model) else list(models)
    if not listed:
        raise ConfigError("No model is given", expected="path, path@revision, base+adapter or a loaded model")
    with _source(study, _name(listed[0])) as source:
        studies = [_study_of(_name(model), source, overrides) for model in listed]
    for model, its in zip(listed, studies, strict=True):
        if not isinstance(model, LanguageModel):
            load_renderer(its.model)
    labels = unique(list(named) if named is not None else [label_of(parse_model(_name(model)).model_dump()) for model in listed], studies)
    loaded = [model if isinstance(model, LanguageModel) else None for model in listed]
    return [Subject(*entry) for entry in zip(labels, studies, loaded, strict=True)]


def load_model(model: str | Path, *, study: StudyLike = None, overrides: Sequence[str] = ()) -> LanguageModel:
    """Load a model for the instruments: its chat template, dtype and device as the study says, its hooks proven to work.

    ``model``: path, path@revision, base+adapter. Nothing is ever written back. Raises ``ConfigError`` or ``ModelError``.
    """
    return subjects(model, study, overrides)[0].open()


def resolved_study(study: StudyLike, overrides: Sequence[str], otherwise: str) -> Study:
    """A study without regard to a model; ``otherwise`` is its source when none is given. Raises ``ConfigError``."""
    with _source(study if study is not None else otherwise, "") as source:
        return absolute(load_study(source, overrides))


def unique(labels: Sequence[str], studies: Sequence[Study]) -> list[str]:
    """Labels as folder names, each once: equal ones take in more of their models' names from the end, then a number.

    ``r2d2/seed-1/step-9`` and ``sft/seed-1/step-9`` do not stay ``step-9`` twice.
    """
    longer = [_parts(study.model) for study in studies]
    found = [_plain(label) for label in labels]
    for length in range(2, max(map(len, longer)) + 1):
        lowered = [label.casefold() for label in found]
        if len(set(lowered)) == len(lowered):
            return found
        found = [
            _plain("/".join(parts[-length:])) if lowered.count(label.casefold()) > 1 else label
            for label, parts in zip(found, longer, strict=True)
        ]
    taken: list[str] = []
    for label in found:
        number, name = 1, label
        while name.casefold() in taken:
            number, name = number + 1, f"{label}-{number + 1}"
        taken.append(name.casefold())
        found[len(taken) - 1] = name
    return found


@contextmanager
def _source(study: StudyLike, model: str) -> Iterator[str]:
    """The study as ``load_study`` takes it."""
    if study is None:
        yield default_study(model)
    elif isinstance(study, Study):
        with TemporaryDirectory() as folder:
            file = Path(folder) / "study.yaml"
            file.write_text(dump_study(study), encoding="utf-8")
            yield str(file)
    else:
        yield str(Path(study) / CONFIG) if local_path(str(study)).is_dir() else str(study)


def _study_of(name: str, source: str, overrides: Sequence[str]) -> Study:
    """The study with this model's names in place of its own, and without its chat template where that is another model's."""
    known, named = load_study(source), parse_model(name)
    changes: dict[str, object] = {f"model.{which}": getattr(named, which) for which in _WHICH}
    # In a bundle nothing is looked up on a hub.
    if known.model.path != named.path and (known.data.bundle is not None or resolved(named).path != known.model.path):
        changes["model.chat_template"] = None
    return absolute(load_study(source, [*(f"{key}={json.dumps(value)}" for key, value in changes.items()), *overrides]))


def _name(model: Model) -> str:
    return model.name if isinstance(model, LanguageModel) else str(model)


def _parts(model: ModelSettings) -> list[str]:
    told: dict[str, Any] = model.model_dump()
    which = "adapter" if told["adapter"] else "path"
    revision = told["adapter_revision" if which == "adapter" else "revision"]
    parts = [part for part in str(told[which]).split("/") if part]
    return [*parts[:-1], f"{parts[-1]}@{revision}" if revision else parts[-1]] if parts else ["model"]


def _plain(label: str) -> str:
    return plain_name(label, "model")
