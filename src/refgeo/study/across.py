"""Stages that look from one anchor at the others: transfer of directions, and projection on the axes of the start.

Every function is a stage of ``refgeo.study.protocol`` of the same name.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save_file

from refgeo.data.load import load_probes
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel
from refgeo.measures.attempts import final_strings
from refgeo.measures.projection import AttackedPrompt, Plane, measure_projection, plane
from refgeo.measures.table import START
from refgeo.measures.transfer import Source, measure_transfer
from refgeo.study import layout, reading
from refgeo.study.job import Job
from refgeo.study.loading import check_fit, read_carrier, read_tensors


def transfer(job: Job) -> None:
    """Transfer of directions: every direction of the same seed applied to one anchor."""
    study = job.study
    listed = job.stage.settings["sources"]
    assert isinstance(listed, list)
    beginning = layout.start_folder(job.run) / "geometry"
    sources = [_source(START, None, 0, beginning)]
    for arm, seed, step in listed:
        sources.append(_source(arm, seed, step, layout.measured_folder(job.run, study, arm, seed, step) / "geometry"))
    own = _own(job) / "geometry"
    spoken = read_carrier(beginning).get("refusal_tokens") or ()
    assert isinstance(spoken, list | tuple)
    probes, tensors = load_probes(study.data.probes), read_tensors(own)
    lm = _model(job)
    check_fit(lm, tensors, own)
    table = measure_transfer(lm, probes, sources, tensors, read_carrier(own), study.geometry, study.seed, spoken, job.progress)
    table.to_parquet(job.out / layout.TABLE, index=False)


def projection(job: Job) -> None:
    """Attacked prompts between harmless and harmful ones. The start leaves the axes that all others are projected on."""
    study, folder = job.study, _own(job)
    own = plane(read_tensors(folder / "geometry"), read_carrier(folder / "geometry"))
    first = folder == layout.start_folder(job.run)
    if first:
        save_plane(job.out, own)
    fixed = own if first else load_plane(layout.start_folder(job.run) / "projection")
    probes = load_probes(study.data.probes)
    attacked = attacked_prompts(folder, adaptive=f"{_anchor(job)}/stress" in job.stage.inputs)
    found = measure_projection(_model(job), probes, attacked, own, fixed, study.geometry, study.seed, job.progress)
    found.table.to_parquet(job.out / layout.TABLE, index=False)
    found.points.to_parquet(job.out / layout.POINTS, index=False)


def save_plane(folder: Path, found: Plane | str) -> None:
    """Write axes and origin as tensors, and where they lie, or why there are none, as JSON."""
    if isinstance(found, str):
        place: dict[str, object] = {"missing": found}
    else:
        place = {name: getattr(found, name) for name in ("layer", "place", "position", "status")}
        tensors = {name: getattr(found, name).contiguous() for name in ("x", "y", "origin")}
        save_file(tensors, folder / layout.AXES)
    (folder / layout.AXES_PLACE).write_text(json.dumps(place, indent=2) + "\n", encoding="utf-8")


def load_plane(folder: Path) -> Plane | str:
    """What ``save_plane`` wrote."""
    place = reading.stage_json(folder / layout.AXES_PLACE)
    if "missing" in place:
        return str(place["missing"])
    place = reading.stage_json(folder / layout.AXES_PLACE, kinds={**reading.PLACE, "status": str})
    tensors = reading.read_tensors(folder / layout.AXES, {"x": 1, "y": 1, "origin": 1})
    return Plane(tensors["x"], tensors["y"], tensors["origin"], place["layer"], place["place"], place["position"], place["status"])


def attacked_prompts(folder: Path, *, adaptive: bool) -> list[AttackedPrompt]:
    """The frozen attack on an anchor, and where ``adaptive`` what every attack on this very anchor ended with, as they were judged there.

    Raises ``StoreError`` for completions that cannot be read.
    """
    behavior = pd.DataFrame(reading.read_rows(folder / "behavior" / layout.TRANSCRIPTS, reading.TOLD))
    shown = [behavior[behavior["set"] == "fixed"]]
    if adaptive:
        stress = reading.read_attacked(folder / "stress" / layout.TRANSCRIPTS)
        shown += [final_strings(stress, attack) for attack in stress["set"].unique()]
    rows = pd.concat(shown).to_dict("records")
    return [AttackedPrompt(one["set"], one["id"], one["request"], one["attack"], one["placement"], _succeeded(one)) for one in rows]


def _succeeded(told: Mapping[Hashable, Any]) -> bool | None:
    return None if told["label"] == "unscored" else bool(told["success"])


def _source(arm: str, seed: int | None, step: int, folder: Path) -> Source:
    # The activations beside the candidates are large; only the candidates are read.
    return Source(arm, seed, step, read_carrier(folder), reading.read_tensor(folder / layout.TENSORS, "candidates", 3))


def _own(job: Job) -> Path:
    return job.run / job.stage.folder.parent


def _anchor(job: Job) -> str:
    return job.stage.id.rpartition("/")[0]


def _model(job: Job) -> LanguageModel:
    """The model of the job's anchor, its hooks proven to work."""
    given = layout.given_model(job.study, job.stage.step)
    if given is not None:
        return load(given)
    return load(job.study.model, None if job.stage.step == 0 else _own(job) / "adapter")
