"""What it costs to break an anchor: cases still unbroken by attack step, and success by queries and operations, with bands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refgeo.report.compare import across_seeds, has_interval
from refgeo.report.figures.curves import select
from refgeo.report.figures.style import Panel, arm_color, blank, color, label, spaced
from refgeo.report.quantities import range_of
from refgeo.report.rules import told
from refgeo.report.tables import arm_name, arm_order, estimates
from refgeo.statistics import Interval

Points = dict[float, Interval]


class Cost(NamedTuple):
    """One kind of panel: which metric of adaptive GCG over which column, and its words."""

    metric: str
    column: str
    title: str
    caption: str
    axis: str
    log: bool
    gated: bool = False


COSTS = (
    Cost(
        "survival",
        "at_step",
        "behaviors still unbroken",
        "Kaplan-Meier share of behaviors not yet broken after so many GCG steps, with pointwise 95% bands; one line per anchor, the "
        "start in gray. Apart bands mean different speed; a line that stays high says nothing of longer attacks.",
        "GCG steps spent",
        log=False,
    ),
    Cost(
        "asr_by_flops",
        "budget_flops",
        "success by operations",
        "Share of behaviors broken within so many floating-point operations each, judging included. Compare anchors at one budget, by "
        "their bands; beyond its own step limit a line cannot rise.",
        "FLOPs per behavior",
        log=True,
    ),
    Cost(
        "asr_by_queries",
        "budget_queries",
        "success by queries",
        "Share of behaviors broken within so many candidates scored each. Queries hide what gradients and judging cost.",
        "candidates per behavior",
        log=True,
    ),
)


def costs(stress: pd.DataFrame) -> list[Panel]:
    """Per kind of cost one panel per arm; none for tables of versions that did not count so."""
    panels = []
    for cost in COSTS:
        found = select(stress, "adaptive_gcg", cost.metric)
        if cost.column in found:
            panels += [_panel(found[found["arm"] == arm], cost, str(arm)) for arm in arm_order(found["arm"])]
    return panels


def cost_rows(stress: pd.DataFrame) -> pd.DataFrame:
    """The numbers of these panels as a table: where seeds differ in their places, each keeps its last value, which no other table has."""
    rows = []
    for cost in COSTS:
        for metric in (cost.metric, f"{cost.metric}_gated"):
            found = select(stress, "adaptive_gcg", metric)
            for (arm, step), part in found.groupby(["arm", "step"]) if cost.column in found else ():
                place = {"arm": arm, "step": step, "set": "adaptive_gcg", "metric": metric}
                rows += [{**place, cost.column: at, **one._asdict()} for at, one in carried(part, cost.column).items()]
    columns = ["arm", "step", "set", "metric", *(cost.column for cost in COSTS), "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def carried(rows: pd.DataFrame, column: str) -> Points:
    """Estimates over training seeds at every place that any seed has; a seed keeps its last value in between and after its end."""
    ordered = rows[rows[column].notna()].sort_values(column, kind="stable")
    seeds = [(part[column].to_numpy(dtype=np.float64), estimates(part)) for _, part in ordered.groupby("seed")]
    bounds = range_of(str(rows["metric"].iloc[0]))
    points: Points = {}
    for place in (float(place) for place in ordered[column].unique()):
        before = [int(np.searchsorted(places, place, side="right")) for places, _ in seeds]
        if all(before):
            points[place] = across_seeds([known[count - 1] for count, (_, known) in zip(before, seeds, strict=True)], bounds)
    return points


def _panel(rows: pd.DataFrame, cost: Cost, arm: str) -> Panel:
    figure = blank()
    lines: Mapping[int, Points] = {int(str(step)): carried(part, cost.column) for step, part in rows.groupby("step")}
    after = sorted(step for step in lines if step)
    ends: dict[str, float] = {}
    shown = [["anchor", cost.axis, "share"]]
    places = sorted({place for points in lines.values() for place in points})
    for step, points in sorted(lines.items()):
        name = "start" if step == 0 else str(step)
        strength = 1.0 if step == 0 else 0.35 + 0.65 * (after.index(step) + 1) / len(after)
        _draw(figure, arm, name, to_the_end(points, places[-1], cost), strength, cost)
        ends[name] = list(points.values())[-1].value
        shown += [["start" if step == 0 else f"step {step}", f"{place:g}", told(one)] for place, one in points.items()]
    last = max(places[-1], 1e-9)
    for name, height in spaced(ends, 0.09, 0.0, 1.0).items():
        ink = color("soft") if name == "start" else arm_color(arm)
        label(figure, name, math.log10(last) if cost.log else last, height, ink)
    if cost.log:
        decades = range(math.ceil(math.log10(max(places[0], 1e-9)) - 1e-9), math.floor(math.log10(last) + 1e-9) + 1)
        ticks = [10.0**decade for decade in decades]
        figure.update_xaxes(
            type="log",
            tickvals=ticks,
            ticktext=[f"{tick:,.0f}" if tick < 1e5 else f"10<sup>{math.log10(tick):.0f}</sup>" for tick in ticks],
        )
    figure.update_xaxes(title_text=cost.axis)
    figure.update_yaxes(range=[-0.04, 1.04], nticks=6)
    return Panel(f"{arm_name(arm)}: {cost.title}", cost.caption, figure, rows=shown)


def to_the_end(points: Points, last: float, cost: Cost) -> Points:
    """A line that has reached its end, every behavior broken, goes on level to the edge, where its name stands."""
    end = list(points.values())[-1]
    whole = 0.0 if cost.metric == "survival" else 1.0
    return {**points, last: end} if end.value == whole else points


def _draw(figure: go.Figure, arm: str, name: str, points: Points, strength: float, cost: Cost) -> None:
    ink = color("soft") if name == "start" else arm_color(arm)
    band = "other" if name == "start" else arm
    known = {place: one for place, one in points.items() if has_interval(one)}
    line = {"width": 0, "shape": "hv", "color": arm_color(band, "band")}
    for edge, fill in (([one.low for one in known.values()], None), ([one.high for one in known.values()], "tonexty")):
        figure.add_scatter(
            x=list(known), y=edge, mode="lines", line=line, fill=fill, fillcolor=arm_color(band, "band"), hoverinfo="skip", opacity=strength
        )
    figure.add_scatter(
        x=list(points),
        y=[one.value for one in points.values()],
        mode="lines+markers",
        opacity=strength,
        hoverinfo="text",
        line={"color": ink, "width": 2.2, "shape": "hv", "dash": "dot" if name == "start" else "solid"},
        marker={"size": 4, "color": ink},
        text=[f"{arm_name(arm)} {name}, {place:g} {cost.axis}<br>{told(one)}" for place, one in points.items()],
    )
