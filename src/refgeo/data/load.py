"""One loader per kind of set: a local file, a URL or a hub dataset in, checked rows out.

What cannot be used raises ``DataError``; what is unusual but usable is recorded in ``findings``, where the caller asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refgeo.config.data import Source
from refgeo.data.behaviors import check_disjoint, load_behaviors, overlap, read_reference
from refgeo.data.cells import check_unique, evenly, one_of, plain, repeated, required, text
from refgeo.data.conversations import check_not_asked, load_chat
from refgeo.data.findings import Findings
from refgeo.data.probes import load_probes
from refgeo.data.rows import Prompt
from refgeo.data.tables import read_lines, read_rows
from refgeo.errors import DataError

__all__ = [
    "check_disjoint",
    "check_not_asked",
    "load_audit",
    "load_behaviors",
    "load_chat",
    "load_filler",
    "load_probes",
    "load_strongreject",
    "load_xstest",
    "overlap",
]


def load_xstest(source: Source, findings: Findings | None = None) -> list[Prompt]:
    """XSTest prompts. Without a label, types that begin with ``contrast_`` are unsafe and all others safe.

    Lines of a txt file are safe prompts of the type ``own``.
    """
    return _prompts(source, "prompt", ("prompt", "type"), "type", None, {"type": "own"}, "prompt", findings)


def load_strongreject(source: Source, findings: Findings | None = None) -> list[Prompt]:
    """StrongREJECT prompts; they have no id, so the row number is theirs."""
    return _prompts(
        source, "forbidden_prompt", ("category", "forbidden_prompt"), "category", False, {"category": "own"}, "strongreject", findings
    )


def load_audit(source: Source, findings: Findings | None = None) -> list[Prompt]:
    """Prompts of the benign-utility audit, safe by construction; ``kind`` is the bucket."""
    return _prompts(source, "prompt", ("bucket", "prompt"), "bucket", True, {"bucket": "own"}, "audit", findings)


def load_filler(path: str) -> list[str]:
    """Harmless words or phrases, one per line."""
    return read_lines(path, "filler words")


def _prompts(
    source: Source,
    words: str,
    columns: Sequence[str],
    kind: str,
    safe: bool | None,
    fill: Mapping[str, str],
    prefix: str,
    findings: Findings | None,
) -> list[Prompt]:
    """Prompts of all parts; ``safe`` of None is read from the label, or from the type."""
    prompts = []
    place = 0
    for part in source.parts:
        rows = read_rows(part, columns, words=words, fill=fill, findings=findings)
        numbered = not any("id" in row for row in rows)
        for row in rows:
            place += 1
            name, sort = f"{prefix}-{place:04d}" if numbered else text(row, "id"), text(row, kind)
            content = required(row, words, name, part)
            if not name:
                raise DataError(f"A row of '{part.path}' has no id: {content[:60]!r}", expected="an id in every row")
            harmless = safe
            if harmless is None:
                sort = required(row, kind, name, part)
                label = text(row, "label") or ("unsafe" if sort.startswith("contrast_") else "safe")
                one_of(label, ("safe", "unsafe"), "label", name, part)
                harmless = label == "safe"
            prompts.append(Prompt(name, content, sort, harmless, read_reference(row, name, part)))
    check_unique((prompt.id for prompt in prompts), source.path)
    if findings is not None:
        findings.add(source.path, "repeated prompts", repeated((prompt.id, plain(prompt.request)) for prompt in prompts), "kept")
    return evenly(prompts, source.limit)
