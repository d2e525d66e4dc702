"""From a study's settings and files to what the measures take, and back: the sets, and what ``measure_geometry`` found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save_file
from torch import Tensor

from refgeo.config.data import DataSettings
from refgeo.data.load import load_audit, load_behaviors, load_filler, load_strongreject, load_xstest
from refgeo.errors import StoreError
from refgeo.lm.model import LanguageModel
from refgeo.measures.behavior import EvaluationSets
from refgeo.measures.geometry import Geometry
from refgeo.study import layout, reading


def evaluation_sets(data: DataSettings) -> EvaluationSets:
    """Every set that completions are measured on; one that the study leaves out is empty. Raises ``DataError``."""
    return EvaluationSets(
        behaviors=load_behaviors(data.behaviors_test),
        strongreject=[] if data.strongreject is None else load_strongreject(data.strongreject),
        xstest=[] if data.xstest is None else load_xstest(data.xstest),
        audit=[] if data.audit is None else load_audit(data.audit),
        filler=[] if data.filler is None else load_filler(data.filler),
    )


def write_tables(out: Path, table: pd.DataFrame, transcripts: pd.DataFrame | None = None) -> None:
    """``table.parquet`` and, where there are any, ``transcripts.jsonl``."""
    table.to_parquet(out / layout.TABLE, index=False)
    if transcripts is not None:
        transcripts.to_json(out / layout.TRANSCRIPTS, orient="records", lines=True, force_ascii=False, double_precision=15)


def write_geometry(out: Path, found: Geometry) -> None:
    """``table.parquet``, ``scan.parquet``, ``carrier.json`` and ``tensors.safetensors``."""
    write_tables(out, found.table)
    found.scan.to_parquet(out / layout.SCAN, index=False)
    (out / layout.CARRIER).write_text(json.dumps(found.carrier, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in found.tensors.items()}, out / layout.TENSORS)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a measured geometry. Raises ``StoreError`` when they are not there, or of other shapes."""
    return reading.read_tensors(_there(folder, layout.TENSORS), {"candidates": 3, "harmful": 4, "harmless": 4})


def read_carrier(folder: Path) -> dict[str, Any]:
    """The carrier of a measured geometry. Raises ``StoreError`` when it is not there, or says something else than a carrier does."""
    path = _there(folder, layout.CARRIER)
    found = reading.stage_json(path, kinds=reading.CARRIER)
    if found["status"] == "none":
        return found
    found = reading.stage_json(path, kinds=reading.DIRECTION)
    if (folder / layout.TENSORS).is_file():
        places, layers, _ = reading.read_tensor(folder / layout.TENSORS, "candidates", 3).shape
        if not (0 <= found["place"] < places and 0 <= found["layer"] < layers):
            where = f"layer {found['layer']} and place {found['place']}"
            raise StoreError(f"'{path}' names {where}, of {layers} layers and {places} places", fix=reading.FIX)
    return found


def check_fit(lm: LanguageModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raise ``StoreError`` unless the tensors of a geometry are of a model of this size."""
    depth, width = tensors["candidates"].shape[1:]
    if (depth, width) != (lm.depth, lm.width):
        problem = (
            f"'{folder / layout.TENSORS}' is of a model with {depth} layers of width {width}; '{lm.name}' has {lm.depth} of {lm.width}"
        )
        raise StoreError(problem, fix=reading.FIX)


def _there(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise StoreError(f"'{folder}' has no {name}", expected="the folder of a scan", fix="Make one with 'refgeo scan MODEL -o DIR'")
    return folder / name
