"""Tables for ``refgeo plan`` and ``refgeo status``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from rich.table import Table
from rich.text import Text

from refgeo.measures.sets import MAIN
from refgeo.study import layout
from refgeo.study.forms import OF_MEASURE
from refgeo.study.graph import Graph, Record, Stage
from refgeo.study.reading import read_table
from refgeo.study.screen import cost_key, describe, duration, learned, running
from refgeo.study.store import Store

HEADLINES = {
    "direct": ("behavior", "direct"),
    "fixed": ("behavior", "fixed"),
    "adaptive": ("stress", "adaptive_gcg"),
    "refused": ("behavior", "xstest_safe"),
    "utility": ("behavior", "audit"),
}
"""What ``status`` shows, by column: a measure and the set whose main number it is; of several budgets the full one."""
MARKS = {"done": ("+", "green"), "running": (">", "bold yellow"), "waiting": (".", "dim"), "stale": ("~", "red")}
"""How a stage may stand: its mark in one character that every terminal has, and the color of that."""
COLUMNS: dict[str, str] = {"checkpoint": "w", **{measure: measure[0] for measure in layout.MEASURES}}
"""What is made at an anchor, by kind of stage, and its letter at the head of the marks."""


def plan_table(graph: Graph, done: set[str], records: Mapping[str, Record | None]) -> Table:
    """What would run, why, and what each would cost: stages of one kind that have all this in common share a line."""
    costs = learned(graph, records)
    stale = {name for name in graph.stages if name not in done}
    groups: dict[tuple[str, str, str, str], list[Stage]] = {}
    for name, stage in graph.stages.items():
        if name in done:
            groups.setdefault((cost_key(stage), "done", "", ""), []).append(stage)
            continue
        state = "waits" if any(other in stale for other in graph.before(name)) else "to run"
        known = costs.get(cost_key(stage)) if stage.made_by is None else None
        cost = f"about {duration(known)}" if known is not None else stage.work
        groups.setdefault((cost_key(stage), state, graph.reason(name, records.get(name)), cost), []).append(stage)
    table = _table()
    table.add_column("stage", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for column in ("why", "cost of each"):
        table.add_column(column, overflow="fold", ratio=1)
    table.expand = True
    for (kind, state, why, cost), stages in groups.items():
        if state == "done":
            spent = sum(record.seconds for stage in stages if stage.made_by is None and (record := records.get(stage.id)))
            cost = f"{duration(spent)} in all" if spent else ""
        name = describe(stages[0]) if len(stages) == 1 else kind.replace("_", " ")
        table.add_row(name, str(len(stages)), state, why, cost, style="dim" if state == "done" else "")
    return table


def kind_table(store: Store, graph: Graph, done: set[str], records: Mapping[str, Record | None]) -> Table:
    """One row per kind of stage that belongs to no anchor (cases, training, reference, judge, report): how many are how far."""
    busy = {stage.id for stage, _ in running(store, graph, done)}
    kinds: dict[str, list[Stage]] = {}
    for stage in graph.stages.values():
        if stage.step is None:
            kinds.setdefault(stage.kind, []).append(stage)
    table = _table()
    table.add_column("stage", no_wrap=True)
    table.add_column("state")
    table.add_column("time", justify="right", no_wrap=True)
    for kind, stages in kinds.items():
        counts = Counter(_state(stage, done, busy, records.get(stage.id)) for stage in stages)
        told = ", ".join(f"{counts[state]} {state}" if len(stages) > 1 else state for state in MARKS if counts[state])
        known = [record.seconds for stage in stages if stage.id in done and (record := records.get(stage.id))]
        table.add_row(kind.replace("_", " "), told, duration(sum(known)) if known else "")
    return table


def anchor_table(store: Store, graph: Graph, done: set[str], records: Mapping[str, Record | None]) -> Table:
    """One row per anchor: a mark per measure, and its main numbers where they are there. ``legend`` says what the marks mean."""
    busy = {stage.id for stage, _ in running(store, graph, done)}
    table = _table()
    table.add_column("arm", no_wrap=True)
    for column in ("seed", "step"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(" ".join(COLUMNS.values()), no_wrap=True)
    for column in HEADLINES:
        table.add_column(column, justify="right", no_wrap=True)
    before: tuple[str, ...] = ()
    for place, stages in _anchors(graph):
        marks = Text()
        for kind in COLUMNS:
            state = _state(stages[kind], done, busy, records.get(stages[kind].id)) if kind in stages else ""
            marks.append(*MARKS.get(state, (" ", "")))
            marks.append(" ")
        arm, seed, step = place
        shown = ("" if place[:1] == before[:1] else arm, "" if place[:2] == before[:2] else seed)
        table.add_row(*shown, step, marks, *headlines(store, stages, done))
        before = place
    return table


def legend(store: Store, graph: Graph, done: set[str], records: Mapping[str, Record | None]) -> Text:
    """What the letters, the marks that occur and the numbers of ``anchor_table`` mean."""
    busy = {stage.id for stage, _ in running(store, graph, done)}
    anchored = [stage for stage in graph.stages.values() if stage.step is not None]
    found = {_state(stage, done, busy, records.get(stage.id)) for stage in anchored}
    text = Text(style="dim")
    text.append("   ".join(f"{mark} {state}" for state, (mark, _) in MARKS.items() if state in found) + "\n")
    letters = [f"{letter} {'weights' if kind == 'checkpoint' else kind}" for kind, letter in COLUMNS.items()]
    for line in (letters[:5], letters[5:]):
        text.append("   ".join(line) + "\n")
    text.append("direct, fixed, adaptive: attack success; refused: safe prompts; utility: 0 to 2")
    return text


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)


def _anchors(graph: Graph) -> Iterator[tuple[tuple[str, str, str], dict[str, Stage]]]:
    """Arm, seed and step of each anchor, and its stages by kind: the common start first, then by arm, seed and step."""
    rows: dict[tuple[str, int, int], dict[str, Stage]] = {}
    for stage in graph.stages.values():
        if stage.step is not None:
            rows.setdefault((stage.arm or "start", stage.seed or 0, stage.step), {})[stage.kind] = stage
    order = list(dict.fromkeys(["start", *(arm for arm, _, _ in rows)]))
    for (arm, seed, step), stages in sorted(rows.items(), key=lambda row: (order.index(row[0][0]), *row[0][1:])):
        yield (arm, "", "") if arm == "start" else (arm, str(seed), str(step)), stages


def headlines(store: Store, stages: Mapping[str, Stage], done: set[str]) -> Iterator[str]:
    """The numbers of one anchor in the order of ``HEADLINES``; empty while they are not there."""
    for measure, set_name in HEADLINES.values():
        stage = stages.get(measure)
        if stage is None or stage.id not in done:
            yield ""
            continue
        rows = read_table(store.run / stage.folder / layout.TABLE, OF_MEASURE[measure])
        values = rows.loc[(rows["set"] == set_name) & (rows["metric"] == MAIN[set_name]) & (rows["subset"] == "all"), "value"]
        yield f"{values.iloc[-1]:.2f}" if len(values) else ""


def _state(stage: Stage, done: set[str], busy: set[str], record: Record | None) -> str:
    """One of ``MARKS``."""
    if stage.id in done:
        return "done"
    if stage.id in busy:
        return "running"
    return "waiting" if record is None else "stale"
