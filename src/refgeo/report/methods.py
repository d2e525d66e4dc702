"""How the run was made: every setting with its meaning, versions, fingerprints, time and memory of every stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from refgeo.config.schema import Study
from refgeo.errors import StoreError
from refgeo.study.layout import SURVEY
from refgeo.study.protocol import REPORT
from refgeo.study.reading import read_stage
from refgeo.study.store import STAGE


@dataclass(frozen=True)
class Setting:
    """One value of the resolved configuration; ``path`` is what overrides it on the command line."""

    path: str
    value: str
    meaning: str


@dataclass(frozen=True)
class StageCost:
    """What one finished stage says about itself."""

    id: str
    seconds: float
    memory: float | None
    fingerprint: str
    libraries: Mapping[str, str]


def settings(study: Study) -> list[Setting]:
    """The whole configuration, one leaf per row, in the order of the schema."""
    return list(_leaves(study, ""))


def stage_records(run: Path) -> dict[str, dict[str, Any]]:
    """What every finished stage under a run folder says of itself, by id. A record that cannot be read is passed over: it is no result."""
    found = {}
    for path in sorted(run.rglob(STAGE)):
        place = path.parent.relative_to(run)
        if any(part.startswith(".") for part in place.parts):
            continue
        try:
            record = read_stage(path)
        except (OSError, ValueError):
            continue
        found[str(record.get("id", place))] = record
    return found


def stage_costs(run: Path) -> list[StageCost]:
    """Time and memory of all finished stages except the report itself."""
    found = []
    for name, record in stage_records(run).items():
        memory = record.get("peak_memory_mb")
        libraries = {str(library): str(version) for library, version in dict(record.get("libraries", {})).items()}
        if name != REPORT and isinstance(record.get("seconds"), int | float):
            cost = (float(record["seconds"]), None if memory is None else float(memory), str(record["fingerprint"]), libraries)
            found.append(StageCost(name, *cost))
    return found


def data_lines(run: Path) -> list[tuple[str, str, str, str]]:
    """What the sets hold, as the run saw it: set, what, how many, what was done; empty where it was not recorded."""
    path = run / SURVEY
    if not path.is_file():
        return []
    try:
        lines = pd.read_csv(path, dtype=str, keep_default_na=False)[["set", "what", "n", "done"]]
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"Cannot read '{path}': {error}", fix="Delete it and run again") from error
    return [(line["set"], line["what"], line["n"], line["done"]) for line in lines.to_dict("records")]


def totals(costs: Sequence[StageCost]) -> list[tuple[str, int, float]]:
    """Kind of stage (last part of its id), how many, and their seconds together; the costliest first."""
    sums: dict[str, tuple[int, float]] = {}
    for cost in costs:
        kind = cost.id.rstrip("/").split("/")[-1]
        count, seconds = sums.get(kind, (0, 0.0))
        sums[kind] = (count + 1, seconds + cost.seconds)
    return sorted(((kind, count, seconds) for kind, (count, seconds) in sums.items()), key=lambda one: -one[2])


def versions(costs: Sequence[StageCost]) -> dict[str, str]:
    """Library versions; where stages were made by different ones, all of them."""
    found: dict[str, set[str]] = {}
    for cost in costs:
        for name, version in cost.libraries.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(seen)) for name, seen in found.items()}


def duration(seconds: float) -> str:
    """``3.2 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _leaves(section: BaseModel, prefix: str) -> Iterator[Setting]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
            continue
        plain = section.model_dump(mode="json", include={name})[name]
        meaning = " ".join((field.description or "").replace("``", "").split())
        yield Setting(prefix + name, json.dumps(plain, ensure_ascii=False), meaning)
