"""Attacked prompts as a third class: where they lie on the axis, and everything in the plane that the start fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from refgeo.report.figures.curves import QUIET, Line, curve, match
from refgeo.report.figures.style import Panel, blank, color, plain, reason
from refgeo.report.rules import percent
from refgeo.report.tables import Tables, arm_name, arm_order

KINDS: dict[str, tuple[str, str, str, str]] = {
    "harmless": ("harmless", "good", "circle", "\u25cf"),
    "harmful": ("harmful", "bad", "circle", "\u25cf"),
    "fixed": ("frozen attack", "scale-3", "diamond", "\u25c6"),
    "adaptive_gcg": ("adaptive attack", "scale-4", "triangle-up", "\u25b2"),
}
"""What the plane shows: class -> words, color, marker of the figure, the same marker as a character."""
KEY = [(words, ink, symbol) for words, ink, _, symbol in KINDS.values()]
MOST = 80
"""Points of one class in one panel, spread evenly over it; the means are those of all."""
DOTTED = "Solid: the frozen attack. Dotted: the attack that adapts to the anchor."


def shifts(tables: Tables) -> list[Panel]:
    """Where attacked prompts lie over steps, on the anchor's own axis and on the start's, and how far an attack moves its own request."""
    table = tables.projection

    def lines(metric: str, axis: str) -> list[tuple[pd.DataFrame, Line]]:
        return [
            (table, Line("fixed", metric, {"axis": axis})),
            (table, Line("adaptive_gcg", metric, {"axis": axis}, name=QUIET, dash="dot")),
        ]

    missing = reason("projection.csv", "attacked_shift")
    return [
        curve(
            "Attacked prompts on the start's axis",
            f"0: harmless, 1: harmful, along the direction that carried refusal before training. {DOTTED}",
            lines("attacked_shift", "start"),
            limits=(None, None),
            missing=missing,
        ),
        curve(
            "Attacked prompts on the anchor's own axis",
            f"The same along each anchor's own direction; absent where harmful and harmless lie no further apart than noise. {DOTTED}",
            lines("attacked_shift", "own"),
            limits=(None, None),
            missing=missing,
        ),
        curve(
            "What the attack moves",
            f"The same request with its attack minus without, on the start's axis, in units of the gap. {DOTTED}",
            lines("paired_shift", "start"),
            limits=(None, None),
            missing=missing,
        ),
    ]


def planes(tables: Tables) -> list[Panel]:
    """One panel per anchor in the start's plane; ``group`` is the seed. All share their ranges."""
    points = tables.points
    if points.empty or "x" not in points:
        return [Panel("The plane of the start", missing=reason("points.csv"), wide=True)]
    shown = points[points["set"].isin(list(KINDS))]
    ranges = [_range(pd.to_numeric(shown[name]).to_numpy(dtype=np.float64)) for name in ("x", "y")]
    panels: list[Panel] = []
    for seed, of_seed in shown.groupby("seed"):
        group = f"seed {seed}"
        for arm in arm_order(of_seed["arm"]):
            for step, part in of_seed[of_seed["arm"] == arm].groupby("step"):
                title = "The start" if step == 0 else f"{arm_name(arm)} at step {step}"
                if step == 0 and any(panel.title == title and panel.group == group for panel in panels):
                    continue
                here = match(tables.projection, {"arm": arm, "seed": seed, "step": step, "axis": "start"})
                panels.append(_plane(title, part, here, ranges, group))
    return panels


def _plane(title: str, points: pd.DataFrame, table: pd.DataFrame, ranges: Sequence[tuple[float, float]], group: str) -> Panel:
    if points["x"].isna().all():
        notes = table["note"].dropna().tolist() if "note" in table else []
        return Panel(title, missing=f"No place in the start's plane: {notes[0] if notes else 'the start has no direction'}.", group=group)
    figure = blank(height=270, left=46, right=10, top=8, bottom=46)
    means: dict[str, float] = {}
    for name, (words, ink, symbol, _) in KINDS.items():
        part = points[points["set"] == name]
        if part.empty:
            continue
        means[name] = float(part["x"].mean())
        some = part.iloc[np.unique(np.linspace(0, len(part) - 1, min(MOST, len(part))).round().astype(int))]
        hollow = [name in ("fixed", "adaptive_gcg") and outcome is not True for outcome in _outcomes(some)]
        figure.add_scatter(
            x=_short(some["x"]),
            y=_short(some["y"]),
            mode="markers",
            marker={"symbol": [f"{symbol}-open" if one else symbol for one in hollow], "size": 5, "color": color(ink)},
            opacity=0.55,
            text=[plain(str(one)) for one in some["id"]],
            hovertemplate=f"{words}: %{{text}}<extra></extra>",
        )
        figure.add_scatter(
            x=[means[name]],
            y=[float(part["y"].mean())],
            mode="markers",
            marker={"symbol": symbol, "size": 12, "color": color(ink), "line": {"color": color("paper"), "width": 2}},
            text=[f"{words}: mean of {len(part)}"],
            hoverinfo="text",
        )
    if {"harmful", "harmless"} <= means.keys():
        middle = (means["harmful"] + means["harmless"]) / 2
        line: dict[str, Any] = {"color": color("soft"), "width": 1, "dash": "dot"}
        figure.add_shape(type="line", x0=middle, x1=middle, y0=0, y1=1, yref="paper", line=line)
    figure.update_xaxes(range=list(ranges[0]), title_text=_axis(table), nticks=5)
    figure.update_yaxes(range=list(ranges[1]), title_text="main direction beside it", nticks=5)
    return Panel(title, _words(table), figure, group=group)


def _axis(table: pd.DataFrame) -> str:
    places = table[["layer", "position"]].dropna() if {"layer", "position"} <= set(table.columns) else table.iloc[:0]
    if places.empty:
        return "direction of the start"
    layer, position = (int(value) for value in places.iloc[0])
    return f"direction of the start (layer {layer}, position {position})".replace("-", "\u2212")


def _words(table: pd.DataFrame) -> str:
    """How many attacked prompts lie on the harmless side, in words."""
    parts = []
    for name in ("fixed", "adaptive_gcg"):
        found = match(table, {"set": name, "metric": "harmless_side", "subset": "all"}).dropna(subset=["value"])
        if len(found):
            parts.append(f"{percent(float(found['value'].iloc[0]))} of the {KINDS[name][0]}s (n = {int(found['n'].iloc[0])})")
    return f"On the harmless side of the dotted midpoint: {' and '.join(parts)}." if parts else ""


def _outcomes(points: pd.DataFrame) -> list[bool | None]:
    return [None if pd.isna(outcome) else bool(outcome) for outcome in points["succeeded"]]


def _short(values: pd.Series) -> list[float]:
    """Four digits are finer than a pixel and keep the page small."""
    return [float(f"{float(value):.4g}") for value in values]


def _range(values: np.ndarray) -> tuple[float, float]:
    """All but the outermost half percent, with a margin."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.quantile(finite, [0.005, 0.995])
    margin = 0.06 * float(high - low) or 0.5
    return float(low) - margin, float(high) + margin
