"""``refgeo intervene``: what removing or adding the direction does to what a model writes, beside controls. Weights stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from refgeo.attacks.cases import Case, load_cases
from refgeo.config.load import dump_study
from refgeo.data.load import load_chat
from refgeo.errors import ConfigError, DataError, StoreError
from refgeo.instruments.models import Models, StudyLike, Subject, subjects
from refgeo.instruments.output import read_record, record, writing
from refgeo.instruments.scanning import Scan, joined, scan_one, write_one, write_over_all
from refgeo.judging import make_judge
from refgeo.lm.model import LanguageModel
from refgeo.measures.behavior import EvaluationSets, evaluation_items
from refgeo.measures.intervention import measure_intervention
from refgeo.progress import Progress
from refgeo.study import forms
from refgeo.study.layout import CARRIER, SCAN
from refgeo.study.loading import evaluation_sets, read_carrier, read_tensors, write_tables
from refgeo.study.reading import read_table
from refgeo.study.store import CONFIG

OWN_SCAN = "scan"
"""Subfolder with the scan, where none was given."""


class Intervention(NamedTuple):
    """What interventions did; in every frame ``model`` is the label.

    ``table``: a row per quantity, ``intervention`` (``baseline``, ``ablate_single``, ``ablate_topk``, ``add``), ``direction`` (``carrier``
    or a control) and ``strength``: ``metric``, ``value``, ``low``, ``high``, ``n``. ``<metric>_delta`` is the change from the baseline,
    ``<metric>_delta_over_controls`` the change beyond that of random directions. ``transcripts``: a row per judged completion:
    ``request``, ``completion``, ``label``, ``refusal``, and the same three. docs/tables.md has all columns and metrics.
    ``scan``: the scan that the directions come from; None where a folder was given.
    """

    table: pd.DataFrame
    transcripts: pd.DataFrame
    scan: Scan | None


def intervene(
    models: Models,
    *,
    study: StudyLike = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    scan: Scan | str | Path | None = None,
    cases: Sequence[Case] | str | Path | None = None,
    progress: Progress | None = None,
) -> Intervention:
    """Remove and add each model's direction while it answers the study's prompts, beside random directions. Weights stay as they are.

        import refgeo
        found = refgeo.intervene("package:pocket/world/model", overrides=["intervention.controls=2"])
        removed = found.table.query("intervention == 'ablate_single' and direction == 'carrier' and strength == 1")
        removed.query("set == 'direct' and metric == 'any_refusal_delta_over_controls'")[["value", "low", "high"]]

    ``scan``: what ``refgeo.scan`` returned, its folder, or the geometry folder of a run; absent: scans first. With a folder its own
    settings are used where ``study`` is absent. ``cases``: attacked prompts (``cases.jsonl``) to be answered as well. The rest is as in
    ``refgeo.scan``. Raises ``StoreError`` or ``ConfigError`` when the scan does not belong to the model or the settings.
    """
    given = Path(scan) if isinstance(scan, str | Path) else None
    if study is None and given is not None and (given / CONFIG).is_file():
        study = given
    chosen = subjects(models, study, overrides)
    attacked = [] if cases is None else load_cases(Path(cases)) if isinstance(cases, str | Path) else list(cases)
    sets = {subject.label: evaluation_sets(subject.study.data) for subject in chosen}
    for evaluated in sets.values():
        _check_cases(evaluated, attacked)
    source = scan if isinstance(scan, Scan) else given
    before = {subject.label: _given(subject, source, len(chosen)) for subject in chosen}
    parts: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    scans: list[Scan] = [] if not isinstance(scan, Scan) else [scan]
    with writing(output, "intervene", chosen) as out:
        for subject in chosen:
            settings, lm = subject.study, subject.open()
            few = settings.intervention.chats
            told = subject.progress(progress, len(chosen))
            known, own = before[subject.label], None
            if known is None:
                own = scan_one(subject, lm, told)
                scans.append(own)
                known = _Given(own.tensors[subject.label], own.carriers[subject.label], _positions(own.scan))
            _check_scan(subject, lm, known)
            measured = measure_intervention(
                lm,
                evaluation_items(sets[subject.label], attacked),
                known.tensors,
                known.carrier,
                make_judge(settings.judge),
                settings.intervention,
                settings.behavior,
                settings.geometry,
                settings.seed,
                told,
                load_chat(settings.data.chat.model_copy(update={"limit": few})) if few else (),
            )
            tagged = subject.tagged(measured.table), subject.tagged(measured.transcripts)
            parts.append(tagged)
            out.write(subject, lambda folder, s=subject, t=tagged, own=own: _write(folder, s, t, own), table=tagged[0])  # type: ignore[misc]  # bound at once
    table, transcripts = (pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True))
    return Intervention(table, transcripts, joined(scans) if scans else None)


def _write(folder: Path, subject: Subject, frames: tuple[pd.DataFrame, pd.DataFrame], own: Scan | None) -> None:
    write_tables(folder, *frames)
    if own is not None:
        inside = folder / OWN_SCAN
        inside.mkdir()
        write_one(inside, own)
        write_over_all(inside, own)
        (inside / CONFIG).write_text(dump_study(subject.study), encoding="utf-8")
        record(inside, "scan", [subject])


class _Given(NamedTuple):
    """What a scan found in one model, and at which positions it looked."""

    tensors: Mapping[str, Tensor]
    carrier: dict[str, Any]
    positions: list[int]


def _given(subject: Subject, scan: Scan | Path | None, among: int) -> _Given | None:
    """What the scan holds of the model; None when there is no scan. Raises ``StoreError``."""
    if scan is None:
        return None
    if isinstance(scan, Scan):
        label = next(iter(scan.carriers)) if among == 1 and len(scan.carriers) == 1 else subject.label
        if label not in scan.carriers:
            raise StoreError(f"The scan has no model '{label}'", expected=f"one of {', '.join(scan.carriers)}")
        return _Given(scan.tensors[label], scan.carriers[label], _positions(scan.scan[scan.scan["model"] == label]))
    folder = scan if (scan / CARRIER).is_file() else scan / subject.label
    if not folder.is_dir():
        problem = f"'{scan}' holds no scan of '{subject.label}'" if scan.is_dir() else f"There is no folder '{scan}'"
        raise StoreError(problem, expected="the folder of a scan", fix="Make one with 'refgeo scan'")
    made = read_record(folder)
    its = next(iter(made["models"].values()), None) if made is not None else None
    if its is not None and subject.loaded is None and its != subject.identity():
        names = [" + ".join(str(part) for part in (one["path"], one["adapter"]) if part) for one in (its, subject.identity())]
        raise StoreError(f"The scan in '{folder}' is of '{names[0]}', not of '{names[1]}'", fix="Scan this model, or leave out --scan")
    return _Given(read_tensors(folder), read_carrier(folder), _positions(read_table(folder / SCAN, forms.SCAN)))


def _positions(scan: pd.DataFrame) -> list[int]:
    return sorted({int(position) for position in scan["position"]})


def _check_scan(subject: Subject, lm: LanguageModel, given: _Given) -> None:
    """Raise unless the scan was made of such a model with such settings."""
    settings = subject.study.geometry
    depth, width = given.tensors["candidates"].shape[1:]
    if (depth, width) != (lm.depth, lm.width):
        raise StoreError(
            f"The scan is of a model with {depth} layers of width {width}; '{subject.label}' has {lm.depth} of {lm.width}",
            fix="Scan this model, or leave out --scan",
        )
    if given.positions != sorted(settings.positions) or given.carrier["site"] != settings.site:
        raise ConfigError(
            f"The scan was made at positions {given.positions} and {given.carrier['site']}; geometry.positions is "
            f"{list(settings.positions)} and geometry.site {settings.site}",
            fix="Leave out the study, so that the scan's own settings are used, or scan again",
        )


def _check_cases(sets: EvaluationSets, cases: Sequence[Case]) -> None:
    known = {behavior.id for behavior in sets.behaviors}
    strange = [case.behavior for case in cases if case.behavior not in known]
    if strange:
        raise DataError(
            f"The cases attack behavior '{strange[0]}', which is not among the {len(known)} of data.behaviors_test",
            expected="cases of the study's test behaviors",
            fix="Give the study that the cases were made with",
        )
