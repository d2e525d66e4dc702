"""Dose curves: what more of an intervention does, beside the band of its controls; and what refusal moved costs in utility."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refgeo.measures.sets import DECISIVE
from refgeo.report.compare import ANY, across_seeds
from refgeo.report.figures.curves import match
from refgeo.report.figures.style import Panel, arm_color, blank, color, label, spaced
from refgeo.report.quantities import INTERVENTIONS, NAMES, capitalized, range_of
from refgeo.report.rules import number, told
from refgeo.report.tables import Tables, arm_name, arm_order, estimates
from refgeo.statistics import Interval

DOSES = {"ablate_single": "share of the direction removed", "ablate_topk": "share of the subspace removed", "add": "amount added"}
CURVES = tuple(DECISIVE.items())
"""Set and metric."""
REFUSAL, UTILITY = (("direct", DECISIVE["direct"]), ("audit", DECISIVE["audit"]))


def curves(tables: Tables) -> list[Panel]:
    """Per kind of intervention and metric: change from the baseline by dose at the last anchor of each arm, with its controls' band.

    Kinds with a single dose have no curve.
    """
    whole = _whole(tables)
    panels = []
    for kind, words in DOSES.items():
        rows = whole[whole["intervention"] == kind] if "intervention" in whole else whole
        if rows.empty or rows["strength"].dropna().nunique() < 2:
            continue
        for set_name, metric in CURVES:
            chosen = rows[rows["set"] == set_name]
            if (chosen["metric"] == f"{metric}_delta").any():
                panels.append(_dose_panel(chosen, metric, words, f"Dose: {INTERVENTIONS[kind]}"))
    return panels


def tradeoffs(tables: Tables) -> list[Panel]:
    """Per kind of intervention: refusal moved against utility moved along the dose, the direction's path among its controls' dots."""
    whole = _whole(tables)
    panels = []
    for kind, title in INTERVENTIONS.items():
        rows = whole[whole["intervention"] == kind] if "intervention" in whole else whole
        paths = {} if rows.empty else {anchor: _path(rows, anchor) for anchor in _anchors(rows)}
        if any(len(path) > 1 for path in paths.values()):
            panels.append(_tradeoff_panel(whole, rows, paths, title))
    return panels


def _whole(tables: Tables) -> pd.DataFrame:
    table = tables.intervention
    return table[(table["subset"] == "all") & table["value"].notna()] if len(table) else table


def _anchors(rows: pd.DataFrame) -> list[tuple[str, int]]:
    """The last anchor of each arm."""
    return [(arm, int(rows[rows["arm"] == arm]["step"].max())) for arm in arm_order(rows["arm"])]


def _at(rows: pd.DataFrame, anchor: tuple[str, int], metric: str, direction: str = "carrier") -> pd.DataFrame:
    return match(rows, {"arm": anchor[0], "step": anchor[1], "metric": metric, "direction": direction})


def _by_dose(rows: pd.DataFrame) -> dict[float, Interval]:
    """One estimate per dose over seeds; at dose 0 nothing changes, by construction."""
    bounds = range_of(str(rows["metric"].iloc[0])) if len(rows) else ANY
    found = {dose: across_seeds(estimates(rows[rows["strength"] == dose]), bounds) for dose in _doses(rows)}
    return dict(sorted({0.0: Interval(0.0, 0.0, 0.0, 1), **found}.items()))


def control_bands(rows: pd.DataFrame) -> dict[float, Interval]:
    """Mean and middle 95% of the controls per dose, averaged over seeds: a spread of directions, no interval of an estimate."""
    found = {}
    for dose in _doses(rows):
        part = rows[rows["strength"] == dose]
        value, low, high, count = (float(part[name].astype(float).mean()) for name in ("value", "low", "high", "n"))
        found[dose] = Interval(value, low, high, round(count))
    return dict(sorted({0.0: Interval(0.0, 0.0, 0.0, 1), **found}.items()))


def _doses(rows: pd.DataFrame) -> list[float]:
    return sorted(float(dose) for dose in rows["strength"].dropna().unique())


def _dose_panel(rows: pd.DataFrame, metric: str, words: str, group: str) -> Panel:
    figure = blank(height=230, right=46, left=54)
    ends: dict[str, float] = {}
    table = [["anchor", "dose", "direction: change from baseline", "controls: mean, middle 95%, how many"]]
    for anchor in _anchors(rows):
        own = _by_dose(_at(rows, anchor, f"{metric}_delta"))
        control = _at(rows, anchor, f"{metric}_delta_controls")
        band = control_bands(control) if len(control) else {}
        title = f"{arm_name(anchor[0])} {anchor[1]}"
        if band:
            _band(figure, band, anchor[0])
        _line(figure, own, title, anchor[0])
        ends[anchor[0]] = list(own.values())[-1].value
        table += [[title, number(dose), told(one), told(band[dose]) if dose in band else "none"] for dose, one in own.items() if dose]
    figure.add_hline(y=0, line={"color": color("soft"), "width": 1}, layer="below")
    heights = [end for trace in figure.data for end in trace.y]
    last = max(_doses(rows), default=1.0)
    for arm, height in spaced(ends, 0.1 * (max(heights) - min(heights))).items():
        label(figure, arm_name(arm), last, height, arm_color(arm))
    figure.update_xaxes(title_text=words, nticks=6)
    figure.update_yaxes(title_text="change from baseline", nticks=5)
    names = " and ".join(f"{arm_name(arm)} {step}" for arm, step in _anchors(rows))
    return Panel(capitalized(NAMES[metric]), f"{names}.", figure, rows=table, group=group)


def _band(figure: go.Figure, band: dict[float, Interval], arm: str) -> None:
    doses, points = list(band), list(band.values())
    outline = [*(one.low for one in points), *(one.high for one in reversed(points))]
    figure.add_scatter(
        x=[*doses, *reversed(doses)], y=outline, fill="toself", fillcolor=arm_color(arm, "band"), mode="none", hoverinfo="skip"
    )
    text = [f"controls of {arm_name(arm)}, dose {number(dose)}<br>{told(one)}" for dose, one in band.items()]
    ink = {"color": arm_color(arm, "thin"), "width": 1.2, "dash": "dash"}
    figure.add_scatter(x=doses, y=[one.value for one in points], mode="lines", line=ink, text=text, hoverinfo="text")


def _line(figure: go.Figure, own: dict[float, Interval], title: str, arm: str) -> None:
    points = list(own.values())
    known = [one if np.isfinite([one.low, one.high]).all() else Interval(one.value, one.value, one.value, one.n) for one in points]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [max(one.high - one.value, 0.0) for one in known],
        "arrayminus": [max(one.value - one.low, 0.0) for one in known],
        "color": arm_color(arm, "thin"),
        "thickness": 1.2,
        "width": 0,
    }
    text = [f"{title}, dose {number(dose)}<br>{told(one)}" for dose, one in own.items()]
    figure.add_scatter(
        x=list(own),
        y=[one.value for one in points],
        mode="lines+markers",
        line={"color": arm_color(arm), "width": 2},
        marker={"size": 6, "color": arm_color(arm)},
        error_y=bars,
        text=text,
        hoverinfo="text",
    )


def _path(rows: pd.DataFrame, anchor: tuple[str, int]) -> list[tuple[float, float, float]]:
    """(dose, refusal change, utility change) along the dose, means over seeds."""
    sides = []
    for set_name, metric in (REFUSAL, UTILITY):
        found = _by_dose(_at(rows[rows["set"] == set_name], anchor, f"{metric}_delta"))
        sides.append({dose: one.value for dose, one in found.items()})
    return [(dose, sides[0][dose], sides[1][dose]) for dose in sides[0] if dose in sides[1]]


def _dots(whole: pd.DataFrame, rows: pd.DataFrame, anchor: tuple[str, int]) -> list[tuple[float, float, str]]:
    """(refusal change, utility change, words) of every random control that was run on both sets."""
    sides = []
    for set_name, metric in (REFUSAL, UTILITY):
        base = whole[(whole["intervention"] == "baseline") & (whole["set"] == set_name) & (whole["metric"] == metric)]
        base = base[(base["arm"] == anchor[0]) & (base["step"] == anchor[1])]
        levels = dict(zip(base["seed"], base["value"], strict=True))
        found = _at(rows[rows["set"] == set_name], anchor, metric, "random")
        keys = zip(found["seed"], found["strength"], found["draw"], found["value"], strict=True)
        sides.append({(seed, dose, draw): float(value) - float(levels[seed]) for seed, dose, draw, value in keys if seed in levels})
    return [(sides[0][key], sides[1][key], f"control {int(key[2])}, dose {number(float(key[1]))}") for key in sides[0] if key in sides[1]]


def _tradeoff_panel(
    whole: pd.DataFrame, rows: pd.DataFrame, paths: dict[tuple[str, int], list[tuple[float, float, float]]], title: str
) -> Panel:
    figure = blank(height=260, right=14, left=54)
    table: list[Sequence[str]] = [["anchor", "utility lost per unit of refusal moved", "of its controls"]]
    for anchor, path in paths.items():
        name = f"{arm_name(anchor[0])} {anchor[1]}"
        dots = _dots(whole, rows, anchor)
        if dots:
            text = [f"{name}: {words}<br>refusal {number(x)}, utility {number(y)}" for x, y, words in dots]
            marker = {"size": 4.5, "color": color("control")}
            figure.add_scatter(
                x=[dot[0] for dot in dots], y=[dot[1] for dot in dots], mode="markers", marker=marker, text=text, hoverinfo="text"
            )
        figure.add_scatter(
            x=[point[1] for point in path],
            y=[point[2] for point in path],
            mode="lines+markers",
            line={"color": arm_color(anchor[0]), "width": 2},
            marker={"size": [5 + 3 * min(abs(point[0]), 2.0) for point in path], "color": arm_color(anchor[0])},
            text=[f"{name}, dose {number(point[0])}<br>refusal {number(point[1])}, utility {number(point[2])}" for point in path],
            hoverinfo="text",
        )
        label(figure, arm_name(anchor[0]), path[-1][1], path[-1][2], arm_color(anchor[0]), xanchor="center", xshift=0, yshift=-12)
        prices = [estimates(_at(rows, anchor, f"any_refusal_price{suffix}")) for suffix in ("", "_controls")]
        table.append([name, *(told(across_seeds(found), len(found)) if found else "not defined: refusal is not moved" for found in prices)])
    for axis, words in ((figure.update_xaxes, "change of refusal of direct requests"), (figure.update_yaxes, "change of utility (0 to 2)")):
        axis(title_text=words, nticks=5, zeroline=True, zerolinecolor=color("soft"))
    names = " and ".join(f"{arm_name(arm)} {step}" for arm, step in paths)
    caption = f"{names}, along the dose; larger dots are stronger."
    return Panel(capitalized(title), caption, figure, rows=table, group="What moving refusal costs in utility")
