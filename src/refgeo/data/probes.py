"""Harmful and harmless probe prompts, from one labeled file, two files, or lists of instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from refgeo.config.data import Part, Source
from refgeo.data.cells import check_unique, evenly, one_of, plain, required, some, text
from refgeo.data.findings import Findings
from refgeo.data.rows import Probe
from refgeo.data.tables import read_rows
from refgeo.errors import DataError

Split = Literal["estimate", "validate"]
SPLITS: tuple[Split, ...] = ("estimate", "validate")
LABELS = {"harmful": True, "unsafe": True, "1": True, "harmless": False, "safe": False, "0": False}


def load_probes(source: Source, findings: Findings | None = None) -> list[Probe]:
    """Probe prompts, each for estimating or for validating directions.

    The label is in a column, or in ``label`` of the part. Without a split column the probes of each label are drawn evenly:
    ``source.estimate`` and ``source.held_out`` of them, in that proportion when there are fewer. A prompt that comes again with the
    same label is left out and recorded. Raises ``DataError`` when a prompt has both labels or is in both splits, or when a split
    lacks harmful or harmless prompts.
    """
    given: list[tuple[Probe, bool]] = [item for number, part in enumerate(source.parts) for item in _part(part, number, findings)]
    check_unique((probe.id for probe, _ in given), source.path)
    found = _once(given, source, findings)
    split = [probe for probe, has_split in found if has_split]
    for harmful in (True, False):
        split += _drawn([probe for probe, has_split in found if not has_split and probe.harmful == harmful], source)
    chosen = evenly(split, source.limit)
    for wanted in SPLITS:
        for harmful in (True, False):
            if not any(probe.split == wanted and probe.harmful == harmful for probe in chosen):
                raise DataError(
                    f"'{source.path}' has no {'harmful' if harmful else 'harmless'} probe in split '{wanted}'",
                    expected="harmful and harmless probes in both splits",
                    fix="Add rows, or a part with the other label under more, or raise limit",
                )
    return chosen


def _part(part: Part, place: int, findings: Findings | None) -> list[tuple[Probe, bool]]:
    columns = ("prompt",) if part.label is not None else ("prompt", "label")
    rows = read_rows(part, columns, words="prompt", fill={} if part.label is None else {"label": part.label}, findings=findings)
    numbered = not any("id" in row for row in rows)
    divided = any("split" in row for row in rows)
    probes = []
    for number, row in enumerate(rows, start=1):
        name = f"probe-{place}-{number:05d}" if numbered else required(row, "id", "?", part)
        label = part.label or text(row, "label").lower()
        one_of(label, tuple(LABELS), "label", name, part)
        if divided:
            one_of(text(row, "split"), SPLITS, "split", name, part)
        split: Split = "validate" if text(row, "split") == "validate" else "estimate"
        probes.append((Probe(name, required(row, "prompt", name, part), LABELS[label], split), divided))
    return probes


def _once(given: Sequence[tuple[Probe, bool]], source: Source, findings: Findings | None) -> list[tuple[Probe, bool]]:
    """Each prompt once."""
    first: dict[str, tuple[Probe, bool]] = {}
    again = []
    for probe, divided in given:
        known, known_divided = first.setdefault(plain(probe.request), (probe, divided))
        if known is probe:
            continue
        if known.harmful != probe.harmful or (divided and known_divided and known.split != probe.split):
            problem = "both labels" if known.harmful != probe.harmful else "both splits"
            raise DataError(
                f"'{source.path}' repeats prompt in rows {some((known.id, probe.id))}, with {problem}",
                expected="every prompt with one label and in one split",
                fix="Remove one of the rows",
            )
        again.append(probe.id)
    if findings is not None:
        findings.add(source.path, "repeated prompts", again, "left out")
    return list(first.values())


def _drawn(probes: Sequence[Probe], source: Source) -> list[Probe]:
    """Probes of one label without a split, divided evenly over their order."""
    wanted = source.estimate + source.held_out
    chosen = evenly(probes, wanted)
    held = round(len(chosen) * source.held_out / wanted)
    validate = set(evenly(range(len(chosen)), held)) if held else set()
    return [replace(probe, split="validate" if place in validate else "estimate") for place, probe in enumerate(chosen)]
