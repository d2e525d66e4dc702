"""Harmful behaviors in HarmBench's columns, their affirmative targets, and what two sets have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refgeo.config.data import Part, Source
from refgeo.config.reading import parse_json
from refgeo.data.cells import Row, check_unique, evenly, plain, repeated, required, some, text
from refgeo.data.findings import Findings
from refgeo.data.rows import Behavior, Reference
from refgeo.data.tables import read_rows, read_text
from refgeo.errors import DataError


def load_behaviors(
    source: Source, *, with_context: bool = True, need_targets: bool = True, findings: Findings | None = None
) -> list[Behavior]:
    """Harmful behaviors in HarmBench's columns, part after part, with their affirmative targets from ``targets`` of their part.

    A contextual behavior asks with its context first, as HarmBench puts it; ``with_context=False`` leaves those rows out, as
    adversarial training does. Rows without a BehaviorID column are numbered. Repeated prompts are recorded and kept.
    Raises ``DataError`` naming the rows that repeat an id or have no target.
    """
    behaviors = [behavior for part in source.parts for behavior in _part(part, with_context, need_targets, findings)]
    if not behaviors:
        raise DataError(f"'{source.path}' has only contextual behaviors", expected="behaviors that need no context")
    check_unique((behavior.id for behavior in behaviors), source.path)
    if findings is not None:
        findings.add(source.path, "repeated prompts", repeated((one.id, plain(one.request)) for one in behaviors), "kept")
    return evenly(behaviors, source.limit)


def overlap(train: Sequence[Behavior], test: Sequence[Behavior]) -> list[Behavior]:
    """Behaviors of ``test`` whose id or words are among those of ``train``."""
    ids = {behavior.id for behavior in train}
    prompts = {plain(behavior.request) for behavior in train}
    return [behavior for behavior in test if behavior.id in ids or plain(behavior.request) in prompts]


def check_disjoint(train: Sequence[Behavior], test: Sequence[Behavior]) -> None:
    """Raise ``DataError`` naming every clean test behavior whose id or words are among the training behaviors.

    Behaviors that their part declares to be training data (``trained``) may be in both; they are reported apart.
    """
    shared = [behavior.id for behavior in overlap(train, test) if behavior.clean]
    if shared:
        raise DataError(
            f"{len(shared)} test behaviors are also training behaviors: {some(shared, 20)}",
            expected="no id and no prompt in both sets",
            fix="Remove them from data.behaviors_test or data.behaviors_train, or give them a part of their own with trained: true",
        )


def _part(part: Part, with_context: bool, need_targets: bool, findings: Findings | None) -> list[Behavior]:
    rows = read_rows(part, ("Behavior",), words="Behavior", findings=findings)
    targets = _targets(part.targets) if part.targets is not None else {}
    numbered = not any("BehaviorID" in row for row in rows)
    behaviors = []
    for number, row in enumerate(rows, start=1):
        name, context = f"behavior-{number:04d}" if numbered else text(row, "BehaviorID"), text(row, "ContextString")
        if context and not with_context:
            continue
        request = required(row, "Behavior", name, part)
        behaviors.append(
            Behavior(
                id=name or required(row, "BehaviorID", request, part),
                request=f"{context}\n\n---\n\n{request}" if context else request,
                targets=targets.get(name, ()),
                tags=tuple(tag.strip() for tag in text(row, "Tags").split(",") if tag.strip()),
                reference=read_reference(row, name, part),
                group=part.group,
                clean=not part.trained,
            )
        )
    bare = [behavior.id for behavior in behaviors if not behavior.targets]
    if bare and need_targets:
        where = f"'{part.targets}' has no target" if part.targets is not None else f"No targets are given with '{part.path}'"
        raise DataError(
            f"{where} for behaviors {some(bare)}",
            expected="an affirmative target for every BehaviorID",
            fix="Set or complete the targets file",
        )
    return behaviors


def read_reference(row: Row, name: str, part: Part) -> Reference | None:
    """The reference answer of a row, if it has one. Raises ``DataError`` when it is malformed."""
    given = row.get("Reference")
    if given is None or not text(row, "Reference"):
        return None
    try:
        content = parse_json(given) if isinstance(given, str) else given
    except ValueError as error:
        raise _bad_reference(name, part, str(error)) from error
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise _bad_reference(name, part, f"got {str(given)[:80]}")
    if not all(isinstance(step, str) and step.strip() for step in steps):
        raise _bad_reference(name, part, "a step is empty or no text")
    return Reference(tuple(steps))


def _bad_reference(name: str, part: Part, problem: str) -> DataError:
    return DataError(
        f"Row '{name}' of '{part.path}' has a malformed Reference: {problem}", expected='JSON like {"steps": ["first", "second"]}'
    )


def _targets(path: str) -> dict[str, tuple[str, ...]]:
    try:
        content: Any = parse_json(read_text(path, "affirmative targets"))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"'{path}' (affirmative targets) is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(
            f"'{path}' (affirmative targets) holds a {type(content).__name__}", expected="{BehaviorID: target or list of targets}"
        )
    found = {}
    for name, given in content.items():
        targets = [given] if isinstance(given, str) else given
        if not isinstance(targets, list) or not all(isinstance(target, str) and target.strip() for target in targets):
            raise DataError(f"The target of behavior '{name}' in '{path}' is {given!r}", expected="text, or a list of texts")
        found[name] = tuple(target.strip() for target in targets)
    return found
