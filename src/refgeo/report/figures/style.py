"""The one visual language: a color per arm, quiet axes, direct labels, intervals as bands and whiskers. The page swaps in dark colors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import plotly.graph_objects as go

from refgeo.statistics import Interval

PALETTE: dict[str, tuple[str, str]] = {
    "paper": ("#fbf9f5", "#141519"),
    "raised": ("#f3efe7", "#1c1d23"),
    "ink": ("#1e1c19", "#ece8e1"),
    "soft": ("#686259", "#a7a196"),
    "faint": ("#e4dfd5", "#2d2e35"),
    "r2d2": ("#1f5fa8", "#77aef2"),
    "r2d2-band": ("rgba(31,95,168,0.14)", "rgba(119,174,242,0.17)"),
    "r2d2-thin": ("rgba(31,95,168,0.38)", "rgba(119,174,242,0.42)"),
    "sft": ("#bd5416", "#f0995c"),
    "sft-band": ("rgba(189,84,22,0.14)", "rgba(240,153,92,0.17)"),
    "sft-thin": ("rgba(189,84,22,0.38)", "rgba(240,153,92,0.42)"),
    "other": ("#57534c", "#bdb7ac"),
    "other-band": ("rgba(87,83,76,0.14)", "rgba(189,183,172,0.17)"),
    "other-thin": ("rgba(87,83,76,0.38)", "rgba(189,183,172,0.42)"),
    "control": ("rgba(120,113,102,0.50)", "rgba(176,169,157,0.50)"),
    "scale-0": ("#f2eee7", "#1d1e24"),
    "scale-1": ("#d8d2e3", "#383150"),
    "scale-2": ("#b1a3cd", "#5b4d88"),
    "scale-3": ("#7f68ac", "#8c7ac0"),
    "scale-4": ("#483279", "#cfc2f4"),
    "mark": ("#d0382b", "#ffb454"),
    "good": ("#256f45", "#74c794"),
    "bad": ("#b0332b", "#f08a80"),
}
"""Every color of the page and its figures: name -> (light, dark). Light values are distinct, so that a figure can be recolored."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"


@dataclass(frozen=True)
class Panel:
    """One figure of the page with its words. Without a figure, ``missing`` says why. ``rows`` are its numbers (first row: head)."""

    title: str
    caption: str = ""
    figure: go.Figure | None = None
    missing: str = ""
    rows: Sequence[Sequence[str]] = field(default=())
    group: str = ""
    wide: bool = False


def color(name: str) -> str:
    """The light value of a palette color."""
    return PALETTE[name][0]


def arm_color(arm: str, kind: str = "") -> str:
    """The color of an arm; ``band`` and ``thin`` are its translucent forms."""
    known = arm if arm in PALETTE else "other"
    return color(f"{known}-{kind}" if kind else known)


def blank(height: int = 260, right: int = 58, left: int = 44, bottom: int = 44, top: int = 12) -> go.Figure:
    """An empty figure in the page's style: no background, hairline grid, no mode bar gestures that would trap a finger."""
    axis: dict[str, Any] = {
        "gridcolor": color("faint"),
        "linecolor": color("faint"),
        "zeroline": False,
        "tickfont": {"size": 11.5, "color": color("soft")},
        "title": {"font": {"size": 11.5, "color": color("soft")}, "standoff": 8},
        "fixedrange": True,
    }
    return go.Figure(
        layout={
            "height": height,
            "margin": {"l": left, "r": right, "t": top, "b": bottom},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 12.5, "color": color("ink")},
            "showlegend": False,
            "dragmode": False,
            "hovermode": "closest",
            "hoverlabel": {
                "font": {"family": FONT, "size": 12.5, "color": color("ink")},
                "bgcolor": color("raised"),
                "bordercolor": color("faint"),
                "align": "left",
            },
            "xaxis": {**axis, "showgrid": False, "ticks": "outside", "ticklen": 4, "tickcolor": color("faint"), "tickangle": 0},
            "yaxis": axis,
            "template": "none",
        }
    )


def plain(words: str) -> str:
    """Words of a data set for a figure: plotly takes tags in its texts for markup, links among them."""
    return escape(words[:80], quote=False)


def label(figure: go.Figure, text: str, x: Any, y: Any, ink: str, **more: Any) -> None:
    """Words beside the data, in the data's color."""
    figure.add_annotation(text=text, x=x, y=y, showarrow=False, font={"size": 12, "color": ink}, **{"xanchor": "left", "xshift": 7, **more})


def spaced(positions: dict[str, float], gap: float, low: float = -math.inf, high: float = math.inf) -> dict[str, float]:
    """Label positions moved apart until neighbors differ by ``gap``, inside [low, high] where there is room; their order is kept."""
    order = sorted(positions, key=lambda name: positions[name])
    moved = [positions[name] for name in order]
    for _ in range(50):
        for index in range(1, len(moved)):
            lack = gap - (moved[index] - moved[index - 1])
            if lack > 1e-9:
                moved[index - 1] -= lack / 2
                moved[index] += lack / 2
    for index, place in enumerate(moved):  # up from the floor, then down from the ceiling
        moved[index] = max(place, low + index * gap)
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], high - (len(moved) - 1 - index) * gap)
    return dict(zip(order, moved, strict=True))


def step_ticks(steps: Sequence[int], share: float = 0.09) -> list[int]:
    """Steps to print under an axis: all of them unless neighbors would touch; the first and last always."""
    ordered = sorted(set(steps))
    if len(ordered) < 3:
        return ordered
    gap = share * (ordered[-1] - ordered[0])
    kept = [ordered[0]]
    for step in ordered[1:-1]:
        if step - kept[-1] >= gap and ordered[-1] - step >= gap:
            kept.append(step)
    return [*kept, ordered[-1]]


def whiskers(points: Sequence[Interval], limits: tuple[float, float], arm: str) -> dict[str, object]:
    """Error bars of an arm, cut where the axis ends; none where there is no interval."""
    above = [max(min(one.high, limits[1]) - one.value, 0.0) if math.isfinite(one.high) else 0.0 for one in points]
    below = [max(one.value - max(one.low, limits[0]), 0.0) if math.isfinite(one.low) else 0.0 for one in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "color": arm_color(arm, "thin"),
        "thickness": 1,
        "width": 0,
    }


def slug(text: str) -> str:
    """``Refusal of safe prompts`` -> ``refusal-of-safe-prompts``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "panel"


def reason(table: str, quantity: str = "") -> str:
    """Why a panel is empty."""
    return f"Not measured in this run: {table} has no rows{f' of {quantity}' if quantity else ''}."
