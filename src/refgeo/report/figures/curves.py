"""Quantities over training steps: one line per arm, intervals as bands, single seeds as thin lines, names at the ends of the lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refgeo.report.compare import across_seeds, has_interval
from refgeo.report.figures.style import Panel, arm_color, blank, label, reason, spaced, step_ticks
from refgeo.report.quantities import range_of
from refgeo.report.rules import told
from refgeo.report.tables import arm_name, arm_order, estimates
from refgeo.statistics import Interval

Limits = tuple[float | None, float | None]
Point = tuple[int, Interval, int]
QUIET = "\u00a0"


@dataclass(frozen=True)
class Line:
    """Which rows make one line of a panel. ``arms`` empty: one line for every arm in the table."""

    set: str
    metric: str
    identity: Mapping[str, object] = field(default_factory=dict)
    name: str = ""
    dash: str = "solid"
    arms: tuple[str, ...] = ()


class _End(NamedTuple):
    """Where a line ends, its color and its arm."""

    x: int
    y: float
    ink: str
    arm: str


def select(table: pd.DataFrame, set_name: str, metric: str, identity: Mapping[str, object] | None = None) -> pd.DataFrame:
    """The rows of one quantity over the whole set."""
    wanted = {"metric": metric, "set": set_name, "subset": "all", **(identity or {})}
    return table[_where(table, wanted) & table["value"].notna().to_numpy()]


def match(table: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    """The rows that have these values; none when a column does not exist."""
    return table[_where(table, wanted)]


def _where(table: pd.DataFrame, wanted: Mapping[str, object]) -> np.ndarray:
    """Which rows; taking them once is much faster than column by column."""
    keep = np.ones(len(table), dtype=bool)
    for column, value in wanted.items():
        keep &= (table[column] == value).to_numpy(dtype=bool, na_value=False) if column in table else False
    return keep


def full_budget(stress: pd.DataFrame) -> pd.DataFrame:
    """The rows of the largest attack budget of each anchor."""
    if "attack_steps" not in stress or stress.empty:
        return stress
    most = stress.groupby(["arm", "seed", "step", "set"])["attack_steps"].transform("max")
    return stress[stress["attack_steps"] == most]


def by_step(rows: pd.DataFrame) -> list[Point]:
    """Per step the estimate over seeds and how many seeds; a step that some seed lacks is left out."""
    seeds = rows["seed"].nunique()
    points = []
    for step, group in rows.groupby("step"):
        if group["seed"].nunique() == seeds:
            points.append((int(str(step)), across_seeds(estimates(group), range_of(str(group["metric"].iloc[0]))), seeds))
    return points


def curve(
    title: str,
    caption: str,
    lines: Sequence[tuple[pd.DataFrame, Line]],
    limits: Limits = (0.0, 1.0),
    missing: str = "",
    group: str = "",
) -> Panel:
    """A panel of lines over steps. Limits bound what is drawn: an interval over few seeds may exceed what a rate can be. None: data and 0.

    A line whose name is ``QUIET`` has no words at its end unless it is its arm's only one; the caption says what it is.
    """
    figure = blank()
    ends: dict[str, _End] = {}
    steps: list[int] = []
    rows: list[list[str]] = [["", "step", "value and 95% interval"]]
    for table, line in lines:
        found = select(table, line.set, line.metric, line.identity)
        for arm in line.arms or arm_order(found["arm"]):
            part = found[found["arm"] == arm]
            points = by_step(part)
            if not points:
                continue
            quiet = line.name == QUIET
            name = line.name if line.arms and line.name else f"{arm_name(arm)} {line.name}".strip()
            known = measured_steps(match(table, {"set": line.set, **line.identity}), arm)
            if points[0][2] > 1:
                _draw_seeds(figure, arm, name, line.dash, part, known)
            _draw(figure, arm, name, line.dash, segments(points, known), limits)
            end = _End(points[-1][0], points[-1][1].value, arm_color(arm), arm)
            if not quiet:
                ends[name] = end
            else:
                ends.setdefault(arm_name(arm), end)
            steps += [step for step, _, _ in points]
            told_name = f"{arm_name(arm)}, dotted" if quiet else name
            rows += [[told_name, str(step), told(estimate, seeds)] for step, estimate, seeds in points]
    if not ends:
        return Panel(title, caption, missing=missing or reason("the table", lines[0][1].metric), group=group)
    _finish(figure, steps, ends, limits)
    return Panel(title, caption, figure, rows=rows, group=group)


def measured_steps(table: pd.DataFrame, arm: str) -> list[int]:
    """Steps at which every seed of an arm has rows in a table, of whatever quantity."""
    rows = table[table["arm"] == arm]
    per_seed = [set(part["step"].astype(int)) for _, part in rows.groupby("seed")]
    return sorted(set.intersection(*per_seed)) if per_seed else []


def segments(points: Sequence[Point], steps: Sequence[int]) -> list[list[Point]]:
    """Points in runs without a gap: a line must not bridge an anchor that was measured but has no such value."""
    rank = {step: place for place, step in enumerate(steps)}
    runs: list[list[Point]] = []
    for point in points:
        if runs and rank.get(point[0], 0) == rank.get(runs[-1][-1][0], 0) + 1:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _draw_seeds(figure: go.Figure, arm: str, name: str, dash: str, rows: pd.DataFrame, known: Sequence[int]) -> None:
    thin = {"width": 1, "color": arm_color(arm, "thin"), "dash": dash}
    for seed, one in rows.sort_values("step").groupby("seed"):
        points = [(int(step), estimate, 1) for step, estimate in zip(one["step"], estimates(one), strict=True)]
        for run in segments(points, sorted({*known, *(point[0] for point in points)})):
            text = [f"{name}, seed {seed}, step {step}<br>{told(estimate)}" for step, estimate, _ in run]
            x, y = [step for step, _, _ in run], [estimate.value for _, estimate, _ in run]
            of = {"arm": arm, "seed": int(str(seed))}
            figure.add_scatter(x=x, y=y, mode="lines", line=thin, text=text, hoverinfo="text", meta=of)


def _draw(figure: go.Figure, arm: str, name: str, dash: str, runs: Sequence[Sequence[Point]], limits: Limits) -> None:
    low, high = (-np.inf if limits[0] is None else limits[0]), (np.inf if limits[1] is None else limits[1])
    of = {"arm": arm}
    for run in runs:
        banded = [(step, max(one.low, low), min(one.high, high)) for step, one, _ in run if has_interval(one)]
        if dash == "solid" and len(banded) > 1:
            along = [step for step, _, _ in banded]
            edge = [top for _, _, top in banded] + [bottom for _, bottom, _ in reversed(banded)]
            hull = {"fill": "toself", "fillcolor": arm_color(arm, "band"), "line": {"width": 0}}
            figure.add_scatter(x=along + along[::-1], y=edge, hoverinfo="skip", mode="lines", meta=of, **hull)
        else:  # several bands of one color would hide each other
            for step, bottom, top in banded:
                thin = {"width": 1.2, "color": arm_color(arm, "thin")}
                figure.add_scatter(x=[step, step], y=[bottom, top], mode="lines", line=thin, hoverinfo="skip", meta=of)
        figure.add_scatter(
            x=[step for step, _, _ in run],
            y=[one.value for _, one, _ in run],
            mode="lines+markers",
            line={"width": 2.4, "color": arm_color(arm), "dash": dash},
            marker={"size": 6, "color": arm_color(arm)},
            text=[f"{name}, step {step}<br>{told(one, seeds)}" for step, one, seeds in run],
            hoverinfo="text",
            cliponaxis=False,
            meta=of,
        )


def _finish(figure: go.Figure, steps: Sequence[int], ends: dict[str, _End], limits: Limits) -> None:
    values = [value for trace in figure.data for value in trace.y if value is not None and np.isfinite(value)]
    bottom = min(*values, 0.0) if limits[0] is None else limits[0]
    top = max(*values, bottom + 1e-6, 0.0) if limits[1] is None else limits[1]
    pad = 0.04 * (top - bottom) or 0.5
    figure.update_yaxes(range=[bottom - pad, top + pad], nticks=6)
    longest = max(len(name) for name in ends)
    ticks = step_ticks(steps, 0.10 + 0.006 * longest)
    span = max(ticks) - min(ticks) or 1
    figure.update_xaxes(
        tickvals=ticks,
        ticktext=[str(step) for step in ticks],
        range=[min(ticks) - 0.03 * span, max(ticks) + 0.03 * span],
        title_text="training step",
    )
    places = spaced({name: end.y for name, end in ends.items()}, 0.085 * (top - bottom + 2 * pad), bottom, top)
    figure.update_layout(margin_r=18 + 7 * longest)
    for name, end in ends.items():
        label(figure, name, end.x, places[name], end.ink, name=end.arm)
