"""Stages, what they depend on, and what of them is stale. Fingerprints cover content and settings, never paths or times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

from refgeo.errors import ConfigError

Settings = Mapping[str, object]


@dataclass(frozen=True)
class Stage:
    """One unit of work with one result folder.

    ``function`` is ``package.module:name``, so that another process finds it. ``settings`` is the slice of the configuration
    (with content hashes of files) that the result depends on; ``version`` is raised when its code changes meaning.
    ``made_by`` names the stage that produces this one while it runs (a checkpoint of a training).
    ``priority``: among what can run, smaller goes first. ``work`` says in words how much it is.
    """

    id: str
    folder: Path
    function: str
    settings: Settings = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    version: int = 1
    priority: int = 0
    made_by: str | None = None
    kind: str = ""
    arm: str | None = None
    seed: int | None = None
    step: int | None = None
    work: str = ""

    def resolve(self) -> Callable[..., object]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        found = getattr(import_module(module), name)
        if not callable(found):
            raise TypeError(f"{self.function} is not callable")
        return found  # type: ignore[no-any-return]  # getattr is untyped


@dataclass(frozen=True)
class Record:
    """What ``stage.json`` says about a finished stage; ``detail`` is all of it (versions, seed, peak memory, host, time)."""

    fingerprint: str
    version: int
    settings: Settings
    inputs: Mapping[str, str]
    seconds: float
    detail: Settings


class Graph:
    """All stages of a study in an order in which they can run. Raises ``ConfigError`` for a cycle or a missing input."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        given = {stage.id: stage for stage in stages}
        for stage in given.values():
            missing = [name for name in (*stage.inputs, *([stage.made_by] if stage.made_by else [])) if name not in given]
            if missing:
                raise ConfigError(f"Stage '{stage.id}' needs '{missing[0]}', which is no stage")
        sorter = TopologicalSorter({stage.id: self._before(stage) for stage in given.values()})
        try:
            self.stages = {name: given[name] for name in sorter.static_order()}
        except CycleError as error:
            raise ConfigError(f"Stages depend on each other in a circle: {' -> '.join(error.args[1])}") from error

    @staticmethod
    def _before(stage: Stage) -> tuple[str, ...]:
        return (*stage.inputs, stage.made_by) if stage.made_by else stage.inputs

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """One hash per stage over its settings, its code version and the fingerprints of everything before it."""
        found: dict[str, str] = {}
        for stage in self.stages.values():
            before = {name: found[name] for name in self._before(stage)}
            text = canonical({"function": stage.function, "version": stage.version, "settings": stage.settings, "before": before})
            found[stage.id] = hashlib.sha256(text.encode()).hexdigest()
        return found

    def before(self, name: str) -> dict[str, str]:
        """Fingerprints of what a stage depends on, by id."""
        return {other: self.fingerprints[other] for other in self._before(self.stages[name])}

    def products(self, name: str) -> list[Stage]:
        """The stages that ``name`` produces while it runs."""
        return [stage for stage in self.stages.values() if stage.made_by == name]

    def done(self, records: Mapping[str, Record | None]) -> set[str]:
        """Stages whose record is present and equal. One that has products is done when all of them are there too."""
        current = {name for name in self.stages if self._equal(name, records.get(name))}
        return {name for name in current if all(stage.id in current for stage in self.products(name))}

    def reason(self, name: str, record: Record | None) -> str:
        """Why a stage is not done, in words."""
        stage = self.stages[name]
        if record is None:
            return "not made yet"
        if record.version != stage.version:
            return f"its code changed (version {record.version}, now {stage.version})"
        changes = list(differences(record.settings, stage.settings))
        if changes:
            return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
        before = self.before(name)
        changed = [other for other in before if record.inputs.get(other) != before[other]]
        if changed:
            return f"{changed[0]} changed"
        gone = sorted(set(record.inputs) - set(before))
        if gone:
            return f"no longer uses {gone[0]}"
        return "something that it produces is missing" if self.products(name) else "its folder was changed by hand"

    def _equal(self, name: str, record: Record | None) -> bool:
        return record is not None and record.fingerprint == self.fingerprints[name]


def canonical(value: object) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def differences(old: object, new: object, path: str = "") -> Iterable[str]:
    """``steps 20 -> 40`` for every leaf that differs between two JSON-like values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            place = f"{path}.{key}" if path else str(key)
            if key in old and key in new:
                yield from differences(old[key], new[key], place)
            else:
                yield f"{place} {_short(old[key])} -> (absent)" if key in old else f"{place} (absent) -> {_short(new[key])}"
    elif canonical(old) != canonical(new):
        yield f"{path} {_short(old)} -> {_short(new)}"


def _short(value: object) -> str:
    text = canonical(value)
    return text if len(text) <= 40 else text[:18] + "..." + text[-18:]
