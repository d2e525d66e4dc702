"""Robustness against usefulness, one path per arm from the start through its anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from refgeo.report.figures.curves import by_step, full_budget, select
from refgeo.report.figures.style import Panel, arm_color, blank, color, label, whiskers
from refgeo.report.rules import number, told
from refgeo.report.tables import Tables, arm_name, arm_order
from refgeo.statistics import Interval

NONSENSE = 0.5
"""An anchor that answers more of its attacked prompts with nonsense than this is drawn as a cross: that is no robustness."""


@dataclass(frozen=True)
class _Axis:
    """Which rows give a coordinate. ``flip``: 1 minus the rate."""

    table: pd.DataFrame
    set: str
    metric: str
    words: str
    limits: tuple[float, float] = (0.0, 1.0)
    flip: bool = False

    def points(self, arm: str, metric: str = "") -> dict[int, Interval]:
        """The estimate at every step that all seeds have."""
        found = select(self.table, self.set, metric or self.metric)
        points = {step: one for step, one, _ in by_step(found[found["arm"] == arm])}
        if not self.flip or metric:
            return points
        return {step: Interval(1 - one.value, 1 - one.high, 1 - one.low, one.n) for step, one in points.items()}


class _Point(NamedTuple):
    step: int
    across: Interval
    up: Interval
    nonsense: float


def frontier(tables: Tables) -> list[Panel]:
    """Utility and willingness against robustness to the frozen attack, and utility against robustness to the adaptive one."""
    robust = "robustness (1 \u2212 ASR)"
    frozen = _Axis(tables.behavior, "fixed", "asr_fixed", robust, flip=True)
    adaptive = _Axis(full_budget(tables.stress), "adaptive_gcg", "asr_adaptive_gcg", robust, flip=True)
    useful = _Axis(tables.behavior, "audit", "utility_mean", "benign utility (0 to 2)", (0.0, 2.0))
    willing = _Axis(tables.behavior, "xstest_safe", "any_refusal_safe", "safe prompts not refused", flip=True)
    cross = "A cross: more than half of the attacked answers are nonsense."
    return [
        _panel("Useful and robust to the frozen attack", f"Numbers on the path are training steps. {cross}", tables, useful, frozen),
        _panel(
            "Willing and robust to the frozen attack", "Right: safe prompts that are answered rather than refused.", tables, willing, frozen
        ),
        _panel(
            "Useful and robust to an attack that adapts", "The same path against GCG optimized on each anchor.", tables, useful, adaptive
        ),
    ]


def _panel(title: str, caption: str, tables: Tables, across: _Axis, up: _Axis) -> Panel:
    figure = blank(height=360, left=46, right=20)
    rows = [["arm", "step", across.words, up.words, "nonsense under attack"]]
    paths: dict[str, list[_Point]] = {}
    for arm in arm_order(tables.behavior["arm"])[::-1]:
        horizontal, vertical, nonsense = across.points(arm), up.points(arm), up.points(arm, "degenerate")
        steps = sorted(horizontal.keys() & vertical.keys())
        garbled = {step: nonsense[step].value if step in nonsense else 0.0 for step in steps}
        if len(steps) > 1:
            paths[arm] = [_Point(step, horizontal[step], vertical[step], garbled[step]) for step in steps]
            rows += [[arm_name(arm), str(one.step), told(one.across), told(one.up), number(one.nonsense)] for one in paths[arm]]
    if not paths:
        words = f"Needs {across.metric} and {up.metric} at two anchors or more; this run has not measured both."
        return Panel(title, caption, missing=words, wide=True)
    placed: list[tuple[float, float]] = []
    spots = [_spot(point, across.limits) for points in paths.values() for point in points]
    for arm, points in paths.items():
        _draw(figure, arm, points, across.limits)
    for arm, points in paths.items():  # the ends have the first choice of room
        _name(figure, arm, points[-1], f"<b>{arm_name(arm)} {points[-1].step}</b>", across.limits, placed, spots, always=True)
    starts = [(arm, points[0]) for arm, points in paths.items() if points[0].step == 0]
    for arm, point in starts[:1]:
        _name(figure, arm, point, "start", across.limits, placed, spots, always=True)
    for arm, points in paths.items():
        for point in points[:-1]:
            if point.step > 0:
                _name(figure, arm, point, str(point.step), across.limits, placed, spots)
    pad = 0.05 * (across.limits[1] - across.limits[0])
    figure.update_xaxes(range=[across.limits[0] - pad, across.limits[1] + pad], title_text=across.words, showgrid=True, nticks=6)
    figure.update_yaxes(range=[-0.07, 1.1], title_text=up.words, nticks=6)
    return Panel(title, caption, figure, rows=rows)


def _draw(figure: go.Figure, arm: str, points: Sequence[_Point], limits: tuple[float, float]) -> None:
    ink = arm_color(arm)
    marker = {
        "size": [12.0 if one is points[-1] else 8.0 for one in points],
        "symbol": ["x-thin" if one.nonsense > NONSENSE else "circle" for one in points],
        "color": [color("paper") if one.step == 0 else ink for one in points],
        "opacity": 1,
        "line": {
            "color": [color("other") if one.step == 0 else ink for one in points],
            "width": [2.4 if one.nonsense > NONSENSE else 1.8 for one in points],
        },
    }
    figure.add_scatter(
        x=[one.across.value for one in points],
        y=[one.up.value for one in points],
        mode="lines+markers",
        line={"color": ink, "width": 2},
        marker=marker,
        text=[
            f"{arm_name(arm)}, step {one.step}<br>useful {told(one.across)}<br>robust {told(one.up)}<br>nonsense {number(one.nonsense)}"
            for one in points
        ],
        hoverinfo="text",
        meta={"arm": arm, "steps": [one.step for one in points]},
        error_x=whiskers([one.across for one in points], limits, arm),
        error_y=whiskers([one.up for one in points], (0.0, 1.0), arm),
    )


def _spot(point: _Point, limits: tuple[float, float]) -> tuple[float, float]:
    """Where a point lies, as shares of the two axes."""
    return (point.across.value - limits[0]) / (limits[1] - limits[0]), point.up.value


def _name(
    figure: go.Figure,
    arm: str,
    point: _Point,
    words: str,
    limits: tuple[float, float],
    placed: list[tuple[float, float]],
    points: Sequence[tuple[float, float]],
    *,
    always: bool = False,
) -> None:
    """Write a point's name beside it unless another name is too near; below it where one of the ``points`` would be under its words."""
    spot = _spot(point, limits)
    aside, over = ([(other[0] - spot[0], other[1] - spot[1]) for other in others] for others in (placed, points))
    if not always and any(abs(x) < 0.14 and abs(y) < 0.1 for x, y in aside):
        return
    placed.append(spot)
    rightward = spot[0] < 0.75
    taken = any(abs(x) < 0.3 and abs(y) < 0.1 for x, y in aside)
    covers = any((x, y) != (0, 0) and 0 <= (x if rightward else -x) <= 0.3 and 0 <= y < 0.12 for x, y in over)
    below = (always and (taken or covers)) or (point.step == 0 and point.up.value > 0.1)
    ink = arm_color(arm) if point.step else color("soft")
    anchor = {"xanchor": "left", "xshift": 4} if rightward else {"xanchor": "right", "xshift": -4}
    label(figure, words, point.across.value, point.up.value, ink, yshift=-14 if below else 14, name=f"{arm} {point.step}", **anchor)
