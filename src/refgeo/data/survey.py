"""What a study's sets hold and what is unusual about them, as one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from refgeo.config.data import DataSettings
from refgeo.data.behaviors import load_behaviors, overlap
from refgeo.data.cells import plain
from refgeo.data.conversations import asked_in
from refgeo.data.findings import Findings
from refgeo.data.load import load_audit, load_chat, load_probes, load_strongreject, load_xstest
from refgeo.data.rows import Behavior

COLUMNS = ["set", "what", "n", "rows", "done"]
SHOWN = 20
"""Ids that a line of the table names."""


def survey(data: DataSettings) -> pd.DataFrame:
    """Size of every set and part of it, blank and repeated rows, and the overlaps between sets.

    One line per count: set, what, n, the ids concerned (the first ``SHOWN``) and what was done with them. Raises ``DataError`` as the
    loaders do; an overlap of clean test behaviors with the training behaviors is counted here and refused by ``check_disjoint``. Prompts
    that the clean chat asks as well are counted, since their answers may have been trained.
    """
    lines: list[tuple[str, str, int, str, str]] = []

    def counted(name: str, groups: Iterable[str], findings: Findings) -> None:
        counts = Counter(groups)
        lines.append((name, "rows", sum(counts.values()), "", ""))
        lines.extend((name, f"rows: {group}", count, "", "") for group, count in sorted(counts.items()) if len(counts) > 1)
        lines.extend((name, found.what, len(found.rows), _named(found.rows), found.done) for found in findings)

    behaviors: dict[str, list[Behavior]] = {}
    for name in ("behaviors_train", "behaviors_val", "behaviors_test"):
        source = getattr(data, name)
        if source is not None:
            found = Findings()
            behaviors[name] = load_behaviors(source, need_targets=False, findings=found)
            counted(name, (behavior.subset for behavior in behaviors[name]), found)
    found = Findings()
    probes = load_probes(data.probes, found)
    counted("probes", (f"{'harmful' if probe.harmful else 'harmless'}, {probe.split}" for probe in probes), found)
    found = Findings()
    chats = load_chat(data.chat, found)
    counted("chat", ("" for _ in chats), found)
    words = {"probes": {probe.id: plain(probe.request) for probe in probes if probe.harmful}}
    for name, loader in (("strongreject", load_strongreject), ("xstest", load_xstest), ("audit", load_audit)):
        source = getattr(data, name)
        if source is not None:
            found = Findings()
            prompts = loader(source, found)
            counted(name, (prompt.kind for prompt in prompts), found)
            words[name] = {prompt.id: plain(prompt.request) for prompt in prompts}
    train, test = behaviors["behaviors_train"], behaviors["behaviors_test"]
    shared = overlap([*train, *behaviors.get("behaviors_val", [])], test)
    for clean in (True, False):
        ids = [behavior.id for behavior in shared if behavior.clean == clean]
        what = "in the training or validation behaviors" + ("" if clean else ", as declared")
        lines.append(("behaviors_test", what, len(ids), _named(ids), ("refused" if clean else "reported apart") if ids else ""))
    for name, trained in (("behaviors_train", train), ("behaviors_test", test)):
        known = {plain(behavior.request) for behavior in trained}
        for other, asked in words.items():
            ids = [key for key, prompt in asked.items() if prompt in known]
            if ids:
                lines.append((other, f"prompts that are in {name}", len(ids), _named(ids), "kept"))
    words["probes"] = {probe.id: probe.request for probe in probes}
    words["behaviors_test"] = {behavior.id: behavior.request for behavior in test}
    for other, asked in words.items():  # What training answers is no longer new to the model.
        ids = asked_in(chats, asked)
        if ids:
            lines.append((other, "prompts that are asked in chat", len(ids), _named(ids), "kept"))
    return pd.DataFrame(lines, columns=COLUMNS)


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
