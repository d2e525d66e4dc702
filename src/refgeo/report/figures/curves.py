"""Quantities over training steps: one line per arm, intervals as bands, single seeds as thin lines, names at the ends of the lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refgeo.report.compare import across_seeds, has_interval
from refgeo.report.figures.style import Panel, arm_color, arm_name, blank, label, reason, spaced, step_ticks, told
from refgeo.statistics import Interval


@dataclass(frozen=True)
class Line:
    """Which rows make one line of a panel. ``arms`` empty: one line for every arm in the table."""

    set: str
    metric: str
    identity: Mapping[str, object] = field(default_factory=dict)
    name: str = ""
    dash: str = "solid"
    arms: tuple[str, ...] = ()


def select(table: pd.DataFrame, set_name: str, metric: str, identity: Mapping[str, object] | None = None) -> pd.DataFrame:
    """The rows of one quantity over the whole set."""
    found = table
    for column, value in {"set": set_name, "metric": metric, "subset": "all", **(identity or {})}.items():
        found = found[found[column] == value] if column in found else found.iloc[:0]
    return found[found["value"].notna()]


def by_step(rows: pd.DataFrame) -> list[tuple[int, Interval, int]]:
    """Per step the estimate over seeds and how many seeds; a step that some seed lacks is left out."""
    seeds = rows["seed"].nunique()
    points = []
    for step, group in rows.groupby("step"):
        if group["seed"].nunique() == seeds:
            estimates = [Interval(float(one.value), float(one.low), float(one.high), int(one.n)) for one in group.itertuples()]
            points.append((int(str(step)), across_seeds(estimates), seeds))
    return points


def curve(
    title: str,
    caption: str,
    lines: Sequence[tuple[pd.DataFrame, Line]],
    limits: tuple[float, float] | None = (0.0, 1.0),
    missing: str = "",
    group: str = "",
) -> Panel:
    """A panel of lines over steps. Limits bound what is drawn (an interval over few seeds may exceed what a rate can be)."""
    figure = blank()
    ends: dict[str, tuple[float, str]] = {}
    steps: list[int] = []
    rows: list[list[str]] = [["", "step", "value and 95% interval"]]
    for table, line in lines:
        found = select(table, line.set, line.metric, line.identity)
        for arm in line.arms or tuple(dict.fromkeys(found["arm"])):
            part = found[found["arm"] == arm]
            points = by_step(part)
            if not points:
                continue
            name = f"{arm_name(arm)} {line.name}".strip() if not line.arms else line.name or arm_name(arm)
            _draw(figure, arm, name, line.dash, part, points, limits)
            ends[name] = (points[-1][1].value, arm_color(arm))
            steps += [step for step, _, _ in points]
            rows += [[name, str(step), told(*estimate, seeds)] for step, estimate, seeds in points]
    if not ends:
        return Panel(title, caption, missing=missing or reason(lines[0][1].metric), group=group)
    _finish(figure, steps, ends, limits)
    return Panel(title, caption, figure, rows=rows, group=group)


def _draw(
    figure: go.Figure,
    arm: str,
    name: str,
    dash: str,
    rows: pd.DataFrame,
    points: Sequence[tuple[int, Interval, int]],
    limits: tuple[float, float] | None,
) -> None:
    x = [step for step, _, _ in points]
    low, high = limits or (-np.inf, np.inf)
    banded = [(step, max(one.low, low), min(one.high, high)) for step, one, _ in points if has_interval(one)]
    if len(banded) > 1:
        along = [step for step, _, _ in banded]
        edge = [top for _, _, top in banded] + [bottom for _, bottom, _ in reversed(banded)]
        figure.add_scatter(x=along + along[::-1], y=edge, fill="toself", fillcolor=arm_color(arm, "band"), line={"width": 0}, hoverinfo="skip", mode="lines")
    seeds = points[0][2]
    if seeds > 1:
        for seed, one in rows.sort_values("step").groupby("seed"):
            text = [f"{name}, seed {seed}, step {row.step}<br>{told(row.value, row.low, row.high, row.n)}" for row in one.itertuples()]
            figure.add_scatter(
                x=one["step"].tolist(), y=one["value"].tolist(), mode="lines", line={"width": 1, "color": arm_color(arm, "thin"), "dash": dash}, text=text, hoverinfo="text"
            )
    figure.add_scatter(
        x=x,
        y=[one.value for _, one, _ in points],
        mode="lines+markers",
        line={"width": 2.4, "color": arm_color(arm), "dash": dash},
        marker={"size": 6, "color": arm_color(arm)},
        text=[f"{name}, step {step}<br>{told(*one, seeds)}" for step, one, _ in points],
        hoverinfo="text",
    )


def _finish(figure: go.Figure, steps: Sequence[int], ends: dict[str, tuple[float, str]], limits: tuple[float, float] | None) -> None:
    values = [value for trace in figure.data for value in trace.y if value is not None and np.isfinite(value)]
    bottom, top = limits or (min(values), max(values))
    pad = 0.04 * (top - bottom) or 0.5
    figure.update_yaxes(range=[bottom - pad, top + pad], nticks=6)
    ticks = step_ticks(steps)
    span = max(ticks) - min(ticks) or 1
    figure.update_xaxes(tickvals=ticks, ticktext=[str(step) for step in ticks], range=[min(ticks) - 0.03 * span, max(ticks) + 0.03 * span], title_text="training step")
    places = spaced({name: value for name, (value, _) in ends.items()}, 0.085 * (top - bottom + 2 * pad))
    longest = max(len(name) for name in ends)
    figure.update_layout(margin_r=18 + 7 * longest)
    for name, (_, ink) in ends.items():
        label(figure, name, max(steps), places[name], ink)
