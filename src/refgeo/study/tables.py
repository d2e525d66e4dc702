"""Tables for ``refgeo plan`` and ``refgeo status``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from refgeo.study import layout, progress
from refgeo.study.graph import Graph, Record, Stage
from refgeo.study.reading import read_table
from refgeo.study.screen import cost_key, describe, duration, how_far, learned, running
from refgeo.study.store import Store

HEADLINES = {
    "direct": ("behavior", "asr_direct"),
    "fixed": ("behavior", "asr_fixed"),
    "adaptive": ("stress", "asr_adaptive_gcg"),
    "safe refused": ("behavior", "any_refusal_safe"),
    "utility": ("behavior", "utility_mean"),
}
"""The numbers that ``status`` shows, by column: the measure and the metric of its table."""


def plan_table(graph: Graph, done: set[str], records: Mapping[str, Record | None]) -> Table:
    """Every stage, whether it would run, why, and what it would cost."""
    costs = learned(graph, records)
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "why", "cost"):
        table.add_column(column, overflow="fold")
    stale = {name for name in graph.stages if name not in done}
    for name, stage in graph.stages.items():
        if name in done:
            record = records[name]
            table.add_row(describe(stage), "done", "", duration(record.seconds) if record and stage.made_by is None else "", style="dim")
            continue
        why = graph.reason(name, records.get(name))
        state = "waits" if any(other in stale for other in graph.before(name)) else "to run"
        known = costs.get(cost_key(stage)) if stage.made_by is None else None
        cost = f"about {duration(known)}" if known is not None else stage.work
        table.add_row(describe(stage), state, why, cost)
    return table


def work_table(store: Store, graph: Graph, done: set[str], records: Mapping[str, Record | None]) -> Table:
    """The stages that belong to no anchor: cases, training, reference, report."""
    active = {stage.id: state for stage, state in running(store, graph, done)}
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "time"):
        table.add_column(column, overflow="fold")
    for name, stage in graph.stages.items():
        if stage.step is None:
            record = records.get(name)
            time = duration(record.seconds) if name in done and record else ""
            table.add_row(describe(stage), _state(stage, done, active, record), time)
    return table


def anchor_table(store: Store, graph: Graph, done: set[str], records: Mapping[str, Record | None]) -> Table:
    """One row per anchor: how far each measure is."""
    active = {stage.id: state for stage, state in running(store, graph, done)}
    kinds = ("checkpoint", *layout.MEASURES)
    table = Table(box=None, pad_edge=False)
    for column in ("anchor", "weights", *layout.MEASURES):
        table.add_column(column, overflow="fold")
    for name, stages in _anchors(graph):
        cells = [_state(stages[kind], done, active, records.get(stages[kind].id)) if kind in stages else "" for kind in kinds]
        table.add_row(name, *cells)
    return table


def number_table(store: Store, graph: Graph, done: set[str]) -> Table:
    """One row per anchor that has numbers: the last of the main ones."""
    table = Table(box=None, pad_edge=False)
    table.add_column("anchor")
    for column in HEADLINES:
        table.add_column(column, justify="right")
    for name, stages in _anchors(graph):
        numbers = list(headlines(store, stages, done))
        if any(numbers):
            table.add_row(name, *numbers)
    return table


def _anchors(graph: Graph) -> Iterator[tuple[str, dict[str, Stage]]]:
    """The stages of each anchor by kind, the common start first, then by arm, seed and step."""
    rows: dict[tuple[str, int, int], dict[str, Stage]] = {}
    for stage in graph.stages.values():
        if stage.step is not None:
            rows.setdefault((stage.arm or "start", stage.seed or 0, stage.step), {})[stage.kind] = stage
    order = list(dict.fromkeys(["start", *(arm for arm, _, _ in rows)]))
    for (arm, seed, step), stages in sorted(rows.items(), key=lambda row: (order.index(row[0][0]), *row[0][1:])):
        yield arm if arm == "start" else f"{arm} seed {seed} step {step}", stages


def headlines(store: Store, stages: Mapping[str, Stage], done: set[str]) -> Iterator[str]:
    """The numbers of one anchor in the order of ``HEADLINES``; empty while they are not there."""
    for measure, metric in HEADLINES.values():
        stage = stages.get(measure)
        if stage is None or stage.id not in done:
            yield ""
            continue
        rows = read_table(store.run / stage.folder / layout.TABLE, ("metric", "subset", "value"))
        values = rows.loc[(rows["metric"] == metric) & (rows["subset"] == "all"), "value"]
        yield f"{values.iloc[-1]:.2f}" if len(values) else ""


def _state(stage: Stage, done: set[str], active: Mapping[str, progress.Progress | None], record: Record | None) -> str:
    if stage.id in done:
        return "done"
    if stage.id in active:
        return how_far(active[stage.id])
    return "waits" if record is None else "stale"
