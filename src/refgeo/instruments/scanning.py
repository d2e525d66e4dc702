"""``refgeo scan``: which direction in which layer carries refusal, for one model or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from torch import Tensor

from refgeo.data.load import load_probes
from refgeo.instruments.models import Models, StudyLike, Subject, subjects
from refgeo.instruments.output import writing
from refgeo.instruments.page import carrier_maps, write_page
from refgeo.judging import make_judge
from refgeo.lm.model import LanguageModel
from refgeo.measures.geometry import Geometry, measure_geometry
from refgeo.progress import Progress
from refgeo.study.files import save_csv
from refgeo.study.layout import SCAN
from refgeo.study.loading import write_geometry

SCAN_CSV = "scan.csv"
FIRST = ("position", "layer", "norm", "kl", "s_refuse", "s_comply", "s_total", "admissible", "selected")
"""Columns of every scan, in this order; further ones follow."""


class Scan(NamedTuple):
    """What a scan found; in every frame ``model`` is the label, by which ``carriers`` and ``tensors`` are named too.

    ``scan``: a row per model, ``position`` (from the end of the prompt) and ``layer`` (from 0): ``norm``, ``kl`` (nats), ``s_refuse``,
    ``s_comply``, ``s_total``, ``admissible``, ``selected`` (this is the carrier), and more; docs/instruments.md has the columns. ``table``:
    a row per quantity: ``set``, ``metric``, ``value``, its 95% interval ``low`` to ``high``, ``n``; docs/tables.md has the metrics.
    ``carriers``: what was chosen and what it does. ``tensors``: as ``measures.geometry.Geometry`` describes them.
    """

    scan: pd.DataFrame
    table: pd.DataFrame
    carriers: dict[str, dict[str, Any]]
    tensors: dict[str, dict[str, Tensor]]

    def figures(self) -> dict[str, go.Figure]:
        """Per model the map of S_total over layers and positions, all in one color scale."""
        return {label: panel.figure for label, panel in carrier_maps(self.scan, self.table).items() if panel.figure is not None}


def scan(
    models: Models,
    *,
    study: StudyLike = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Find the direction that carries refusal in each model.

        import refgeo
        found = refgeo.scan("package:pocket/world/model", overrides=["geometry.bootstrap=10"])
        found.scan.query("selected")[["layer", "position", "kl", "s_total"]]

    At each layer and position after the request, the mean difference of the activations on harmful and harmless prompts is a candidate.
    Those that change safe answers little are admissible, and of these the one that moves refusal most is the carrier (docs/geometry.md).

    ``models``: a name (folder, hub id, ``path@revision``, ``base+adapter``), a model from ``refgeo.load_model``, a list of these, or a
    mapping from labels to these. ``study``: a preset, a YAML file or a folder with config.yaml, which has the probes, the judge and the
    settings; absent: found from the first model. ``overrides`` change settings, such as ``["geometry.max_kl=0.2"]``. ``output``: a folder
    for the files of ``refgeo scan``; absent: nothing is written. ``progress`` is called with done, total and a note. Nothing admissible is
    a result. Raises ``RefgeoError``.
    """
    chosen = subjects(models, study, overrides)
    found: list[Scan] = []
    with writing(output, "scan", chosen, lambda folder: write_over_all(folder, joined(found))) as out:
        for subject in chosen:
            one = scan_one(subject, subject.open(), subject.progress(progress, len(chosen)))
            found.append(one)
            out.write(subject, lambda folder, one=one: write_one(folder, one), table=one.table)  # type: ignore[misc]  # bound at once
    return joined(found)


def scan_one(subject: Subject, lm: LanguageModel, progress: Progress | None = None) -> Scan:
    """The scan of one loaded model."""
    study = subject.study
    judge = make_judge(study.judge)
    probes = load_probes(study.data.probes)
    found = measure_geometry(lm, probes, study.geometry, judge, study.behavior.max_new_tokens, study.seed, progress)
    label = subject.label
    return Scan(subject.tagged(ordered(found.scan)), subject.tagged(found.table), {label: found.carrier}, {label: found.tensors})


def ordered(scan: pd.DataFrame) -> pd.DataFrame:
    """The scan with its fixed columns first and its rows by position, then layer."""
    marked = scan.assign(selected=scan["carrier"])
    rows = marked.sort_values(["position", "layer"], kind="stable", ignore_index=True)
    return rows[[*FIRST, *(column for column in rows.columns if column not in FIRST)]]


def joined(parts: Sequence[Scan]) -> Scan:
    """Scans of several models as one."""
    rows, table = (pd.concat([getattr(part, name) for part in parts], ignore_index=True) for name in ("scan", "table"))
    carriers = {label: carrier for part in parts for label, carrier in part.carriers.items()}
    return Scan(rows, table, carriers, {label: tensors for part in parts for label, tensors in part.tensors.items()})


def write_one(folder: Path, found: Scan) -> None:
    """The files of one model."""
    (label,) = found.carriers
    write_geometry(folder, Geometry(found.table, found.scan, found.carriers[label], found.tensors[label]))
    save_csv(folder / SCAN_CSV, found.scan)


def write_over_all(folder: Path, found: Scan) -> None:
    """The rows of all models, and the page."""
    save_csv(folder / SCAN_CSV, found.scan)
    found.scan.to_parquet(folder / SCAN, index=False)
    write_page(folder, found.scan, found.table, found.carriers)
